//! `chaos`: many rounds of failure on one cluster; see `chaos --help`. Built without `panic = "abort"`, since a round that
//! fails must clean up: `scripts/chaos` does so.

use lumeofs_tests::chaos::{
    KINDS, Kind, Outcome, Plan, Random, Yard, remove_leftovers, run_round, table,
};
use lumeofs_tests::{Role, interrupt, interrupted};
use serde_json::json;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

const HELP: &str = "\
Breaks a cluster in many ways under a load that verifies itself.

usage: scripts/chaos [OPTIONS]

  --rounds N     rounds [default: one for each fault]
  --seed S       targets, times and data follow from it; round n uses S + n [default: the time]
  --only FAULT   this fault, of those that --list names; several separated by commas; A+B is B while A lasts
  --no-fio       no fio beside the other load
  --slow N       bounds of time are N times as long, on a machine that has other work [default: 1]
  --json         a line of JSON for each round, and no table
  --list         names the faults
  --clean        only removes what runs left that were killed

Without --only the faults take turns, and every fourth round has two at a time that leave a majority alive.
A round that fails leaves its logs and the manifest of its load in a directory that it names, and the next
one has a new cluster. At the end all is stopped, and nothing may be left: chunks of removed files, sessions, locks,
processes, mounts, directories. Exit code: 0 if all rounds and the end were clean, 1 if not, 2 for wrong arguments, 130 after a signal.
LUMEOFS_BINARY names another binary, LUMEOFS_TEST_DIR another place than /var/tmp.";

/// Every so many rounds two faults come at the same time.
const PAIRS_EVERY: u64 = 4;

struct Options {
    rounds: u64,
    seed: u64,
    only: Vec<Vec<&'static Kind>>,
    fio: bool,
    slow: u32,
    json: bool,
    clean: bool,
}

fn main() -> ExitCode {
    if cfg!(panic = "abort") {
        eprintln!("chaos: built with panic = \"abort\" it could not clean up: run scripts/chaos");
        return ExitCode::from(2);
    }
    let options = match parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("chaos: {text}; --help explains");
            return ExitCode::from(2);
        }
    };
    for name in remove_leftovers() {
        eprintln!("removed {name} of an earlier run");
    }
    if options.clean {
        return ExitCode::SUCCESS;
    }
    if let Err(error) = watch_signals() {
        eprintln!("chaos: signals: {error}");
        return ExitCode::FAILURE;
    }
    let (outcomes, left) = run(&options);
    if !options.json {
        println!("\n{}", table(&outcomes));
    }
    let clean = left.is_empty() && outcomes.iter().all(|outcome| outcome.problems.is_empty());
    match (
        interrupted(),
        clean && outcomes.len() as u64 == options.rounds,
    ) {
        (true, _) => ExitCode::from(130),
        (false, true) => ExitCode::SUCCESS,
        (false, false) => ExitCode::FAILURE,
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut options = Options {
        rounds: 0,
        seed: now.map_or(0, |time| time.as_secs()),
        only: Vec::new(),
        fio: true,
        slow: 1,
        json: false,
        clean: false,
    };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        let number = |text: String| {
            text.parse()
                .map_err(|_| format!("{text:?} is not a number"))
        };
        match argument.as_str() {
            "--rounds" => options.rounds = number(value()?)?,
            "--seed" => options.seed = number(value()?)?,
            "--only" => {
                let named = value()?;
                options.only = named.split(',').map(kinds).collect::<Result<_, _>>()?;
            }
            "--no-fio" => options.fio = false,
            "--slow" => options.slow = number(value()?)?.clamp(1, 100) as u32,
            "--json" => options.json = true,
            "--clean" => options.clean = true,
            "--list" => {
                for kind in KINDS {
                    println!("{:24} {}", kind.name, kind.what);
                }
                return Ok(None);
            }
            "--help" | "-h" => {
                println!("{HELP}");
                return Ok(None);
            }
            other => return Err(format!("{other:?} is not an option")),
        }
    }
    if options.rounds == 0 {
        options.rounds = match options.only.len() {
            0 => KINDS.len() as u64,
            named => named as u64,
        };
    }
    Ok(Some(options))
}

/// `A`, or `A+B`.
fn kinds(names: &str) -> Result<Vec<&'static Kind>, String> {
    let find = |name: &str| KINDS.iter().find(|kind| kind.name == name);
    let found: Result<Vec<_>, _> = names
        .split('+')
        .map(|name| find(name).ok_or_else(|| format!("{name:?} is not a fault: see --list")))
        .collect();
    let found = found?;
    let roles: Vec<_> = found.iter().map(|kind| kind.pairs).collect();
    let goes = match roles[..] {
        [_] => true,
        [Some(one), Some(other)] => one != other,
        _ => false,
    };
    goes.then_some(found)
        .ok_or_else(|| format!("{names:?}: at the same time go only two that leave a majority of masters and of datanodes"))
}

/// What came of each round, and what was left at the end.
fn run(options: &Options) -> (Vec<Outcome>, Vec<String>) {
    let mut outcomes = Vec::new();
    let mut yard = None;
    for number in 0..options.rounds {
        let plan = plan(options, number);
        let result = catch_unwind(AssertUnwindSafe(|| {
            run_round(yard.get_or_insert_with(Yard::start), &plan)
        }));
        if interrupted() {
            eprintln!("interrupted in round {number}, {}", plan.faults());
            break;
        }
        let panicked = result.is_err();
        let outcome = result.unwrap_or_else(|panic| Outcome::failed(&plan, text_of(&*panic)));
        if options.json {
            println!("{}", outcome.json());
        } else {
            println!("{outcome}");
        }
        if !outcome.problems.is_empty() {
            let (seed, faults) = (plan.seed, plan.faults());
            eprintln!("    again: scripts/chaos --rounds 1 --seed {seed} --only {faults}");
        }
        // A cluster to which nothing was done, since the binary lacks a command, is as good as before.
        let touched = panicked || outcome.calls > 0;
        let broken = touched && !outcome.problems.is_empty();
        if let Some(broken) = yard.take_if(|_| broken) {
            eprintln!("    logs:  {}", broken.keep(number).display());
        }
        outcomes.push(outcome);
    }
    // After a round that failed or was interrupted the cluster may be left in any state.
    let left = match yard.filter(|_| !interrupted()) {
        Some(yard) => end(options, yard),
        None => Vec::new(),
    };
    (outcomes, left)
}

/// Ends the cluster and tells what was left of it.
fn end(options: &Options, yard: Yard) -> Vec<String> {
    let ended = catch_unwind(AssertUnwindSafe(|| yard.end(options.rounds)));
    let left = ended.unwrap_or_else(|panic| vec![text_of(&*panic)]);
    match (options.json, left.is_empty()) {
        (true, ok) => println!("{}", json!({"end": true, "ok": ok, "problems": left})),
        (false, true) => println!("end        nothing is left  ok"),
        (false, false) => println!("end        FAILED\n    {}", left.join("\n    ")),
    }
    left
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked").to_owned()
}

fn plan(options: &Options, number: u64) -> Plan {
    let seed = options.seed.wrapping_add(number);
    let pairs = options.only.is_empty() && number % PAIRS_EVERY == PAIRS_EVERY - 1;
    let kinds = if pairs {
        pair(&mut Random::new(seed))
    } else if options.only.is_empty() {
        vec![&KINDS[((number - number / PAIRS_EVERY) % KINDS.len() as u64) as usize]]
    } else {
        options.only[(number % options.only.len() as u64) as usize].clone()
    };
    Plan {
        number,
        seed,
        kinds,
        fio: options.fio,
        slow: options.slow,
    }
}

/// One fault of a master and one of another sort of a datanode, in either order.
fn pair(random: &mut Random) -> Vec<&'static Kind> {
    let of = |role: Role| -> Vec<&Kind> {
        let kinds = KINDS.iter().filter(|kind| kind.pairs == Some(role));
        kinds.collect()
    };
    let sort = |kind: &Kind| kind.name.split('-').next().map(str::to_owned);
    loop {
        let pair = [random.of(&of(Role::Master)), random.of(&of(Role::Datanode))];
        if sort(pair[0]) != sort(pair[1]) {
            let first = random.below(2) as usize;
            return vec![pair[first], pair[1 - first]];
        }
    }
}

/// The first signal ends what waits, so that everything is cleaned up; a second one ends the program.
fn watch_signals() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut interrupts, mut terminations) = {
        let _guard = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupts.recv() => {}
                    _ = terminations.recv() => {}
                }
                if interrupted() {
                    std::process::exit(130);
                }
                eprintln!("stopping; again to leave everything as it is");
                interrupt();
            }
        });
    });
    Ok(())
}

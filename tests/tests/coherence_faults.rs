//! Coherence while something breaks: the mounts that are left see nothing stale and no error, and one that was away sees
//! the present when it is back.

#[path = "coherence_faults/loads.rs"]
mod loads;
#[path = "coherence_faults/watch.rs"]
mod watch;

use loads::{Phase, Third, under_load};
use lumeofs_tests::chaos::Random;
use lumeofs_tests::coherence::{Interleaving, random_steps};
use lumeofs_tests::{Site, eventually};
use rustix::process::{Pid, Signal, kill_process};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where the mounts are, with their names. The third one is alone on its host.
const MOUNTS: [(&str, &str); 3] = [("a", "a"), ("a", "b"), ("b", "c")];
const THIRD: &str = "c";
const ALL: [usize; 3] = [0, 1, 2];
const OTHERS: [usize; 2] = [0, 1];
/// How long the third mount is away: longer than anything that it holds is held for it.
const AWAY: Duration = Duration::from_secs(8);
const SOON: Duration = Duration::from_secs(60);
/// Steps of an interleaving before, during and after a fault.
const STEPS: usize = 300;

/// A cluster with three mounts, and what is done in it.
struct Day {
    site: Site,
    round: u64,
    random: Random,
}

impl Day {
    fn new() -> Self {
        let mut site = Site::start("lmch", false);
        for (host, name) in MOUNTS {
            site.mount(host, name, "on-outage=block");
        }
        let seed =
            std::env::var("LUMEOFS_SEED_FIRST").map_or(1, |text| text.parse().expect("a number"));
        println!("seed {seed}");
        Self {
            site,
            round: 0,
            random: Random::new(seed),
        }
    }

    /// New directories for the next fault: on each mount, and a local one with an interleaving.
    fn next(&mut self) -> ([PathBuf; 3], Interleaving) {
        self.round += 1;
        let name = format!("round-{}", self.round);
        let below = MOUNTS.map(|(_, mount)| self.site.mount_point(mount).join(&name));
        std::fs::create_dir(&below[0]).expect("a directory on a mount");
        let local = self.site.directory().join(&name);
        std::fs::create_dir(&local).expect("a local directory");
        let interleaving = Interleaving::new(&local, &below, "interleaving");
        (below, interleaving)
    }

    fn steps(&mut self, interleaving: &mut Interleaving, mounts: &[usize]) {
        let steps = random_steps(&mut self.random, STEPS, mounts);
        let run = interleaving.run(&steps);
        run.unwrap_or_else(|(_, told)| panic!("round {}: {told}", self.round));
    }

    fn signal_third(&mut self, signal: Signal) {
        let pid = self.site.processes()[&format!("mount-{THIRD}")];
        let pid = Pid::from_raw(pid.cast_signed()).expect("no process has the number 0");
        kill_process(pid, signal).expect("a process of ours");
    }

    fn leader_dies(&mut self) {
        let (below, mut interleaving) = self.next();
        under_load(&below, Third::Works, |phase: &Phase| {
            self.steps(&mut interleaving, &ALL);
            let leader = self.site.leader("metadata");
            phase.breaks();
            self.site.kill(leader);
            self.steps(&mut interleaving, &ALL);
            self.site.start_node(leader);
            self.steps(&mut interleaving, &ALL);
        });
        shows_the_same(&interleaving, &ALL);
        eventually("the masters have caught up", SOON, || {
            self.site.masters_caught_up()
        });
    }

    fn mount_dies(&mut self) {
        let (below, mut interleaving) = self.next();
        under_load(&below, Third::Dies, |phase: &Phase| {
            self.steps(&mut interleaving, &ALL);
            interleaving.quiesce(2).expect("it works so far");
            phase.breaks();
            self.signal_third(Signal::KILL);
            self.steps(&mut interleaving, &OTHERS);
            self.steps(&mut interleaving, &OTHERS);
        });
        shows_the_same(&interleaving, &OTHERS);
        self.site.unmount(THIRD);
        let (host, name) = MOUNTS[2];
        self.site.mount(host, name, "on-outage=block");
        shows_the_same(&interleaving, &ALL);
    }

    /// The third mount is away between two acts.
    fn mount_is_away(&mut self, begin: impl FnOnce(&mut Self), end: impl FnOnce(&mut Self)) {
        let (below, mut interleaving) = self.next();
        under_load(&below, Third::IsAway, |phase: &Phase| {
            self.steps(&mut interleaving, &ALL);
            interleaving.quiesce(2).expect("it works so far");
            phase.breaks();
            let begun = Instant::now();
            begin(self);
            while begun.elapsed() < AWAY {
                self.steps(&mut interleaving, &OTHERS);
            }
            end(self);
            // A call may fail; what is answered must be the present.
            eventually("the third mount is back", SOON, || {
                match interleaving.compare(2) {
                    Ok(()) => true,
                    Err(None) => false,
                    Err(Some(told)) => panic!("stale: {told}"),
                }
            });
            // Its session may have ended; then one change may fail.
            eventually("the third mount can write", SOON, || {
                std::fs::write(below[2].join("back"), "").is_ok()
            });
            self.steps(&mut interleaving, &ALL);
        });
        shows_the_same(&interleaving, &ALL);
    }

    fn mount_is_stopped(&mut self) {
        self.mount_is_away(
            |day| day.signal_third(Signal::STOP),
            |day| day.signal_third(Signal::CONT),
        );
    }

    fn mount_is_cut_off(&mut self) {
        self.mount_is_away(
            |day| {
                let (host, _) = MOUNTS[2];
                let hosts = day.site.hosts();
                let others: Vec<_> = hosts.names().filter(|other| *other != host).collect();
                hosts.cut_both(host, &others);
            },
            |day| day.site.hosts().heal(),
        );
    }
}

fn shows_the_same(interleaving: &Interleaving, mounts: &[usize]) {
    for mount in mounts {
        let compared = interleaving.compare(*mount);
        compared.unwrap_or_else(|told| panic!("{}", told.unwrap_or("an error".into())));
    }
}

#[test]
fn when_the_leader_of_the_masters_dies_no_mount_sees_anything_stale_or_an_error() {
    Day::new().leader_dies();
}

#[test]
fn when_a_mount_dies_the_others_see_what_it_had_synced_and_nothing_stale() {
    Day::new().mount_dies();
}

#[test]
fn a_mount_that_was_cut_off_sees_the_present_and_the_others_never_notice() {
    Day::new().mount_is_cut_off();
}

#[test]
fn a_mount_that_was_stopped_sees_the_present_and_the_others_never_notice() {
    Day::new().mount_is_stopped();
}

#[test]
#[ignore = "many rounds of all of the above"]
fn faults_again_and_again_leave_nothing_stale() {
    let rounds = std::env::var("LUMEOFS_ROUNDS").map_or(10, |text| text.parse().expect("a number"));
    let mut day = Day::new();
    for round in 1..=rounds {
        let begun = Instant::now();
        day.leader_dies();
        day.mount_is_stopped();
        day.mount_dies();
        day.mount_is_cut_off();
        println!("round {round} of {rounds}: {:?}", begun.elapsed());
    }
}

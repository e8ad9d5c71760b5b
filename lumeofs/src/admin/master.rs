//! `lumeofs admin master`: masters that come and go.
//!
//! A command only says what is wanted, and then watches: the cluster goes on by itself, also when this command is
//! interrupted or the masters change their leader. The same command again watches on.

use super::call;
use crate::output;
use lumeofs_base::{Code, FsError, FsResult};
use lumeofs_proto::auth::Credentials;
use lumeofs_proto::control::change_masters_request::Change;
use lumeofs_proto::control::{AddMaster, ChangeMastersRequest, Master, MastersRequest};
use serde_json::json;
use std::time::{Duration, Instant};

/// How long a leader is looked for before the command gives up.
const LEADER_PATIENCE: Duration = Duration::from_secs(15);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(300);

/// Options of `lumeofs admin master`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
    /// How many seconds a change is watched; afterwards it goes on by itself
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
}

#[derive(clap::Subcommand)]
enum Action {
    /// All masters: address, state, what they lead, how far changes are
    List,
    /// Lets new masters vote: they follow, catch up, and then all vote in one step. Start them before with `lumeofs
    /// master --join`; a candidate is named by its ID alone. Three or five masters are the numbers to have
    Add {
        /// ID or ID=HOST:PORT
        #[arg(required = true, value_name = "ID[=HOST:PORT]")]
        new: Vec<String>,
    },
    /// Lets a master go, for ever: its id is never used again. Refused where those that stay would be no majority
    Remove {
        /// ID of the master
        id: u64,
    },
    /// Lets a new master take the place of another one, which may be dead, in one step
    Replace {
        /// ID of the master that goes
        old: u64,
        /// ID or ID=HOST:PORT of the one that comes
        new: String,
    },
}

/// The masters of the cluster, which may change while they are asked.
struct Cluster<'a> {
    addresses: Vec<String>,
    credentials: &'a Credentials,
}

/// Runs the command.
pub(super) fn run(
    args: &Args,
    masters: Vec<String>,
    credentials: &Credentials,
    json: bool,
) -> anyhow::Result<()> {
    let limit = Duration::from_secs(args.timeout);
    let mut cluster = Cluster {
        addresses: masters,
        credentials,
    };
    let goals = match &args.action {
        Action::List => return show(&cluster.list()?, json),
        Action::Add { new } => {
            let masters: FsResult<Vec<_>> = new.iter().map(|text| parse(text)).collect();
            let masters = masters?;
            let ids: Vec<u64> = masters.iter().map(|(id, _)| *id).collect();
            for (id, address) in masters {
                cluster.change(Change::Add(AddMaster {
                    id,
                    address,
                    replaces: 0,
                }))?;
            }
            ids.into_iter().map(|id| (id, "voter")).collect()
        }
        Action::Remove { id } => {
            cluster.change(Change::Remove(*id))?;
            vec![(*id, "removed")]
        }
        Action::Replace { old, new } => {
            let (id, address) = parse(new)?;
            cluster.change(Change::Add(AddMaster {
                id,
                address,
                replaces: *old,
            }))?;
            vec![(id, "voter"), (*old, "removed")]
        }
    };
    let list = cluster.wait(&goals, limit)?;
    warn_of_even_numbers(&list);
    show(&list, json)
}

/// Addresses of the masters that take part now.
pub(crate) fn addresses(masters: &[String], credentials: &Credentials) -> Option<Vec<String>> {
    let cluster = Cluster {
        addresses: masters.to_owned(),
        credentials,
    };
    let list = cluster.list_once().ok()?;
    let voters = list.into_iter().filter(|master| master.state == "voter");
    let addresses: Vec<String> = voters.map(|master| master.address).collect();
    (!addresses.is_empty()).then_some(addresses)
}

/// `ID` or `ID=HOST:PORT`.
fn parse(text: &str) -> FsResult<(u64, String)> {
    let (id, address) = text.split_once('=').unwrap_or((text, ""));
    let bad = || FsError::new(Code::Invalid, format!("{text:?}: want ID or ID=HOST:PORT"));
    let id: u64 = id.trim().parse().map_err(|_| bad())?;
    if id == 0 || (text.contains('=') && crate::access::split_masters(address).is_err()) {
        return Err(bad());
    }
    Ok((id, address.trim().to_owned()))
}

/// The error of a master that has answered, with its meaning.
fn meaning(status: &tonic::Status) -> FsError {
    let code = match status.code() {
        tonic::Code::NotFound => Code::NotFound,
        tonic::Code::AlreadyExists => Code::Exists,
        tonic::Code::InvalidArgument => Code::Invalid,
        tonic::Code::FailedPrecondition => Code::Busy,
        tonic::Code::ResourceExhausted => Code::NoSpace,
        tonic::Code::Unauthenticated => Code::Refused,
        _ => Code::Unavailable,
    };
    FsError::new(code, status.message())
}

impl Cluster<'_> {
    fn list_once(&self) -> FsResult<Vec<Master>> {
        let mut last = FsError::new(Code::Invalid, "the list of masters is empty");
        for address in &self.addresses {
            let asked = call(address, self.credentials, |mut client| async move {
                Ok(client.masters(MastersRequest {}).await)
            });
            match asked {
                Ok(Ok(reply)) => return Ok(reply.into_inner().masters),
                Ok(Err(status)) => last = meaning(&status),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The list, and where to ask from now on.
    fn list(&mut self) -> FsResult<Vec<Master>> {
        let begun = Instant::now();
        loop {
            match self.list_once() {
                Ok(list) => {
                    self.learn(&list);
                    return Ok(list);
                }
                Err(error) if is_passing(&error) && begun.elapsed() < LEADER_PATIENCE => pause(),
                Err(error) => return Err(error),
            }
        }
    }

    fn learn(&mut self, list: &[Master]) {
        for master in list.iter().filter(|master| master.state != "removed") {
            if !self.addresses.contains(&master.address) {
                self.addresses.push(master.address.clone());
            }
        }
    }

    fn change(&mut self, change: Change) -> FsResult<()> {
        let begun = Instant::now();
        loop {
            match self.change_once(&change) {
                Ok(()) => return Ok(()),
                Err(error) if is_passing(&error) && begun.elapsed() < LEADER_PATIENCE => pause(),
                Err(error) => return Err(error),
            }
        }
    }

    fn change_once(&self, change: &Change) -> FsResult<()> {
        let mut last = FsError::new(Code::Unavailable, "no master answers");
        for address in &self.addresses {
            let request = ChangeMastersRequest {
                change: Some(change.clone()),
            };
            let asked = call(address, self.credentials, |mut client| async move {
                Ok(client.change_masters(request).await)
            });
            match asked.map(|answer| answer.map_err(|status| meaning(&status))) {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) if !is_passing(&error) => return Err(error),
                // What the leader says counts for more than that others do not lead.
                Ok(Err(error)) if error.context.contains("leader") => {}
                Ok(Err(error)) | Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Watches until all are what they shall be.
    fn wait(&mut self, goals: &[(u64, &str)], limit: Duration) -> FsResult<Vec<Master>> {
        let begun = Instant::now();
        let mut said = Vec::new();
        loop {
            if let Ok(list) = self.list_once() {
                self.learn(&list);
                let is_there = |(id, state): &(u64, &str)| {
                    list.iter()
                        .any(|master| master.id == *id && master.state == *state)
                };
                if goals.iter().all(is_there) {
                    return Ok(list);
                }
                let now = goals.iter().filter_map(|(id, _)| {
                    let master = list.iter().find(|master| master.id == *id)?;
                    Some(format!(
                        "master {id} is {}: {}",
                        master.state, master.progress
                    ))
                });
                let now: Vec<String> = now.collect();
                for line in now.iter().filter(|line| !said.contains(*line)) {
                    output::note(line);
                }
                said = now;
            }
            if begun.elapsed() > limit {
                let text = format!(
                    "not done in {} s ({}); it goes on by itself, the same command watches on",
                    limit.as_secs(),
                    said.join("; ")
                );
                return Err(FsError::new(Code::Timeout, text));
            }
            pause();
        }
    }
}

/// Whether an error may be over in a moment: no leader, or another one.
fn is_passing(error: &FsError) -> bool {
    matches!(error.code, Code::Unavailable | Code::Timeout)
}

fn pause() {
    std::thread::park_timeout(LOOK);
}

fn warn_of_even_numbers(list: &[Master]) {
    let voters = list.iter().filter(|master| master.state == "voter").count();
    if voters.is_multiple_of(2) {
        output::note(format_args!(
            "{voters} masters bear the loss of no more of them than {} do: add or remove one",
            voters - 1
        ));
    }
}

fn show(list: &[Master], json: bool) -> anyhow::Result<()> {
    if json {
        let value = |master: &Master| {
            json!({
                "id": master.id, "address": master.address, "state": master.state, "leads": master.leads,
                "answers": master.answers, "progress": master.progress,
                "replaces": (master.replaces != 0).then_some(master.replaces),
            })
        };
        return output::json(&list.iter().map(value).collect::<Vec<_>>());
    }
    let row = |master: &Master| {
        let takes_part = !matches!(master.state.as_str(), "candidate" | "removed");
        let note = match (master.replaces, takes_part && !master.answers) {
            (0, false) => master.progress.clone(),
            (0, true) => format!("does not answer {}", master.progress),
            (old, _) => format!("takes the place of {old}; {}", master.progress),
        };
        vec![
            master.id.to_string(),
            master.address.clone(),
            master.state.clone(),
            master.leads.join(","),
            note,
        ]
    };
    let rows: Vec<_> = list.iter().map(row).collect();
    output::table(&["ID", "ADDRESS", "STATE", "LEADS", "NOTE"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_is_named_by_its_id_with_or_without_an_address() {
        assert_eq!(parse("4").unwrap(), (4, String::new()));
        assert_eq!(parse("4=host:7000").unwrap(), (4, "host:7000".into()));
        for bad in ["", "x", "0", "4=", "4=host", "=host:1"] {
            assert_eq!(parse(bad).unwrap_err().code, Code::Invalid, "{bad}");
        }
    }
}

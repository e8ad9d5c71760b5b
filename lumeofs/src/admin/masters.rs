//! All masters asked at once: who answers, who leads, who lags, whose disk is short.

use super::call;
use lumeofs_base::{Code, FsError};
use lumeofs_proto::auth::Credentials;
use lumeofs_proto::control::{RaftReply, RaftRequest};
use std::collections::BTreeMap;

/// Entries by which a follower may lag before it is worth a word: what a busy second brings.
const LAG_MAX: u64 = 10_000;
/// Use of a master's disk, in percent, from which it is full soon.
const FILLING_PERCENT: u64 = 85;

/// A master, and what it says.
pub(super) struct Asked {
    pub(super) address: String,
    pub(super) raft: Result<RaftReply, FsError>,
}

/// A Raft group as all answers together show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct GroupView {
    /// The master that says to lead it, of the highest term.
    pub(super) leader: Option<String>,
    term: u64,
    /// Followers that lag, and by how many entries.
    pub(super) lagging: Vec<(u64, u64)>,
}

/// What is wrong with masters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    Fine,
    /// All works, with less in reserve.
    Degraded,
    /// A group has no leader.
    Critical,
}

/// The Raft groups as one master sees them, and its disk.
pub(super) fn ask_raft(master: &str, credentials: &Credentials) -> Result<RaftReply, FsError> {
    call(master, credentials, |mut client| async move {
        let reply = client.raft(RaftRequest {}).await;
        reply.map(tonic::Response::into_inner)
    })
}

/// Asks all masters at the same time, each within the deadline of a call.
pub(super) fn survey(masters: &[String], credentials: &Credentials) -> Vec<Asked> {
    std::thread::scope(|scope| {
        let ask = |address: &String| {
            let address = address.clone();
            scope.spawn(move || Asked {
                raft: ask_raft(&address, credentials),
                address,
            })
        };
        let threads: Vec<_> = masters.iter().map(ask).collect();
        let answers = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        answers
            .map(|asked| asked.expect("asking does not panic"))
            .collect()
    })
}

/// The groups by name. Both are there, known or not.
pub(super) fn groups(asked: &[Asked]) -> BTreeMap<String, GroupView> {
    let names = ["controller", "metadata"];
    let mut views: BTreeMap<String, GroupView> = names
        .map(|name| (name.to_owned(), GroupView::default()))
        .into();
    for master in asked {
        let Ok(reply) = &master.raft else { continue };
        for group in &reply.groups {
            let view = views.entry(group.name.clone()).or_default();
            let leads = group.role == "leader" && group.term >= view.term;
            if leads {
                let lagging = group.followers.iter();
                *view = GroupView {
                    leader: Some(master.address.clone()),
                    term: group.term,
                    lagging: lagging
                        .filter(|follower| follower.lag > LAG_MAX)
                        .map(|follower| (follower.node, follower.lag))
                        .collect(),
                };
            }
        }
    }
    views
}

/// The leader of a group, or an error that says who answered.
pub(super) fn leader(asked: &[Asked], group: &str) -> Result<String, FsError> {
    let found = groups(asked).remove(group).and_then(|view| view.leader);
    found.ok_or_else(|| FsError::new(Code::Unavailable, no_leader(asked, group)))
}

fn no_leader(asked: &[Asked], group: &str) -> String {
    let answers = |master: &Asked| match &master.raft {
        Ok(_) => format!("{} answers", master.address),
        Err(error) => format!("{} does not: {}", master.address, error.context),
    };
    let answers: Vec<_> = asked.iter().map(answers).collect();
    format!(
        "no master leads the {group} group ({}): start more of the masters, or name all of them",
        answers.join("; ")
    )
}

/// Disks of masters that are full soon: address, percent used, bytes free, and whether it takes no new files.
pub(super) fn filling(asked: &[Asked]) -> Vec<(String, u64, u64, bool)> {
    let mut filling = Vec::new();
    for master in asked {
        let Ok(reply) = &master.raft else { continue };
        let used = reply.disk_bytes.saturating_sub(reply.disk_free_bytes);
        let percent = (u128::from(used) * 100).checked_div(reply.disk_bytes.into());
        let percent = percent.map_or(0, |percent| percent as u64);
        if percent >= FILLING_PERCENT || reply.disk_short {
            let (free, short) = (reply.disk_free_bytes, reply.disk_short);
            filling.push((master.address.clone(), percent, free, short));
        }
    }
    filling
}

/// Masters that may fail before there is no quorum.
pub(super) fn spare(asked: &[Asked]) -> usize {
    let answering = asked.iter().filter(|master| master.raft.is_ok()).count();
    answering.saturating_sub(asked.len() / 2 + 1)
}

/// How bad it is.
pub(super) fn severity(asked: &[Asked]) -> Severity {
    let views = groups(asked);
    if views.values().any(|view| view.leader.is_none()) {
        return Severity::Critical;
    }
    let silent = asked.iter().any(|master| master.raft.is_err());
    let lags = views.values().any(|view| !view.lagging.is_empty());
    let short = filling(asked).iter().any(|(_, _, _, short)| *short);
    match silent || lags || short {
        true => Severity::Degraded,
        false => Severity::Fine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_proto::control::{Follower, RaftGroup};

    fn group(name: &str, role: &str, term: u64, lag: u64) -> RaftGroup {
        RaftGroup {
            name: name.into(),
            role: role.into(),
            term,
            followers: vec![Follower {
                node: 3,
                lag,
                ..Follower::default()
            }],
            ..RaftGroup::default()
        }
    }

    fn master(address: &str, role: &str, term: u64) -> Asked {
        let groups = ["controller", "metadata"].map(|name| group(name, role, term, 0));
        Asked {
            address: address.into(),
            raft: Ok(RaftReply {
                groups: groups.into(),
                disk_bytes: 100,
                disk_free_bytes: 50,
                disk_short: false,
            }),
        }
    }

    fn silent(address: &str) -> Asked {
        Asked {
            address: address.into(),
            raft: Err(FsError::new(Code::Unavailable, "refused")),
        }
    }

    #[test]
    fn the_leader_of_the_highest_term_counts() {
        let asked = [master("a", "leader", 3), master("b", "leader", 4)];
        assert_eq!(leader(&asked, "metadata").unwrap(), "b");
        assert_eq!(severity(&asked), Severity::Fine);
    }

    #[test]
    fn without_a_leader_it_is_critical_and_the_error_says_who_answers() {
        let asked = [master("a", "follower", 3), silent("b")];
        assert_eq!(severity(&asked), Severity::Critical);
        let error = leader(&asked, "metadata").unwrap_err();
        assert_eq!(error.code, Code::Unavailable);
        assert!(
            error.context.contains("a answers; b does not: refused"),
            "{error}"
        );
    }

    #[test]
    fn a_silent_or_lagging_or_full_master_is_degraded() {
        let two = || [master("a", "leader", 3), master("b", "follower", 3)];
        let [one, other] = two();
        let asked = [one, other, silent("c")];
        assert_eq!((severity(&asked), spare(&asked)), (Severity::Degraded, 0));
        let mut lags = two();
        lags[0].raft.as_mut().unwrap().groups[1].followers[0].lag = LAG_MAX + 1;
        assert_eq!(severity(&lags), Severity::Degraded);
        let mut full = two();
        full[1].raft.as_mut().unwrap().disk_short = true;
        assert_eq!(severity(&full), Severity::Degraded);
        assert_eq!(filling(&full), [("b".to_owned(), 50, 50, true)]);
    }
}

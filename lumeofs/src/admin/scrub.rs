//! `lumeofs admin scrub`: how far datanodes are with reading all they store, and beginning it now. Asks the datanodes
//! themselves.

use super::status;
use crate::access::Access;
use crate::output;
use lumeofs_base::{Code, FsError, FsResult, NodeId, NodeKind};
use lumeofs_proto::auth::{Credentials, Identity};
use lumeofs_proto::blocking::Conn;
use lumeofs_proto::control::Node;
use lumeofs_proto::data::{ScrubDisk, ScrubReply, ScrubRequest};
use lumeofs_proto::frame::Op;
use serde_json::{Value, json};
use std::io;
use std::time::Duration;

/// How long a datanode may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// What `lumeofs admin scrub` does.
#[derive(clap::Subcommand)]
#[command(
    after_help = "Datanodes read all they store once a week, at `lumeofs datanode --scrub-rate`, compare it with its checksums,
and repair what is damaged from other replicas; so they do with damage that a read comes upon. docs/health.md says more."
)]
pub(super) enum Action {
    /// Each disk's round, how far it is, and blocks of 4 KiB found damaged, repaired and not repaired yet
    Status,
    /// Begins a round now, also where one is under way; does not wait for its end
    Start {
        /// Only this datanode [default: all]
        #[arg(long, value_name = "ID")]
        node: Option<u64>,
    },
}

/// What a datanode answered.
struct Asked {
    node: Node,
    reply: FsResult<ScrubReply>,
}

/// Runs the command.
pub(super) fn run(access: &Access, action: &Action) -> anyhow::Result<()> {
    let (masters, credentials) = access.resolve()?;
    let known = status(&masters, &credentials)?.nodes;
    let mut nodes: Vec<Node> = known.into_iter().filter_map(|node| node.node).collect();
    let start = match action {
        Action::Status => false,
        Action::Start { node: None } => true,
        Action::Start { node: Some(id) } => {
            let ids: Vec<_> = nodes.iter().map(|node| node.id.to_string()).collect();
            nodes.retain(|node| node.id == *id);
            if nodes.is_empty() {
                let text = format!("no datanode {id}: there are {}", ids.join(", "));
                return Err(FsError::new(Code::NotFound, text).into());
            }
            true
        }
    };
    let asked = ask_all(nodes, &credentials, start);
    match access.json {
        true => output::json(&asked.iter().map(of_node).collect::<Vec<_>>())?,
        false => show(&asked)?,
    }
    let answered = asked.iter().filter(|asked| asked.reply.is_ok()).count();
    let is_enough = match start {
        true => answered == asked.len(),
        false => answered > 0 || asked.is_empty(),
    };
    match asked.into_iter().find_map(|asked| asked.reply.err()) {
        Some(error) if !is_enough => Err(error.into()),
        Some(_) | None => Ok(()),
    }
}

/// Asks all at the same time: one that is gone makes nobody wait for the others.
fn ask_all(nodes: Vec<Node>, credentials: &Credentials, start: bool) -> Vec<Asked> {
    std::thread::scope(|scope| {
        let asking: Vec<_> = nodes
            .into_iter()
            .map(|node| {
                scope.spawn(move || {
                    let context = format!("datanode {}", node.id);
                    let reply = ask(&node.address, credentials, start);
                    let reply = reply.map_err(|error| error.during(&context));
                    Asked { node, reply }
                })
            })
            .collect();
        let asked = asking.into_iter();
        asked
            .map(|asking| asking.join().expect("asking does not panic"))
            .collect()
    })
}

fn ask(address: &str, credentials: &Credentials, start: bool) -> FsResult<ScrubReply> {
    let net = |error: io::Error| FsError::from_net(&error, format_args!("ask {address}"));
    let identity = Identity {
        credentials: credentials.clone(),
        node: NodeId(0),
        kind: NodeKind::Client,
    };
    let mut conn = Conn::connect(address, &identity)?;
    conn.receiver.set_timeout(Some(ANSWER_MAX)).map_err(net)?;
    let (limit, request) = (ANSWER_MAX.as_millis() as u32, ScrubRequest { start });
    conn.sender
        .request(Op::Scrub, 0, limit, 0, &request, &[])
        .map_err(net)?;
    let mut late = || Err(io::ErrorKind::TimedOut.into());
    conn.receiver
        .receive_while(&mut late)
        .map_err(net)?
        .decode()
}

fn percent(disk: &ScrubDisk) -> u64 {
    match (disk.state.as_str(), disk.all_bytes) {
        ("running", 0) => 0,
        (_, 0) => 100,
        (_, all) => (u128::from(disk.bytes) * 100 / u128::from(all)).min(100) as u64,
    }
}

fn of_node(asked: &Asked) -> Value {
    let mut value = json!({"datanode": asked.node.id, "address": asked.node.address});
    match &asked.reply {
        Ok(reply) => value["disks"] = reply.disks.iter().map(of_disk).collect(),
        Err(error) => value["error"] = error.to_string().into(),
    }
    value
}

fn of_disk(disk: &ScrubDisk) -> Value {
    json!({
        "directory": disk.directory, "state": disk.state, "round": disk.round, "position_percent": percent(disk),
        "bytes_read": disk.bytes, "bytes": disk.all_bytes, "rate_bytes_per_s": disk.rate_bytes,
        "speed_bytes_per_s": disk.speed_bytes, "damaged_blocks": disk.damaged, "repaired_blocks": disk.repaired,
        "waiting_blocks": disk.waiting, "last_end_ms_ago": disk.ended_ms_ago, "left_ms": disk.left_ms,
        "failure": disk.failure,
    })
}

fn show(asked: &[Asked]) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for Asked { node, reply } in asked {
        match reply {
            Ok(reply) => rows.extend(reply.disks.iter().map(|disk| row(node.id, disk))),
            Err(error) => {
                let text = format!("does not answer: {error}");
                rows.push(vec![node.id.to_string(), node.address.clone(), text]);
            }
        }
    }
    let heading = [
        "NODE", "DISK", "STATE", "ROUND", "DONE", "READ", "RATE", "DAMAGED", "REPAIRED", "WAITING",
        "LAST END", "LEFT",
    ];
    output::table(&heading, &rows)
}

fn row(node: u64, disk: &ScrubDisk) -> Vec<String> {
    let state = match disk.failure.is_empty() {
        true => disk.state.clone(),
        false => format!("{}: {}", disk.state, disk.failure),
    };
    let time = |millis: Option<u64>| millis.map(|millis| time_of(millis / 1000));
    vec![
        node.to_string(),
        output::name(disk.directory.as_bytes()),
        state,
        disk.round.to_string(),
        format!("{} %", percent(disk)),
        output::size(disk.bytes),
        format!("{}/s", output::size(disk.rate_bytes)),
        disk.damaged.to_string(),
        disk.repaired.to_string(),
        disk.waiting.to_string(),
        time(disk.ended_ms_ago).map_or("-".into(), |time| format!("{time} ago")),
        time(disk.left_ms).unwrap_or_else(|| "-".into()),
    ]
}

/// Seconds for people.
fn time_of(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_position_is_a_share_of_what_there_is() {
        let disk = |state: &str, bytes, all_bytes| ScrubDisk {
            state: state.into(),
            bytes,
            all_bytes,
            ..ScrubDisk::default()
        };
        assert_eq!(percent(&disk("running", 1 << 40, 3 << 40)), 33);
        assert_eq!(percent(&disk("running", 0, 0)), 0);
        // Nothing is stored, and all of it was read.
        assert_eq!(percent(&disk("idle", 0, 0)), 100);
        assert_eq!(
            (time_of(119), time_of(7199)),
            ("119 s".into(), "119 min".into())
        );
    }
}

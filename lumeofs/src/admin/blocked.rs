//! `lumeofs admin blocked`: each request that has been in work for long, where it waits, and for which node.
//!
//! Everybody is asked at the same time, each with a deadline. Who cannot be asked is named: requests wait there too, and
//! nobody else sees them.

use super::{output, status};
use lumeofs_base::{FsError, FsResult, NodeId, NodeKind};
use lumeofs_proto::auth::{Credentials, Identity};
use lumeofs_proto::blocking::Conn;
use lumeofs_proto::control::{SessionsReply, SessionsRequest};
use lumeofs_proto::data::{BlockedItem, BlockedReply, BlockedRequest};
use lumeofs_proto::frame::Op;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long one of them may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Servers that are asked at once.
const ASK_MAX: usize = 64;

/// Options of `lumeofs admin blocked`.
#[derive(clap::Args)]
#[command(
    after_help = "Asks all masters and datanodes for the requests that they have in work. A request of a mount that waits at a \
server which cannot be asked is not seen: that server is named instead.

Exit codes: 0 everybody was asked, also if requests wait; 9 somebody could not be asked."
)]
pub(crate) struct Args {
    /// Only requests at least this old, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    age: f64,
}

/// A server, and what it says.
struct Asked {
    /// As people know it.
    name: String,
    blocked: FsResult<Vec<BlockedItem>>,
}

/// Runs the command.
pub(super) fn run(
    masters: &[String],
    credentials: &Credentials,
    args: &Args,
    json: bool,
) -> anyhow::Result<()> {
    let request = BlockedRequest {
        age_ms: (args.age * 1000.0).clamp(0.0, f64::from(u32::MAX)) as u32,
    };
    let mut servers: Vec<(String, String)> = masters
        .iter()
        .map(|address| (format!("master {address}"), address.clone()))
        .collect();
    let known = status(masters, credentials);
    for node in known.iter().flat_map(|status| &status.nodes) {
        if let Some(node) = &node.node {
            servers.push((format!("datanode {}", node.id), node.address.clone()));
        }
    }
    let asked = ask_all(&servers, credentials, &request);
    let clients = clients(masters, credentials);
    let unknown = known
        .err()
        .map(|error| format!("datanodes are not known: {error:#}"));
    show(&asked, &clients, unknown.as_deref(), json)?;
    let silent = asked.iter().filter(|asked| asked.blocked.is_err()).count();
    match (silent, unknown) {
        (0, None) => Ok(()),
        (silent, _) => {
            let text = format!("{silent} of {} could not be asked", asked.len());
            Err(crate::exit::Unhealthy(text).into())
        }
    }
}

fn ask_all(
    servers: &[(String, String)],
    credentials: &Credentials,
    request: &BlockedRequest,
) -> Vec<Asked> {
    let mut asked = Vec::new();
    for some in servers.chunks(ASK_MAX) {
        asked.extend(std::thread::scope(|scope| {
            let ask_one = |(name, address): &(String, String)| {
                let (name, address) = (name.clone(), address.clone());
                scope.spawn(move || Asked {
                    blocked: ask(&address, credentials, request),
                    name,
                })
            };
            let threads: Vec<_> = some.iter().map(ask_one).collect();
            let answers = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
            answers
                .map(|asked| asked.expect("asking does not panic"))
                .collect::<Vec<_>>()
        }));
    }
    asked
}

fn ask(
    address: &str,
    credentials: &Credentials,
    request: &BlockedRequest,
) -> FsResult<Vec<BlockedItem>> {
    let identity = Identity {
        credentials: credentials.clone(),
        node: NodeId(0),
        kind: NodeKind::Client,
    };
    let failed = |error: std::io::Error| FsError::from_net(&error, format_args!("ask {address}"));
    let mut conn = Conn::connect(address, &identity)?;
    conn.receiver.set_timeout(Some(PATIENCE)).map_err(failed)?;
    conn.sender
        .request(Op::Blocked, 0, 0, 1, request, &[])
        .map_err(failed)?;
    let mut late = || Err(std::io::ErrorKind::TimedOut.into());
    let frame = conn.receiver.receive_while(&mut late).map_err(failed)?;
    Ok(frame.decode::<BlockedReply>()?.items)
}

/// What sessions are, if the leader of the metadata says it now.
fn clients(masters: &[String], credentials: &Credentials) -> BTreeMap<u64, String> {
    let mut clients = BTreeMap::new();
    for master in masters {
        let reply = super::call(master, credentials, |mut client| async move {
            let reply = client.sessions(SessionsRequest {}).await;
            reply.map(tonic::Response::into_inner)
        });
        let SessionsReply { sessions } = reply.unwrap_or_default();
        clients.extend(
            sessions
                .into_iter()
                .map(|session| (session.id, session.description)),
        );
    }
    clients
}

fn who(item: &BlockedItem, clients: &BTreeMap<u64, String>) -> String {
    match (item.session, clients.get(&item.session), item.from_node) {
        (0, _, 0) => "a client".to_owned(),
        (0, _, node) => format!("node {node}"),
        (session, None, _) => format!("session {session}"),
        (session, Some(what), _) => format!("session {session}: {}", output::name(what.as_bytes())),
    }
}

fn show(
    asked: &[Asked],
    clients: &BTreeMap<u64, String>,
    unknown: Option<&str>,
    json: bool,
) -> anyhow::Result<()> {
    let mut items: Vec<(&str, &BlockedItem)> = Vec::new();
    let mut silent = Vec::new();
    for server in asked {
        match &server.blocked {
            Ok(blocked) => items.extend(blocked.iter().map(|item| (&server.name[..], item))),
            Err(error) => silent.push((&server.name[..], error)),
        }
    }
    items.sort_by_key(|(_, item)| std::cmp::Reverse(item.age_ms));
    if json {
        let items = items.iter().map(|(at, item)| of_item(at, item, clients));
        let silent = silent.iter();
        let silent =
            silent.map(|(name, error)| json!({"server": name, "error": error.to_string()}));
        return output::json(&json!({
            "blocked": items.collect::<Vec<_>>(), "not_asked": silent.collect::<Vec<_>>(),
            "datanodes_unknown": unknown,
        }));
    }
    let rows: Vec<Vec<String>> = items
        .iter()
        .map(|(at, item)| row(at, item, clients))
        .collect();
    if rows.is_empty() {
        output::line("nothing waits where it could be asked")?;
    } else {
        output::table(&["SECONDS", "AT", "REQUEST", "OF", "WAITS FOR"], &rows)?;
    }
    for (name, error) in silent {
        output::line(format_args!("{name} cannot be asked: {error}"))?;
    }
    unknown.map_or(Ok(()), output::line)
}

fn row(at: &str, item: &BlockedItem, clients: &BTreeMap<u64, String>) -> Vec<String> {
    let mut what = item.op.clone();
    if item.group > 0 {
        what.push_str(&format!(" of chunk {} in group {}", item.chunk, item.group));
    }
    let nodes: Vec<_> = item.nodes.iter().map(u64::to_string).collect();
    let waits = match nodes.is_empty() {
        true => item.waits.clone(),
        false => format!("{} (node {})", item.waits, nodes.join(", ")),
    };
    vec![
        format!("{:.1}", item.age_ms as f64 / 1000.0),
        at.to_owned(),
        what,
        who(item, clients),
        waits,
    ]
}

fn of_item(at: &str, item: &BlockedItem, clients: &BTreeMap<u64, String>) -> Value {
    json!({
        "at": at, "age_ms": item.age_ms, "op": item.op, "session": item.session, "from_node": item.from_node,
        "client": clients.get(&item.session), "group": item.group, "chunk": item.chunk, "waits": item.waits,
        "nodes": item.nodes,
    })
}

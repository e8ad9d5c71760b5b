//! `lumeofs admin`: what a cluster says of itself.

mod blocked;
mod fsck;
mod health;
mod log;
pub(crate) mod master;
mod masters;
mod meta;
mod node;
mod scrub;
mod session;

use crate::access::Access;
use crate::{fs, output};
use lumeofs_base::{Code, FsError};
use lumeofs_proto::auth::Credentials;
use lumeofs_proto::control::admin_client::AdminClient;
use lumeofs_proto::control::{RaftGroup, StatusReply, StatusRequest};
use lumeofs_proto::grpc::{Connector, cause_of, endpoint, error_of};
use serde_json::json;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::time::{Duration, Instant};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

/// How long a command waits for a leader: longer than an election.
const LEADER_WAIT: Duration = Duration::from_secs(10);

/// Options of `lumeofs admin`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    access: Access,
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// The cluster at a glance
    Status,
    /// Masters: list, add, remove, replace
    Master(master::Args),
    /// Datanodes: lists, drains, removes and replaces them
    #[command(subcommand)]
    Node(node::Action),
    /// Shows or changes when and how fast lost replicas are made again
    Policy(node::Policy),
    /// Replica groups: epoch, primary, members, in-sync set
    Groups,
    /// Raft groups on each master: role, term, leader, log positions, lag of followers
    Raft,
    /// Chunks of a file: id, range, group, epoch, replicas with role, version and health
    Chunks {
        /// Path within the filesystem, from its root
        path: OsString,
    },
    /// Whether the data is safe: copies, repairs, what more may fail, what is full soon
    Health(health::Args),
    /// Requests that wait: how long, where, and for which node
    Blocked(blocked::Args),
    /// Compares metadata with what datanodes have, both ways
    Fsck(fsck::Args),
    /// Metadata in a file, and a cluster's first master from it when all masters are lost
    #[command(subcommand)]
    Meta(meta::Action),
    /// Flipped bits: how far each datanode is with reading all it stores and repairing what is damaged; starts it now
    #[command(subcommand)]
    Scrub(scrub::Action),
    /// Prints the certificate of a cluster with TLS, for gRPC clients in other languages; its name is "lumeofs"
    Certificate,
    /// Shows or changes what a running process logs: lumeofs admin log http://HOST:PORT [FILTER]
    Log(log::Args),
    /// Sessions of mounts and commands: list them, or end one
    Session {
        #[command(subcommand)]
        action: session::Action,
    },
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let (access, json) = (&args.access, args.access.json);
    let cluster = || access.resolve();
    match &args.action {
        Action::Status => {
            let (masters, credentials) = cluster()?;
            let status = status(&masters, &credentials)?;
            show_status(&status, json)?;
            check_leaders(&status)
        }
        Action::Groups => {
            let (masters, credentials) = cluster()?;
            show_groups(&status(&masters, &credentials)?, json)
        }
        Action::Raft => {
            let (masters, credentials) = cluster()?;
            raft(&masters, &credentials, json)
        }
        Action::Health(args) => {
            let (masters, credentials) = cluster()?;
            health::run(&masters, &credentials, args, json)
        }
        Action::Blocked(args) => {
            let (masters, credentials) = cluster()?;
            blocked::run(&masters, &credentials, args, json)
        }
        Action::Fsck(args) => {
            let (masters, credentials) = cluster()?;
            fsck::run(&masters, &credentials, args, json)
        }
        Action::Session { action } => {
            let (masters, credentials) = cluster()?;
            session::run(action, &masters, &credentials, json)
        }
        Action::Certificate => certificate(&cluster()?.1, json),
        Action::Master(args) => {
            let (masters, credentials) = cluster()?;
            master::run(args, masters, &credentials, json)
        }
        Action::Chunks { path } => chunks(access, path),
        Action::Log(of) => log::run(of, json),
        Action::Meta(action) => meta::run(access, action),
        Action::Node(action) => node::run(access, action),
        Action::Scrub(action) => scrub::run(access, action),
        Action::Policy(policy) => node::policy(access, policy),
    }
}

fn certificate(credentials: &Credentials, json: bool) -> anyhow::Result<()> {
    let tls = credentials.tls().ok_or_else(|| {
        FsError::new(
            Code::Invalid,
            "this cluster does not use TLS: its secret file has no line \"tls = true\"",
        )
    })?;
    if json {
        return output::json(&json!({"name": "lumeofs", "certificate": tls.certificate_pem()}));
    }
    output::line(tls.certificate_pem().trim_end())
}

/// Asks the masters in turn; the answer of one that knows a leader of both groups is taken first.
pub(crate) fn status(masters: &[String], credentials: &Credentials) -> anyhow::Result<StatusReply> {
    let mut last = None;
    let mut best: Option<StatusReply> = None;
    for master in masters {
        let asked = call(master, credentials, |mut client| async move {
            client
                .status(StatusRequest {})
                .await
                .map(tonic::Response::into_inner)
        });
        match asked {
            Ok(status) => {
                let leads = |status: &StatusReply| {
                    status
                        .raft
                        .iter()
                        .filter(|group| group.role == "leader")
                        .count()
                };
                if best
                    .as_ref()
                    .is_none_or(|best| leads(&status) > leads(best))
                {
                    best = Some(status);
                }
            }
            Err(error) => last = Some(error),
        }
    }
    match (best, last) {
        (Some(best), _) => Ok(best),
        (None, Some(error)) => Err(error.into()),
        (None, None) => Err(FsError::new(Code::Invalid, "the list of masters is empty").into()),
    }
}

/// Number of groups that some master says to lead itself: after a restart others may still believe in one that
/// leads no more.
pub(crate) fn leaders(masters: &[String], credentials: &Credentials) -> usize {
    let mut led = BTreeSet::new();
    for master in masters {
        let groups = raft_groups(master, credentials).unwrap_or_default();
        led.extend(
            groups
                .into_iter()
                .filter(|group| group.role == "leader")
                .map(|group| group.name),
        );
    }
    led.len()
}

/// The Raft groups as one master sees them.
fn raft_groups(master: &str, credentials: &Credentials) -> Result<Vec<RaftGroup>, FsError> {
    Ok(masters::ask_raft(master, credentials)?.groups)
}

/// Asks the masters in turn until the one that leads has answered; an election is waited for.
fn on_leader<T, F>(
    masters: &[String],
    credentials: &Credentials,
    ask: impl Fn(AdminClient<tonic::service::interceptor::InterceptedService<Channel, Token>>) -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = Result<T, tonic::Status>>,
{
    let late = Instant::now() + LEADER_WAIT;
    loop {
        let mut last = None;
        for master in masters {
            match call(master, credentials, &ask) {
                Ok(reply) => return Ok(reply),
                Err(error) => match error.code {
                    Code::NotLeader(_) | Code::Unavailable | Code::Timeout => last = Some(error),
                    _ => return Err(error.into()),
                },
            }
        }
        match last {
            Some(error) if Instant::now() >= late => return Err(error.into()),
            Some(_) => std::thread::sleep(Duration::from_millis(200)),
            None => return Err(FsError::new(Code::Invalid, "the list of masters is empty").into()),
        }
    }
}
/// The client of a master's administration.
type Admin = AdminClient<tonic::service::interceptor::InterceptedService<Channel, Token>>;

fn call<T, F>(
    master: &str,
    credentials: &Credentials,
    ask: impl FnOnce(Admin) -> F,
) -> Result<T, FsError>
where
    F: Future<Output = Result<T, tonic::Status>>,
{
    let failed = |code, text: String| FsError::new(code, format!("master {master}: {text}"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(Code::Io, error.to_string()))?;
    runtime.block_on(async {
        let endpoint = endpoint(master)?
            .connect_timeout(Duration::from_secs(1))
            .timeout(Duration::from_secs(3));
        let connecting = endpoint.connect_with_connector(Connector::new(credentials));
        let channel = connecting.await.map_err(|error| {
            let cause = cause_of(&error);
            failed(cause.code, format!("cannot connect: {}", cause.context))
        })?;
        let token = MetadataValue::try_from(credentials.grpc_token())
            .map_err(|error| failed(Code::Invalid, error.to_string()))?;
        ask(AdminClient::with_interceptor(channel, Token(token)))
            .await
            .map_err(|status| error_of(&status).during(format_args!("master {master}")))
    })
}

/// Puts the cluster's token on each call.
#[derive(Clone)]
struct Token(MetadataValue<tonic::metadata::Ascii>);

impl tonic::service::Interceptor for Token {
    fn call(
        &mut self,
        mut request: tonic::Request<()>,
    ) -> Result<tonic::Request<()>, tonic::Status> {
        request
            .metadata_mut()
            .insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// An error for scripts: the status itself has been shown.
fn check_leaders(status: &StatusReply) -> anyhow::Result<()> {
    match status.raft.iter().find(|group| group.leader == 0) {
        Some(group) => {
            let text = format!(
                "the {} group has no leader: start more of the masters",
                group.name
            );
            Err(FsError::new(Code::Unavailable, text).into())
        }
        None => Ok(()),
    }
}

fn show_status(status: &StatusReply, json: bool) -> anyhow::Result<()> {
    let in_sync = status
        .groups
        .iter()
        .filter(|group| group.in_sync.len() == group.members.len())
        .count();
    let (mut capacity, mut free) = (0, 0);
    for node in status.nodes.iter().filter_map(|node| node.node.as_ref()) {
        capacity += node.capacity_bytes;
        free += node.free_bytes;
    }
    let replicas = status
        .groups
        .first()
        .map_or(1, |group| group.members.len().max(1)) as u64;
    if json {
        return output::json(&json!({
            "cluster_id": status.cluster_id,
            "version": status.version,
            "answered_by": status.node_id,
            "datanodes": status.nodes.len(),
            "troubles": troubles(status).map(|(node, trouble)| json!({"datanode": node, "trouble": trouble})).collect::<Vec<_>>(),
            "groups": status.groups.len(),
            "groups_in_sync": in_sync,
            "inodes": status.inodes,
            "bytes": status.bytes,
            "sessions": status.sessions,
            "capacity_bytes": capacity,
            "free_bytes": free,
            "replicas": replicas,
            "leaders": status.raft.iter().map(|group| json!({"group": group.name, "leader": group.leader, "term": group.term})).collect::<Vec<_>>(),
        }));
    }
    output::line(format_args!(
        "cluster    {}  (LumeoFS {})",
        status.cluster_id, status.version
    ))?;
    for group in &status.raft {
        let leader = match group.leader {
            0 => "no leader: no quorum of masters answers each other".to_owned(),
            leader => format!("leader master {leader}"),
        };
        output::line(format_args!(
            "{:<10} {leader} in term {}",
            group.name, group.term
        ))?;
    }
    output::line(format_args!("datanodes  {}", status.nodes.len()))?;
    for (node, trouble) in troubles(status) {
        output::line(format_args!("           datanode {node}: {trouble}"))?;
    }
    output::line(format_args!(
        "groups     {} of {} fully in sync",
        in_sync,
        status.groups.len()
    ))?;
    output::line(format_args!(
        "files      {}, {} of data, {replicas} copies each",
        status.inodes,
        output::size(status.bytes)
    ))?;
    output::line(format_args!(
        "space      {} free of {} raw",
        output::size(free),
        output::size(capacity)
    ))?;
    output::line(format_args!("sessions   {}", status.sessions))
}

/// Datanodes that said that something is wrong with their disks.
fn troubles(status: &StatusReply) -> impl Iterator<Item = (u64, &str)> {
    status.nodes.iter().filter_map(|node| {
        let id = node.node.as_ref()?.id;
        (!node.trouble.is_empty()).then_some((id, node.trouble.as_str()))
    })
}

fn show_groups(status: &StatusReply, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(&status.groups.iter().map(|group| json!({
            "group": group.group, "epoch": group.epoch, "primary": group.primary, "members": group.members, "in_sync": group.in_sync,
            "leaving": group.leaving, "replicas": group.replicas,
        })).collect::<Vec<_>>());
    }
    let list = |ids: &[u64]| ids.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    let rows: Vec<_> = status
        .groups
        .iter()
        .map(|group| {
            let (members, in_sync) = (list(&group.members), list(&group.in_sync));
            vec![
                group.group.to_string(),
                group.epoch.to_string(),
                group.primary.to_string(),
                members,
                in_sync,
            ]
        })
        .collect();
    output::table(&["GROUP", "EPOCH", "PRIMARY", "MEMBERS", "IN SYNC"], &rows)
}

fn raft(masters: &[String], credentials: &Credentials, json: bool) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let mut values = Vec::new();
    let mut failure = None;
    for master in masters {
        let groups = match raft_groups(master, credentials) {
            Ok(groups) => groups,
            Err(error) => {
                rows.push(vec![
                    master.clone(),
                    "-".into(),
                    format!("unreachable ({error})"),
                ]);
                values.push(json!({"master": master, "error": error.to_string()}));
                failure = Some(error);
                continue;
            }
        };
        for group in groups {
            let lag: Vec<_> = group
                .followers
                .iter()
                .map(|follower| format!("{}:{}", follower.node, follower.lag))
                .collect();
            values.push(json!({
                "master": master, "group": group.name, "role": group.role, "term": group.term, "leader": group.leader,
                "last_log": group.last_log, "committed": group.committed, "applied": group.applied,
                "snapshot": group.snapshot, "purged": group.purged,
                "followers": group.followers.iter().map(|follower| json!({
                    "node": follower.node, "address": follower.address, "matched": follower.matched, "lag": follower.lag,
                })).collect::<Vec<_>>(),
            }));
            let numbers = [
                group.term,
                group.leader,
                group.last_log,
                group.committed,
                group.applied,
                group.snapshot,
            ];
            let mut row = vec![master.clone(), group.name, group.role];
            row.extend(numbers.map(|number| number.to_string()));
            row.push(lag.join(" "));
            rows.push(row);
        }
    }
    if json {
        output::json(&values)?;
    } else {
        let heading = [
            "MASTER", "GROUP", "ROLE", "TERM", "LEADER", "LAST", "COMMIT", "APPLIED", "SNAPSHOT",
            "LAG",
        ];
        output::table(&heading, &rows)?;
    }
    match failure {
        Some(error) if values.iter().all(|value| value.get("error").is_some()) => Err(error.into()),
        _ => Ok(()),
    }
}

fn chunks(access: &Access, path: &OsStr) -> anyhow::Result<()> {
    let session = fs::Session::open(access)?;
    let attr = session.resolve(path.as_bytes())?;
    let report = session.client.chunk_report(session.context(), attr.ino)?;
    let mut rows = Vec::new();
    let mut values = Vec::new();
    for chunk in &report {
        let mut replicas = Vec::new();
        for replica in &chunk.replicas {
            let named = if replica.primary {
                "primary"
            } else {
                "secondary"
            };
            let (version, lease_ms, health) = match &replica.state {
                Ok(state) => {
                    let health = if replica.in_sync {
                        "in sync"
                    } else {
                        state.role.as_str()
                    };
                    (
                        state.version,
                        Some(state.lease_left.as_millis() as u64),
                        health.to_owned(),
                    )
                }
                Err(error) => (None, None, format!("unreachable: {error}")),
            };
            let version = version
                .map(|version| format!("{}.{}", version.epoch.get(), version.sequence.get()));
            replicas.push(json!({
                "node": replica.node.get(), "address": replica.address, "role": named, "version": version,
                "in_sync": replica.in_sync, "lease_left_ms": lease_ms, "health": health,
            }));
            rows.push(vec![
                chunk.chunk.to_string(),
                format!("{} + {}", chunk.offset, output::size(chunk.len)),
                chunk.group.to_string(),
                chunk.epoch.to_string(),
                replica.node.to_string(),
                named.into(),
                version.unwrap_or_else(|| "-".into()),
                lease_ms.map_or("-".into(), |left| format!("{left} ms")),
                health,
            ]);
        }
        let primary = chunk.replicas.iter().find(|replica| replica.primary);
        let lease_ms = primary
            .and_then(|replica| replica.state.as_ref().ok())
            .map(|state| state.lease_left.as_millis() as u64);
        values.push(json!({
            "chunk": chunk.chunk.get(), "offset": chunk.offset, "len": chunk.len, "group": chunk.group.get(),
            "epoch": chunk.epoch.get(), "lease_holder": primary.map(|replica| replica.node.get()),
            "lease_left_ms": lease_ms, "replicas": replicas,
        }));
    }
    if access.json {
        return output::json(&values);
    }
    let heading = [
        "CHUNK", "RANGE", "GROUP", "EPOCH", "NODE", "ROLE", "VERSION", "LEASE", "HEALTH",
    ];
    output::table(&heading, &rows)
}

//! `lumeofs admin node` and `lumeofs admin policy`: datanodes come and go, and how lost replicas are made again.

use super::{on_leader, status};
use crate::access::Access;
use crate::output;
use lumeofs_base::{Code, FsError};
use lumeofs_proto::auth::Credentials;
use lumeofs_proto::control::{DataNode, RepairReply, RepairRequest, SetNodeRequest, StatusReply};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Between two looks at how far a move is.
const LOOK: Duration = Duration::from_millis(500);
/// A move that has not gone on for this long is worth a hint.
const HINT_AFTER: Duration = Duration::from_secs(30);

#[derive(clap::Subcommand)]
pub(crate) enum Action {
    /// Datanodes: address, zone, space, replicas, state
    List,
    /// Moves all replicas of a datanode to others; it goes on serving meanwhile
    Drain {
        /// The datanode
        id: u64,
        #[command(flatten)]
        how: How,
    },
    /// Calls off a drain or removal
    Undrain {
        /// The datanode
        id: u64,
    },
    /// Drains a datanode and takes it out of the cluster. One that is dead is not waited for
    Remove {
        /// The datanode. Its id never comes back
        id: u64,
        #[command(flatten)]
        how: How,
    },
    /// Moves all replicas of a datanode, dead or alive, to another one and takes the old one out of the cluster
    Replace {
        /// The datanode that goes
        old: u64,
        /// A running datanode that takes its place; any if left out
        new: Option<u64>,
        #[command(flatten)]
        how: How,
    },
}

#[derive(clap::Args)]
pub(crate) struct How {
    /// Returns at once; `lumeofs admin node list` shows how far it is
    #[arg(long)]
    no_wait: bool,
}

/// Options of `lumeofs admin policy`.
#[derive(clap::Args)]
pub(crate) struct Policy {
    /// Seconds of silence after which a datanode's replicas are made elsewhere
    #[arg(long, value_name = "SECONDS")]
    repair_after: Option<f64>,
    /// MiB of catch-up that a datanode sends in a second while clients are at work, eight times that while none is
    #[arg(long, value_name = "MIB")]
    repair_rate: Option<u64>,
}

/// Runs `lumeofs admin node`.
pub(crate) fn run(access: &Access, action: &Action) -> anyhow::Result<()> {
    let cluster = Cluster::of(access)?;
    match action {
        Action::List => return show(&cluster.status()?, access.json),
        Action::Undrain { id } => cluster.set(*id, "active", None)?,
        Action::Drain { id, how } => {
            cluster.set(*id, "drain", None)?;
            cluster.wait(*id, how)?;
        }
        Action::Remove { id, how } => {
            cluster.set(*id, "remove", None)?;
            cluster.wait(*id, how)?;
        }
        Action::Replace { old, new, how } => {
            cluster.set(*old, "remove", *new)?;
            cluster.wait(*old, how)?;
        }
    }
    show(&cluster.status()?, access.json)
}

/// Runs `lumeofs admin policy`.
pub(crate) fn policy(access: &Access, wanted: &Policy) -> anyhow::Result<()> {
    let cluster = Cluster::of(access)?;
    let after_ms = wanted.repair_after.map(|seconds| {
        let millis = (seconds * 1000.0).round();
        if (1.0..=1e12).contains(&millis) {
            return Ok(millis as u64);
        }
        let context = format!("--repair-after {seconds}: want seconds from 0.001 on");
        Err(FsError::new(Code::Invalid, context))
    });
    let rate_bytes = wanted.repair_rate.map(|mib| {
        let bytes = mib.checked_mul(1 << 20).filter(|bytes| *bytes > 0);
        bytes.ok_or_else(|| {
            FsError::new(
                Code::Invalid,
                format!("--repair-rate {mib}: want MiB from 1 on"),
            )
        })
    });
    let request = RepairRequest {
        after_ms: after_ms.transpose()?,
        rate_bytes: rate_bytes.transpose()?,
    };
    let reply: RepairReply = on_leader(
        &cluster.masters,
        &cluster.credentials,
        |mut client| async move {
            client
                .repair(request)
                .await
                .map(tonic::Response::into_inner)
        },
    )?;
    if access.json {
        return output::json(&json!({
            "repair_after_ms": reply.after_ms, "repair_rate_bytes": reply.rate_bytes,
        }));
    }
    let after = reply.after_ms as f64 / 1000.0;
    output::line(format_args!("repair after {after} s of silence"))?;
    let rate = output::size(reply.rate_bytes);
    output::line(format_args!(
        "repair rate  {rate}/s for each datanode that sends"
    ))
}

struct Cluster {
    masters: Vec<String>,
    credentials: Credentials,
}

impl Cluster {
    fn of(access: &Access) -> anyhow::Result<Self> {
        let (masters, credentials) = access.resolve()?;
        Ok(Self {
            masters,
            credentials,
        })
    }

    fn status(&self) -> anyhow::Result<StatusReply> {
        status(&self.masters, &self.credentials)
    }

    fn set(&self, node: u64, state: &str, to: Option<u64>) -> anyhow::Result<()> {
        let request = SetNodeRequest {
            node,
            state: state.to_owned(),
            to: to.unwrap_or(0),
        };
        on_leader(&self.masters, &self.credentials, |mut client| {
            let request = request.clone();
            async move { client.set_node(request).await.map(|_| ()) }
        })
    }

    /// Shows how far a move is until the datanode has nothing left.
    fn wait(&self, id: u64, how: &How) -> anyhow::Result<()> {
        if how.no_wait {
            return Ok(());
        }
        let begun = Instant::now();
        let (mut last, mut moved_at, mut hinted) = (None, begun, false);
        loop {
            // A cluster that does not answer is waited for: the move goes on without this command.
            if let Ok(status) = self.status() {
                let node = status.nodes.iter().find(|node| id_of(node) == id);
                let Some(node) = node.filter(|node| node.state == "draining") else {
                    break;
                };
                if node.replicas == 0 && !node.remove {
                    break;
                }
                output::status(format_args!(
                    "datanode {id}: {} replicas left, {} s",
                    node.replicas,
                    begun.elapsed().as_secs()
                ));
                if last != Some(node.replicas) {
                    (last, moved_at) = (Some(node.replicas), Instant::now());
                } else if moved_at.elapsed() > HINT_AFTER && !hinted {
                    hinted = true;
                    output::status("");
                    hint(&status, id);
                }
            }
            std::thread::sleep(LOOK);
        }
        output::status("");
        Ok(())
    }
}

fn id_of(node: &DataNode) -> u64 {
    node.node.as_ref().map_or(0, |node| node.id)
}

/// Why nothing moves, as far as it can be told.
fn hint(status: &StatusReply, id: u64) {
    let others = status
        .nodes
        .iter()
        .filter(|node| id_of(node) != id && node.state == "active");
    let others = others.count();
    let replicas = status
        .groups
        .iter()
        .map(|group| group.replicas)
        .max()
        .unwrap_or(0);
    output::note(format_args!(
        "lumeofs: no replica of datanode {id} has moved for {} s. Large ones take longer; {others} other datanodes are to hold \
         {replicas} copies of everything, must be alive, and have a tenth of their space free: otherwise add a datanode. This \
         goes on also if you interrupt the command; `lumeofs admin node undrain {id}` calls it off",
        HINT_AFTER.as_secs()
    ));
}

fn show(status: &StatusReply, json: bool) -> anyhow::Result<()> {
    let primaries = status
        .groups
        .iter()
        .fold(BTreeMap::new(), |mut counts, group| {
            *counts.entry(group.primary).or_insert(0usize) += 1;
            counts
        });
    let leads = |id: u64| primaries.get(&id).copied().unwrap_or(0);
    let nodes: Vec<_> = status
        .nodes
        .iter()
        .filter_map(|node| Some((node.node.as_ref()?, node)))
        .collect();
    if json {
        return output::json(&nodes.iter().map(|(info, node)| json!({
            "id": info.id, "address": info.address, "zone": info.zone, "capacity_bytes": info.capacity_bytes,
            "free_bytes": info.free_bytes, "silent_ms": node.silent_ms, "state": node.state, "drain_to": node.drain_to,
            "remove": node.remove, "replicas": node.replicas, "in_sync": node.in_sync, "primaries": leads(info.id),
            "trouble": node.trouble,
        })).collect::<Vec<_>>());
    }
    let rows: Vec<_> = nodes
        .iter()
        .map(|(info, node)| {
            let seen = match node.silent_ms {
                silent if silent < 0 => "never".to_owned(),
                silent => format!("{silent} ms ago"),
            };
            let state = match (node.remove, node.drain_to) {
                (true, 0) => "leaving".to_owned(),
                (true, to) => format!("replaced by {to}"),
                (false, _) => node.state.clone(),
            };
            vec![
                info.id.to_string(),
                info.address.clone(),
                info.zone.clone(),
                output::size(info.free_bytes),
                output::size(info.capacity_bytes),
                node.replicas.to_string(),
                node.in_sync.to_string(),
                leads(info.id).to_string(),
                state,
                seen,
            ]
        })
        .collect();
    let heading = [
        "NODE", "ADDRESS", "ZONE", "FREE", "CAPACITY", "REPLICAS", "IN SYNC", "LEADS", "STATE",
        "SEEN",
    ];
    output::table(&heading, &rows)
}

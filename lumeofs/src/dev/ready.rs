//! When a development cluster is ready: a leader answers, datanodes are registered, groups exist and are
//! in sync, and the mount carries a probe there and back.

use super::layout::{Layout, Node};
use super::process;
use crate::output;
use crate::signals::Stop;
use anyhow::{Context as _, bail};
use lumeofs_proto::auth::Credentials;
use std::io::Write as _;
use std::time::{Duration, Instant};

/// How long a cluster may take to become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(100);

/// Waits until the cluster serves.
pub(crate) fn wait_for_cluster(layout: &Layout, stop: &Stop) -> anyhow::Result<()> {
    let credentials = Credentials::load(&layout.secret_file())?;
    let masters = layout.master_addresses();
    let begun = Instant::now();
    loop {
        for node in layout.nodes() {
            check_runs(layout, node)?;
        }
        let missing = match crate::admin::status(&masters, &credentials) {
            Ok(status) => {
                let leaders = crate::admin::leaders(&masters, &credentials);
                let settled = status
                    .groups
                    .iter()
                    .filter(|group| group.in_sync.len() == group.members.len())
                    .count();
                if leaders < 2 {
                    "no leader yet".to_owned()
                } else if status.nodes.len() < layout.datanode_count() {
                    format!(
                        "{} of {} datanodes",
                        status.nodes.len(),
                        layout.datanode_count()
                    )
                } else if status.groups.is_empty() || settled < status.groups.len() {
                    format!(
                        "{settled} of {} replica groups in sync",
                        status.groups.len()
                    )
                } else {
                    output::status("");
                    return Ok(());
                }
            }
            Err(error) => format!("{error:#}"),
        };
        output::status(format_args!("waiting: {missing}"));
        if stop.requested() {
            bail!("interrupted");
        }
        if begun.elapsed() > READY_TIMEOUT {
            bail!(
                "the cluster is not ready after {} s: {missing}; see the logs in {}",
                READY_TIMEOUT.as_secs(),
                layout.dir.join("logs").display()
            );
        }
        std::thread::sleep(POLL);
    }
}

/// Waits until a restarted node listens again.
pub(crate) fn wait_for_node(layout: &Layout, node: &Node) -> anyhow::Result<()> {
    let begun = Instant::now();
    let address = node
        .address
        .parse()
        .context("the layout holds socket addresses")?;
    while std::net::TcpStream::connect_timeout(&address, POLL).is_err() {
        check_runs(layout, node)?;
        if begun.elapsed() > READY_TIMEOUT {
            bail!(
                "{} does not listen on {}; see {}",
                node.name,
                node.address,
                layout.log_file(&node.name).display()
            );
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Writes, reads and removes a file through the mount.
pub(crate) fn probe_mount(layout: &Layout) -> anyhow::Result<()> {
    let mount = layout.mount.as_ref().context("the cluster has no mount")?;
    let file = mount.join(format!(".lumeofs-probe-{}", std::process::id()));
    let what = || format!("probe {}", file.display());
    // Synced, as it would else not get further than the memory of the mount.
    let written = std::fs::File::create(&file).and_then(|mut made| {
        made.write_all(b"probe")?;
        made.sync_all()
    });
    written.with_context(what)?;
    let read = std::fs::read(&file).with_context(what)?;
    std::fs::remove_file(&file).with_context(what)?;
    if read != b"probe" {
        bail!("{}: wrote 5 bytes, read {:?}", what(), read);
    }
    Ok(())
}

fn check_runs(layout: &Layout, node: &Node) -> anyhow::Result<()> {
    if process::find(layout, &node.name).is_some() {
        return Ok(());
    }
    bail!(
        "{} ended: {}",
        node.name,
        process::tail(&layout.log_file(&node.name), 0)
    )
}

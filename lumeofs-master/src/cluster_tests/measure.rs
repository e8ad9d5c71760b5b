//! How much memory a master takes: long, run by hand as docs/testing.md says.

use super::harness::Cluster;
use crate::memory::{directory, megabytes, peak, reset_peak};
use crate::service::MetadataService;
use lumeofs_base::InodeId;
use lumeofs_meta::op::{Mutation, NewNode, Reply};
use lumeofs_proto::meta::{MetaRequest, OpenReport, SessionRequest};
use std::sync::Arc;
use std::time::Instant;
use tokio::task::JoinSet;

/// Most that a master with a million files may take.
const MEMORY_MAX: u64 = 1 << 30;
/// Clients that create at the same time, each in directories of its own.
const CLIENTS: u64 = 128;
const FILES_PER_DIRECTORY: u64 = 1000;

/// A client in the master's process: what it sends counts, what it keeps is little.
struct Writer {
    service: Arc<MetadataService>,
    session: u64,
    term: u64,
    sequence: u64,
}

impl Writer {
    async fn new(service: Arc<MetadataService>) -> Self {
        let open = SessionRequest {
            nonce: lumeofs_base::entropy::bytes::<16>().to_vec().into(),
            ..Default::default()
        };
        let opened = service.session(open).await.unwrap();
        Self {
            service,
            session: opened.session,
            term: opened.term,
            sequence: 0,
        }
    }

    async fn create(&mut self, parent: InodeId, name: String, node: NewNode) -> InodeId {
        self.sequence += 1;
        let mutation = Mutation::Create {
            parent,
            name: name.into(),
            node,
            mode: 0o644.into(),
            exclusive: true,
        };
        let request = MetaRequest {
            session: self.session,
            sequence: self.sequence,
            // As a client with all its window in use.
            acked_below: self.sequence.saturating_sub(1000).max(1),
            trusted: true,
            op: postcard::to_stdvec(&mutation).unwrap().into(),
            ..Default::default()
        };
        let reply = self.service.mutate(&request).await.unwrap();
        match postcard::from_bytes(&reply.reply).unwrap() {
            Reply::Created { attr, .. } => attr.ino,
            other => panic!("{other:?}"),
        }
    }

    async fn fill(mut self, number: u64, files: u64) {
        let mut made = 0;
        while made < files {
            let name = format!("d{number}-{made}");
            let parent = self.create(InodeId::ROOT, name, NewNode::Directory).await;
            let count = FILES_PER_DIRECTORY.min(files - made);
            let mut released = Vec::new();
            for file in 0..count {
                let name = format!("file-number-{file}");
                let ino = self.create(parent, name, NewNode::Regular).await;
                released.push(ino.get());
            }
            made += count;
            let report = OpenReport {
                session: self.session,
                released,
                term: self.term,
                ..Default::default()
            };
            self.service.opens(report).await.unwrap();
        }
    }
}

#[test]
#[ignore = "long: makes a million files"]
fn a_master_with_a_million_files_takes_less_than_one_gib() {
    let files = std::env::var("LUMEOFS_MEASURE_FILES").map_or(1_000_000, |n| n.parse().unwrap());
    let dir = directory();
    let mut cluster = Cluster::start_in(1, dir.path());
    cluster.register_datanodes(3);
    cluster.metadata_leader();
    reset_peak();
    let begun = Instant::now();
    cluster.inside(1, async |service| {
        let mut writers = JoinSet::new();
        for number in 0..CLIENTS {
            let writer = Writer::new(service.clone()).await;
            writers.spawn(writer.fill(number, files / CLIENTS));
        }
        while let Some(done) = writers.join_next().await {
            done.unwrap();
        }
    });
    let status = cluster.status();
    let tell = |what: &str, begun: Instant| {
        let peak = peak();
        let (took, peak_shown) = (begun.elapsed(), megabytes(peak));
        eprintln!(
            "{what} {} inodes: {took:.1?}, peak of memory {peak_shown}",
            status.inodes
        );
        assert!(peak < MEMORY_MAX, "{what} took {peak_shown}");
        reset_peak();
    };
    tell("making", begun);
    let begun = Instant::now();
    cluster.kill(1);
    cluster.restart(1);
    cluster.metadata_leader();
    tell("starting with", begun);
    assert_eq!(cluster.status().inodes, status.inodes);
}

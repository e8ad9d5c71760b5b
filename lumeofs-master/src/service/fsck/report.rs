//! What a check tells its caller while it runs.

use super::compare::Fault;
use lumeofs_base::{ChunkId, Code, FsError, FsResult, GroupId, InodeId, NodeId};
use lumeofs_proto::control::fsck_event::Kind;
use lumeofs_proto::control::{FsckEvent, FsckFinding, FsckProgress, FsckSummary};
use lumeofs_proto::status::to_grpc;
use tokio::sync::mpsc;
use tonic::Status;

/// Findings that are told; more are counted.
const FINDINGS_MAX: u64 = 10_000;

/// Sends events and keeps count.
pub(super) struct Reporter {
    sender: mpsc::Sender<Result<FsckEvent, Status>>,
    summary: FsckSummary,
    chunks_done: u64,
}

impl Reporter {
    pub(super) fn new(sender: mpsc::Sender<Result<FsckEvent, Status>>) -> Self {
        Self {
            sender,
            summary: FsckSummary::default(),
            chunks_done: 0,
        }
    }

    /// Waits while the caller does not take events, and fails when it has gone.
    async fn send(&mut self, kind: Kind) -> FsResult<()> {
        let event = FsckEvent { kind: Some(kind) };
        let gone = |_| FsError::new(Code::Interrupted, "nobody listens any more");
        self.sender.send(Ok(event)).await.map_err(gone)
    }

    pub(super) async fn progress(&mut self, step: &str, done: u64, all: u64) -> FsResult<()> {
        let step = step.to_owned();
        self.send(Kind::Progress(FsckProgress { step, done, all }))
            .await
    }

    pub(super) async fn begin_chunks(&mut self, all: u64) -> FsResult<()> {
        self.summary.chunks = all;
        self.progress("chunks", 0, all).await
    }

    pub(super) async fn group_done(&mut self, chunks: u64) -> FsResult<()> {
        self.summary.groups += 1;
        self.chunks_done += chunks;
        self.progress("chunks", self.chunks_done, self.summary.chunks)
            .await
    }

    pub(super) fn holes(&mut self, count: u64) {
        self.summary.holes += count;
    }

    /// Whether everything could be looked at so far.
    pub(super) fn saw_everything(&self) -> bool {
        self.summary.unchecked == 0 && self.summary.untold == 0
    }

    /// Whether deletions are held.
    pub(super) fn held(&mut self, held: bool) {
        self.summary.held = held;
    }

    /// Something looks wrong and is one too many to be looked at again.
    pub(super) fn untold(&mut self) {
        self.summary.untold += 1;
    }

    async fn finding(&mut self, finding: FsckFinding) -> FsResult<()> {
        match finding.kind.as_str() {
            "unchecked" => self.summary.unchecked += 1,
            _ => self.summary.findings += 1,
        }
        self.summary.repaired += u64::from(finding.repaired);
        if self.summary.findings + self.summary.unchecked > FINDINGS_MAX {
            self.summary.untold += 1;
            return Ok(());
        }
        self.send(Kind::Finding(finding)).await
    }

    pub(super) async fn unchecked(
        &mut self,
        group: GroupId,
        node: Option<NodeId>,
        why: &str,
    ) -> FsResult<()> {
        self.finding(FsckFinding {
            kind: "unchecked".to_owned(),
            group: group.get(),
            node: node.map_or(0, NodeId::get),
            text: why.to_owned(),
            ..FsckFinding::default()
        })
        .await
    }

    pub(super) async fn unchecked_metadata(&mut self, why: &str) -> FsResult<()> {
        self.finding(FsckFinding {
            kind: "unchecked".to_owned(),
            text: why.to_owned(),
            ..FsckFinding::default()
        })
        .await
    }

    pub(super) async fn metadata(&mut self, index: u64, found: Vec<String>) -> FsResult<()> {
        self.summary.metadata_index = index;
        for text in found {
            let kind = "metadata".to_owned();
            self.finding(FsckFinding {
                kind,
                text,
                ..FsckFinding::default()
            })
            .await?;
        }
        Ok(())
    }

    pub(super) async fn no_group(&mut self, group: GroupId, chunks: u64) -> FsResult<()> {
        self.finding(FsckFinding {
            kind: "no-group".to_owned(),
            group: group.get(),
            text: format!("{chunks} chunks of files are in a group that does not exist"),
            ..FsckFinding::default()
        })
        .await
    }

    pub(super) async fn misplaced(
        &mut self,
        group: GroupId,
        chunk: u64,
        ino: InodeId,
        home: GroupId,
    ) -> FsResult<()> {
        let home = home.get();
        self.finding(FsckFinding {
            kind: "misplaced".to_owned(),
            group: group.get(),
            chunk,
            inode: ino.0,
            text: format!("its file says that it is in group {home}"),
            ..FsckFinding::default()
        })
        .await
    }

    pub(super) async fn orphan(
        &mut self,
        group: GroupId,
        chunk: ChunkId,
        repaired: bool,
    ) -> FsResult<()> {
        let text = match repaired {
            true => "no file has it: queued to be deleted",
            false => "no file has it: --repair deletes it",
        };
        self.finding(FsckFinding {
            kind: "orphan".to_owned(),
            group: group.get(),
            chunk: chunk.get(),
            text: text.to_owned(),
            repaired,
            ..FsckFinding::default()
        })
        .await
    }

    pub(super) async fn fault(
        &mut self,
        group: GroupId,
        chunk: ChunkId,
        fault: Fault,
        ino: InodeId,
        path: Vec<u8>,
    ) -> FsResult<()> {
        let (kind, node, text) = match fault {
            Fault::Behind { node, has, newest } => {
                let newest = format!("{}.{}", newest.epoch.get(), newest.sequence.get());
                let restart = format!("restart datanode {} to have it caught up", node.get());
                match has {
                    None => (
                        "missing",
                        node,
                        format!("others have version {newest}: {restart}"),
                    ),
                    Some(has) => {
                        let has = format!("{}.{}", has.epoch.get(), has.sequence.get());
                        let text = format!("it has version {has}, others {newest}: {restart}");
                        ("stale", node, text)
                    }
                }
            }
            Fault::Deleted { node } => {
                let text =
                    "the datanode deleted what a file still names: restore the file from elsewhere";
                ("deleted", node, text.to_owned())
            }
            Fault::Orphan => return self.orphan(group, chunk, false).await,
        };
        self.finding(FsckFinding {
            kind: kind.to_owned(),
            group: group.get(),
            chunk: chunk.get(),
            node: node.get(),
            inode: ino.0,
            path: path.into(),
            text,
            repaired: false,
        })
        .await
    }

    /// The last event: the summary, or why there is none.
    pub(super) async fn end(mut self, done: FsResult<()>) {
        // Whoever asked may have gone.
        let _ = match done {
            Ok(()) => self.send(Kind::Summary(self.summary)).await.ok(),
            Err(error) => self.sender.send(Err(to_grpc(&error))).await.ok(),
        };
    }
}

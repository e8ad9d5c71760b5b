//! The chunks of a group as its members list them, a page at a time.

use super::compare::Held;
use lumeofs_base::limits::REQUEST_TIMEOUT;
use lumeofs_base::{ClusterMap, Code, FsError, FsResult, GroupId, NodeId, Version};
use lumeofs_proto::auth::Identity;
use lumeofs_proto::data::{GroupState, GroupStateRequest};
use lumeofs_proto::frame::Op;
use lumeofs_proto::nonblocking::{FrameReader, FrameWriter, connect};
use tokio::time::timeout;

/// Chunks in one page.
const PAGE: u32 = 4096;

/// A member's list.
pub(super) struct List {
    pub(super) node: NodeId,
    group: GroupId,
    reader: FrameReader,
    writer: FrameWriter,
    /// Chunks that were read and not compared yet.
    page: Vec<Held>,
    after: u64,
    ended: bool,
}

impl List {
    /// Connects to a member. Fails if it is not in sync by its own word.
    pub(super) async fn open(
        identity: &Identity,
        map: &ClusterMap,
        group: GroupId,
        node: NodeId,
    ) -> FsResult<Self> {
        let unknown = || FsError::new(Code::WrongGroup, format!("no datanode {}", node.get()));
        let info = map.node(node).ok_or_else(unknown)?;
        let (reader, writer, _) = connect(&info.address, identity).await?;
        let mut list = Self {
            node,
            group,
            reader,
            writer,
            page: Vec::new(),
            // The mark of the era, chunk 0, is no chunk.
            after: 0,
            ended: false,
        };
        let state = list.ask(0, 1).await?;
        if state.complete {
            return Ok(list);
        }
        let text = format!("it is {} and has to be caught up first", state.role);
        Err(FsError::new(Code::Unavailable, text))
    }

    /// Reads a page if there is none.
    pub(super) async fn fill(&mut self) -> FsResult<()> {
        if self.ended || !self.page.is_empty() {
            return Ok(());
        }
        let state = self.ask(self.after, PAGE).await?;
        self.page = held(&state);
        self.after = self.page.last().map_or(self.after, |held| held.chunk);
        self.ended = state.chunks_end || self.page.is_empty();
        Ok(())
    }

    /// The chunk up to which this page says everything.
    pub(super) fn upto(&self) -> u64 {
        match self.page.last() {
            Some(last) if !self.ended => last.chunk,
            _ => u64::MAX,
        }
    }

    /// Takes what the page has up to a chunk.
    pub(super) fn take(&mut self, upto: u64) -> Vec<Held> {
        let count = self.page.partition_point(|held| held.chunk <= upto);
        let rest = self.page.split_off(count);
        std::mem::replace(&mut self.page, rest)
    }

    /// Whether everything was taken.
    pub(super) fn is_done(&self) -> bool {
        self.ended && self.page.is_empty()
    }

    /// One chunk, now.
    pub(super) async fn one(&mut self, chunk: u64) -> FsResult<Option<Held>> {
        let state = self.ask(chunk - 1, 1).await?;
        Ok(held(&state).into_iter().find(|held| held.chunk == chunk))
    }

    async fn ask(&mut self, after: u64, max: u32) -> FsResult<GroupState> {
        let request = GroupStateRequest {
            group: self.group.get(),
            with_chunks: true,
            chunk_after: Some(after),
            chunks_max: max,
        };
        let asked = async {
            let sent = self.writer.request(Op::GroupState, 1, &request, &[]).await;
            sent.map_err(|error| FsError::from_net(&error, "list chunks"))?;
            let frame = self.reader.receive().await;
            frame
                .map_err(|error| FsError::from_net(&error, "list chunks"))?
                .decode()
        };
        let late = |_| Err(FsError::new(Code::Timeout, "no list of chunks in time"));
        timeout(REQUEST_TIMEOUT, asked).await.unwrap_or_else(late)
    }
}

fn held(state: &GroupState) -> Vec<Held> {
    let held = |chunk: &lumeofs_proto::data::ChunkVersion| {
        let version = chunk.version.unwrap_or_default();
        Held {
            chunk: chunk.chunk,
            version: Version {
                epoch: version.epoch.into(),
                sequence: version.sequence.into(),
            },
            deleted: chunk.deleted,
        }
    };
    state.chunks.iter().map(held).collect()
}

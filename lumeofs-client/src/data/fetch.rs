//! Reads pieces of chunks from replicas: the nearest in-sync member first, then the primary, then
//! the others; checks every block; goes on to another replica at once when one fails.

use crate::data::chunks::{Piece, pieces};
use crate::data::round::{Ask, round};
use crate::inodes::Known;
use crate::link::Link;
use crate::pool::Host;
use crate::retry::{Attempt, Next, retry};
use crate::wait::Patience;
use lumeofs_base::checksum::verify_blocks;
use lumeofs_base::error::Retry;
use lumeofs_base::limits::REQUEST_TIMEOUT;
use lumeofs_base::{ClusterMap, Code, Epoch, FsError, FsResult};
use lumeofs_meta::op::ChunkRef;
use lumeofs_proto::blocking::Frame;
use lumeofs_proto::data::{ChunkReply, ChunkRequest};
use lumeofs_proto::frame::Op;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// How long a replica may be silent while there is another one to ask; doubled with each turn
/// through all of them.
const REPLICA_LIMIT: Duration = Duration::from_millis(500);
/// Bytes that one request reads: of a longer read, one part comes from the disk while another is on the way.
const READ_BYTES_MAX: usize = 256 << 10;

impl Link {
    /// Fills `buf` from `offset` on; chunks that are not in `known` read as zeros.
    pub(crate) fn fetch(
        &self,
        patience: &Patience<'_>,
        known: &Known,
        offset: u64,
        buf: &mut [u8],
    ) -> FsResult<()> {
        let whole = offset..offset + buf.len() as u64;
        self.fetch_parts(patience, known, &[whole], buf)
    }

    /// As [`Link::fetch`] for several ranges at once, whose bytes go into `buf` one after the other.
    pub(crate) fn fetch_parts(
        &self,
        patience: &Patience<'_>,
        known: &Known,
        parts: &[Range<u64>],
        buf: &mut [u8],
    ) -> FsResult<()> {
        retry(
            patience,
            &mut Fetch::new(self, patience, known, parts, buf, None),
        )
    }

    /// As [`Link::fetch`], asking one replica for each piece. Calls `meanwhile` while the first requests
    /// are under way.
    pub(crate) fn fetch_once(
        &self,
        patience: &Patience<'_>,
        known: &Known,
        offset: u64,
        buf: &mut [u8],
        meanwhile: &mut dyn FnMut(),
    ) -> FsResult<()> {
        let whole = offset..offset + buf.len() as u64;
        Fetch::new(self, patience, known, &[whole], buf, Some(meanwhile)).attempt()
    }
}

/// A piece that is not read yet.
struct Wanted {
    piece: Piece,
    chunk: ChunkRef,
    epoch: Epoch,
    /// Replicas in the order of asking, and how many of them failed.
    replicas: Vec<Arc<Host>>,
    failed: usize,
    /// Times that all replicas failed.
    turns: u32,
    /// In this turn no replica said anything that time may mend.
    hopeless: bool,
}

struct Fetch<'a, 'p> {
    link: &'a Link,
    patience: &'a Patience<'p>,
    truncations: u32,
    era: u32,
    buf: &'a mut [u8],
    wanted: Vec<Wanted>,
    meanwhile: Option<&'a mut dyn FnMut()>,
}

impl<'a, 'p> Fetch<'a, 'p> {
    fn new(
        link: &'a Link,
        patience: &'a Patience<'p>,
        known: &Known,
        parts: &[Range<u64>],
        buf: &'a mut [u8],
        meanwhile: Option<&'a mut dyn FnMut()>,
    ) -> Self {
        let (mut wanted, mut start) = (Vec::new(), 0);
        for part in parts {
            let len = (part.end - part.start) as usize;
            for mut piece in pieces(part.start, len, link.chunk_size(), READ_BYTES_MAX) {
                piece.bytes = start + piece.bytes.start..start + piece.bytes.end;
                match known.chunks.get(&piece.index) {
                    Some(chunk) => wanted.push(Wanted::new(piece, *chunk)),
                    None => buf[piece.bytes].fill(0),
                }
            }
            start += len;
        }
        let (truncations, era) = (known.attr.truncations, known.era);
        Self {
            link,
            patience,
            truncations,
            era,
            buf,
            wanted,
            meanwhile,
        }
    }
}

impl Wanted {
    fn new(piece: Piece, chunk: ChunkRef) -> Self {
        let replicas = Vec::new();
        Self {
            piece,
            chunk,
            epoch: Epoch(0),
            replicas,
            failed: 0,
            turns: 0,
            hopeless: true,
        }
    }

    /// Chooses the replicas of the next turn.
    fn choose(&mut self, link: &Link, map: &ClusterMap) -> FsResult<()> {
        let missing = || {
            let what = format!("the cluster map has no replica of {}", self.chunk.group);
            FsError::new(Code::WrongGroup, what)
        };
        let config = map.group(self.chunk.group).ok_or_else(missing)?;
        let mut hosts: Vec<_> = config
            .in_sync
            .iter()
            .filter_map(|node| Some((*node, link.pool.host(&map.node(*node)?.address))))
            .map(|(node, host)| (host.reluctance(), node, host))
            .collect();
        if hosts.is_empty() {
            return Err(missing());
        }
        hosts.sort_by_key(|(reluctance, _, _)| *reluctance);
        // A secondary that may not answer now refers to the primary.
        if let Some(at) = hosts
            .iter()
            .skip(2)
            .position(|(_, node, _)| *node == config.primary)
        {
            hosts[1..at + 3].rotate_right(1);
        }
        self.replicas = hosts.into_iter().map(|(_, _, host)| host).collect();
        (self.failed, self.hopeless, self.epoch) = (0, true, config.epoch);
        Ok(())
    }

    fn ask(&self, truncations: u32, era: u32) -> Ask<'static> {
        let header = ChunkRequest {
            group: self.chunk.group.get(),
            epoch: self.epoch.get(),
            chunk: self.chunk.chunk.get(),
            offset: self.piece.within,
            len: self.piece.bytes.len() as u64,
            truncations,
            era,
            ..Default::default()
        };
        let is_last = self.failed + 1 == self.replicas.len();
        let limit = REPLICA_LIMIT * 2u32.pow(self.turns.min(4));
        let limit = if is_last {
            REQUEST_TIMEOUT
        } else {
            limit.min(REQUEST_TIMEOUT)
        };
        let host = Arc::clone(&self.replicas[self.failed]);
        Ask {
            host,
            op: Op::Read,
            flags: 0,
            header,
            payload: &[],
            limit,
        }
    }

    /// Takes a reply over into the piece's bytes.
    fn take(&self, frame: &Frame, out: &mut [u8]) -> FsResult<()> {
        let reply: ChunkReply = frame.decode()?;
        let data = &frame.payload[..];
        if data.len() > out.len() || !verify_blocks(self.piece.within, data, &reply.checksums) {
            return Err(FsError::new(
                Code::Io,
                format!("wrong checksum in {}", self.chunk.chunk),
            ));
        }
        out[..data.len()].copy_from_slice(data);
        out[data.len()..].fill(0);
        Ok(())
    }

    /// A replica failed. The error is final if all did and time will not mend it; otherwise it comes
    /// back as one that a retry may mend.
    fn fail(&mut self, error: FsError) -> FsError {
        let host = self.replicas[self.failed].address().to_owned();
        let error = error.during(format_args!("read {} at {host}", self.chunk.chunk));
        if error.code == Code::Interrupted {
            return error;
        }
        tracing::debug!(%error, "a replica did not serve a read");
        self.hopeless &= error.code.retry() == Retry::Never;
        self.failed += 1;
        if self.failed == self.replicas.len() {
            self.turns += 1;
            self.replicas.clear();
            if self.hopeless {
                return error;
            }
        }
        match error.code.retry() {
            Retry::Never => FsError::new(Code::Unavailable, error.to_string()),
            Retry::Elsewhere | Retry::AfterRefresh => error,
        }
    }
}

impl Attempt for Fetch<'_, '_> {
    type Done = ();

    fn attempt(&mut self) -> FsResult<()> {
        let map = self.link.map();
        for wanted in self
            .wanted
            .iter_mut()
            .filter(|wanted| wanted.replicas.is_empty())
        {
            wanted.choose(self.link, &map)?;
        }
        let asks: Vec<_> = self
            .wanted
            .iter()
            .map(|wanted| wanted.ask(self.truncations, self.era))
            .collect();
        let mut nothing = || {};
        let meanwhile = self.meanwhile.take().unwrap_or(&mut nothing);
        let (wanted, buf, patience) = (&mut self.wanted, &mut *self.buf, self.patience);
        let (mut read, mut failed) = (vec![false; asks.len()], None::<FsError>);
        let mut on_result = |at: usize, result: FsResult<Frame>| {
            let bytes = wanted[at].piece.bytes.clone();
            match result.and_then(|frame| wanted[at].take(&frame, &mut buf[bytes])) {
                Ok(()) => {
                    patience.progressed();
                    read[at] = true;
                }
                Err(error) => {
                    let error = wanted[at].fail(error);
                    // A final error goes before one that may pass.
                    if failed
                        .as_ref()
                        .is_none_or(|old| old.code.retry() != Retry::Never)
                    {
                        failed = Some(error);
                    }
                }
            }
        };
        round(
            patience,
            &asks,
            meanwhile,
            &mut |_, _| Ok(()),
            &mut on_result,
        );
        let mut read = read.into_iter();
        self.wanted.retain(|_| !read.next().unwrap_or(false));
        failed.map_or(Ok(()), Err)
    }

    fn prepare(&mut self, _error: &FsError) -> FsResult<Next> {
        if self.wanted.iter().all(|wanted| !wanted.replicas.is_empty()) {
            return Ok(Next::Now);
        }
        self.link.refresh_map(self.patience, 0);
        Ok(Next::Pause)
    }
}

//! Sessions that end by force: what a client still has on its way under one never comes through once its fence was
//! acknowledged (S3), whoever leads by then and however it got its history.
//!
//! A client whose session was ended does what the masters do: it tells the group of the fence until that is
//! acknowledged, and only then writes to its blocks again, under another session.

use super::{Clients, Doing};
use crate::world::World;
use lumeofs_base::{ChunkOp, Fence, SessionId};
use lumeofs_replica::{Admission, WriteRequest, Writer};
use std::collections::BTreeSet;

/// Late packets of fenced sessions that are kept, to be tried again and again.
const GHOSTS_MAX: usize = 16;

/// What the masters would know.
#[derive(Default)]
pub(crate) struct Sessions {
    last: u64,
    fence: u64,
    /// Sessions whose fence was acknowledged.
    fenced: BTreeSet<u64>,
    ghosts: Vec<WriteRequest<Vec<u8>>>,
    /// Fences that were acknowledged.
    pub(crate) fences: usize,
    /// Writes of fenced sessions that were refused by a primary that serves.
    pub(crate) refused: usize,
}

impl Sessions {
    pub(super) fn open(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

impl Clients {
    /// Ends the client's session, or goes on telling the group of it.
    pub(super) fn fence(&mut self, world: &mut World, at: usize, node: usize) -> bool {
        if !self.clients[at].ending {
            self.clients[at].ending = true;
            self.sessions.fence += 1;
        }
        let live = self.clients.iter().filter(|client| !client.ending);
        let mut live: Vec<_> = live.map(|client| SessionId(client.session)).collect();
        live.sort();
        let fence = Fence {
            number: self.sessions.fence,
            below: self.sessions.last + 1,
            live,
        };
        let client = &mut self.clients[at];
        let request = WriteRequest {
            ticket: client.ticket,
            epoch: world.config.epoch,
            writer: Writer::default(),
            op: ChunkOp::Fence { fence },
            data: Vec::new(),
            durable: true,
        };
        client.doing = Some(Doing::Fence { node });
        let admission = self.ask(world, node, |core, now| core.write(&request, now));
        self.admitted(at, admission)
    }

    /// The fence is on the disks of all in-sync members.
    pub(super) fn fence_is_up(&mut self, at: usize) {
        let session = self.sessions.open();
        let client = &mut self.clients[at];
        let ended = std::mem::replace(&mut client.session, session);
        client.ending = false;
        client.generation = 0;
        self.sessions.fences += 1;
        self.sessions.fenced.insert(ended);
        let late = self
            .ghosts
            .extract_if(.., |ghost| ghost.writer.session == ended);
        let room = GHOSTS_MAX.saturating_sub(self.sessions.ghosts.len());
        self.sessions.ghosts.extend(late.take(room));
    }

    /// A late packet of a fenced session. Its client knows the group's configuration, but not that its session ended.
    pub(crate) fn fenced_ghost(&mut self, world: &World) -> Option<WriteRequest<Vec<u8>>> {
        let at = self.rng().below(GHOSTS_MAX as u64) as usize;
        let ghost = self.sessions.ghosts.get(at)?;
        let mut ghost = ghost.clone();
        ghost.epoch = world.config.epoch;
        ghost.writer.generation = u32::MAX;
        self.next += 1;
        ghost.ticket = self.next;
        Some(ghost)
    }

    /// What a member said to such a packet.
    pub(crate) fn fenced_ghost_was(&mut self, session: u64, admission: Option<&Admission>) {
        assert!(
            self.sessions.fenced.contains(&session),
            "a ghost of session {session}, which has no fence"
        );
        match admission {
            Some(Admission::Taken) => {
                panic!("a write of session {session}, which is fenced, was taken")
            }
            Some(Admission::Refused(error)) => {
                let expired = error.code == lumeofs_base::Code::SessionExpired;
                self.sessions.refused += usize::from(expired);
            }
            None | Some(Admission::Wait | Admission::Forward(_)) => {}
        }
    }
}

//! The two state machines as the Raft host sees them.

use super::leases::Leases;
use super::locks::Locks;
use super::opens::Opens;
use super::placement::Placement;
use crate::done::Done;
use crate::raft::{Applied, EntryOrigin, Machine, Overlay};
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::{Code, FsError, FsResult};
use lumeofs_meta::controller::{self, ControllerBatch, ControllerCommand, ControllerReply};
use lumeofs_meta::namespace;
use lumeofs_meta::op::{Batch, Command};
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// The controller: nodes, replica groups, policies.
pub(crate) struct ControllerMachine;

impl Machine for ControllerMachine {
    type Command = ControllerCommand;
    type Reply = ControllerReply;

    fn seal(&self, commands: Vec<ControllerCommand>) -> Vec<u8> {
        postcard::to_stdvec(&ControllerBatch { commands }).expect("commands are plain data")
    }

    fn apply(&self, tables: &mut Overlay, origin: EntryOrigin, batch: &[u8]) -> FsResult<Applied> {
        let batch: ControllerBatch = decode(batch)?;
        Ok(Applied::Controller(controller::apply(
            tables,
            origin.index,
            &batch,
        )))
    }

    fn replies(&self, applied: Applied) -> Vec<ControllerReply> {
        match applied {
            Applied::Controller(replies) => replies,
            Applied::Nothing | Applied::Metadata(_) => Vec::new(),
        }
    }
}

/// The namespace.
pub(crate) struct MetadataMachine {
    /// This master.
    pub(crate) me: u64,
    /// Learns of files that are open because they were just created.
    pub(crate) opens: Arc<Opens>,
    /// Learns of all that changes.
    pub(crate) leases: Arc<Leases>,
    /// Learns of locks that others may wait for.
    pub(crate) locks: Arc<Locks>,
    /// Chooses groups for new chunks.
    pub(crate) placement: Placement,
}

impl Machine for MetadataMachine {
    type Command = Command;
    type Reply = Done;

    fn seal(&self, commands: Vec<Command>) -> Vec<u8> {
        let batch = Batch {
            now: SystemClock.wall(),
            groups: self.placement.candidates(),
            commands,
        };
        postcard::to_stdvec(&batch).expect("commands are plain data")
    }

    fn apply(&self, tables: &mut Overlay, origin: EntryOrigin, batch: &[u8]) -> FsResult<Applied> {
        let batch: Batch = decode(batch)?;
        let applied = namespace::apply(tables, origin.index, &batch);
        let own = origin.term.node == self.me;
        if own {
            // Before anybody can see the outcomes: a file must not be purged between its creation
            // and the moment at which its creator is known to hold it open.
            self.opens.observe(origin.term, &batch.commands, &applied);
        }
        // And nobody must be told what others still believe otherwise.
        let term = own.then_some(origin.term);
        let done = self.leases.applied(tables, term, &batch.commands, applied);
        self.locks.applied(&batch.commands);
        Ok(Applied::Metadata(done))
    }

    fn replaced(&self) {
        self.leases.replaced();
    }

    fn replies(&self, applied: Applied) -> Vec<Done> {
        match applied {
            Applied::Metadata(done) => done,
            Applied::Nothing | Applied::Controller(_) => Vec::new(),
        }
    }
}

fn decode<T: DeserializeOwned>(batch: &[u8]) -> FsResult<T> {
    postcard::from_bytes(batch).map_err(|error| {
        FsError::new(
            Code::Io,
            format!("log entry that this build cannot read: {error}"),
        )
    })
}

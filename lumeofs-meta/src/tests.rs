//! Tests of the namespace as a whole, through its public functions.

mod acls;
mod attributes;
mod changes;
mod exactly_once;
mod files;
mod locks;
mod made;
mod model;
mod random;
mod renames;
mod restore;
mod rules;
mod trash;
mod walk;

use crate::change::Applied;
use crate::namespace;
use crate::op::{
    Batch, Caller, Command, Internal, Mutation, NewNode, Outcome, Query, RenameMode, Reply,
};
use crate::tables::MemoryTables;
use lumeofs_base::{Attr, ChunkId, Code, GroupId, InodeId, SessionId, Timestamp};

/// A namespace with one session and a log that can be replayed.
struct Fixture {
    tables: MemoryTables,
    log: Vec<Batch>,
    /// What became of it.
    applied: Vec<Vec<Applied>>,
    groups: Vec<GroupId>,
    caller: Caller,
    session: SessionId,
    sequence: u64,
}

fn seconds(secs: u64) -> Timestamp {
    Timestamp {
        secs: secs.cast_signed(),
        nanos: 0,
    }
}

impl Fixture {
    fn new() -> Self {
        let mut fixture = Self {
            tables: MemoryTables::default(),
            log: Vec::new(),
            applied: Vec::new(),
            groups: vec![GroupId(1), GroupId(2), GroupId(3)],
            caller: Caller {
                trusted: true,
                ..Caller::default()
            },
            session: SessionId(0),
            sequence: 0,
        };
        let open = Internal::OpenSession {
            nonce: 7,
            description: "test".into(),
        };
        fixture.session = match fixture.internal(open) {
            Ok(Reply::Session(id)) => id,
            other => panic!("{other:?}"),
        };
        fixture
    }

    /// Applies commands as the next entry; log time is the entry's index in seconds.
    fn apply(&mut self, commands: Vec<Command>) -> Vec<Outcome> {
        let index = self.log.len() as u64 + 1;
        let batch = Batch {
            now: seconds(index),
            groups: self.groups.clone(),
            commands,
        };
        let applied = namespace::apply(&mut self.tables, index, &batch);
        let outcomes = applied.iter().map(|applied| applied.outcome.clone());
        let outcomes = outcomes.collect();
        self.log.push(batch);
        self.applied.push(applied);
        outcomes
    }

    fn internal(&mut self, internal: Internal) -> Outcome {
        self.apply(vec![Command::Internal(internal)]).remove(0)
    }

    /// The command of the next mutation.
    fn command(&mut self, mutation: Mutation) -> Command {
        self.sequence += 1;
        Command::Mutate {
            session: self.session,
            sequence: self.sequence,
            acked_below: self.sequence,
            caller: self.caller.clone(),
            mutation,
        }
    }

    fn mutate(&mut self, mutation: Mutation) -> Outcome {
        let command = self.command(mutation);
        self.apply(vec![command]).remove(0)
    }

    /// The code with which a mutation fails.
    fn refused(&mut self, mutation: Mutation) -> Code {
        self.mutate(mutation)
            .expect_err("the mutation is refused")
            .code
    }

    fn create(&mut self, parent: InodeId, name: &str, node: NewNode, mode: u16) -> Attr {
        let name = name.into();
        match self.mutate(Mutation::Create {
            parent,
            name,
            node,
            mode: mode.into(),
            exclusive: true,
        }) {
            Ok(Reply::Created {
                attr,
                created: true,
                ..
            }) => attr,
            other => panic!("{other:?}"),
        }
    }

    fn file(&mut self, parent: InodeId, name: &str) -> InodeId {
        self.create(parent, name, NewNode::Regular, 0o644).ino
    }

    fn dir(&mut self, parent: InodeId, name: &str) -> InodeId {
        self.create(parent, name, NewNode::Directory, 0o755).ino
    }

    fn query(&self, query: &Query) -> Outcome {
        namespace::query(&self.tables, &self.caller, query)
    }

    fn attr(&self, ino: InodeId) -> Attr {
        attr(self.query(&Query::GetAttr { ino }))
    }

    fn lookup(&self, parent: InodeId, name: &str) -> Result<InodeId, Code> {
        let outcome = self.query(&Query::Lookup {
            parent,
            name: name.into(),
        });
        outcome
            .map(|reply| attr(Ok(reply)).ino)
            .map_err(|error| error.code)
    }

    /// As user 1000 or another, without the kernel's checks.
    fn as_user(&mut self, uid: u32, gid: u32) {
        self.caller = Caller {
            uid,
            gid,
            groups: Vec::new(),
            trusted: false,
        };
    }

    fn check(&self) {
        assert_eq!(namespace::check(&self.tables), Vec::<String>::new());
    }
}

/// The attributes in a reply.
fn attr(outcome: Outcome) -> Attr {
    match outcome {
        Ok(
            Reply::Attr(attr)
            | Reply::Created { attr, .. }
            | Reply::Removed { attr }
            | Reply::Renamed { attr, .. }
            | Reply::Chunks { attr, .. }
            | Reply::Appended { attr, .. },
        ) => attr,
        other => panic!("{other:?}"),
    }
}

fn rename(
    (parent, name): (InodeId, &str),
    (new_parent, new_name): (InodeId, &str),
    mode: RenameMode,
) -> Mutation {
    Mutation::Rename {
        parent,
        name: name.into(),
        new_parent,
        new_name: new_name.into(),
        mode,
    }
}

fn unlink(parent: InodeId, name: &str) -> Mutation {
    Mutation::Unlink {
        parent,
        name: name.into(),
    }
}

fn rmdir(parent: InodeId, name: &str) -> Mutation {
    Mutation::Rmdir {
        parent,
        name: name.into(),
    }
}

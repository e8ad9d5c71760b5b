//! A table and some holders that reach each other at once; time stands still unless a test moves it.

use lumeofs_base::{Attr, FileKind, InodeId, SessionId, Timestamp};
use lumeofs_lease::{
    Act, Blocked, Cached, Changed, Created, Generation, Grant, Held, Holder, HolderLimits, Kind,
    Learned, Poll, Recall, Table, TableLimits, Want,
};
use lumeofs_meta::change::Change;
use lumeofs_meta::op::DirEntry;
use std::time::Duration;

pub(crate) const FILE: InodeId = InodeId(1000);
pub(crate) const OTHER: InodeId = InodeId(1001);
pub(crate) const DIR: InodeId = InodeId(2000);
pub(crate) const LINK: InodeId = InodeId(2001);

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Attributes of a file, of [`DIR`] or of [`LINK`]; the mode tells versions apart.
pub(crate) fn attr(ino: InodeId, mode: u16) -> Attr {
    Attr {
        ino,
        kind: kind(ino),
        mode,
        uid: 0,
        gid: 0,
        nlink: 1,
        rdev: 0,
        size: 0,
        allocated: 0,
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        btime: Timestamp::default(),
        truncations: 0,
        tail_unclean: false,
        has_xattrs: true,
    }
}

pub(crate) fn kind(ino: InodeId) -> FileKind {
    match ino {
        DIR => FileKind::Directory,
        LINK => FileKind::Symlink,
        _ => FileKind::Regular,
    }
}

pub(crate) fn touched(ino: InodeId, mode: u16) -> Change {
    Change::Attr(attr(ino, mode))
}

/// A file has lost its last name.
pub(crate) fn unlinked(ino: InodeId) -> Change {
    Change::Attr(Attr {
        nlink: 0,
        ..attr(ino, 0)
    })
}

/// A name in [`DIR`] means this now.
pub(crate) fn named(name: &[u8], cookie: u64, to: Option<InodeId>) -> Change {
    Change::Name {
        parent: DIR,
        name: name.to_vec(),
        entry: to.map(|ino| entry(name, cookie, ino)),
    }
}

pub(crate) fn entry(name: &[u8], cookie: u64, ino: InodeId) -> DirEntry {
    DirEntry {
        cookie,
        name: name.to_vec(),
        ino,
        kind: kind(ino),
    }
}

/// An answer of the leader, which may arrive whenever the test wants.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) generation: Generation,
    pub(crate) number: u64,
    pub(crate) grants: Vec<Grant>,
}

/// A mount.
pub(crate) struct Mount {
    pub(crate) session: SessionId,
    pub(crate) holder: Holder,
}

pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) table: Table,
    pub(crate) mounts: Vec<Mount>,
}

/// What came of a poll.
#[derive(Debug, Default)]
pub(crate) struct Polled {
    pub(crate) recalls: Vec<Recall>,
    pub(crate) opened: Vec<InodeId>,
    pub(crate) restate: bool,
    pub(crate) renewed: bool,
    pub(crate) leases_max: u64,
}

impl World {
    /// With mounts that take part, under a leadership that knows all sessions.
    pub(crate) fn new(mounts: usize) -> Self {
        Self::with(mounts, TableLimits::default(), HolderLimits::default())
    }

    pub(crate) fn with(mounts: usize, table: TableLimits, holder: HolderLimits) -> Self {
        let mut world = Self {
            now: ms(1_000_000),
            table: Table::new(table),
            mounts: Vec::new(),
        };
        world.table.lead(world.now, 1, []);
        for index in 0..mounts {
            world.mounts.push(Mount {
                session: session(index),
                holder: Holder::new(holder),
            });
            world.begin(index);
        }
        world
    }

    /// A mount learns its generation and asserts what it has.
    pub(crate) fn begin(&mut self, mount: usize) {
        assert!(self.poll(mount).restate);
        assert!(!self.poll(mount).restate);
    }

    /// Another leadership begins, which waits for all mounts.
    pub(crate) fn elect(&mut self) {
        let live: Vec<SessionId> = self.mounts.iter().map(|mount| mount.session).collect();
        self.table.lead(self.now, self.table.term() + 1, live);
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// Time passes in which all poll, so that nobody's term ends.
    pub(crate) fn live(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.pass(ms(500).min(until - self.now));
            for mount in 0..self.mounts.len() {
                self.poll(mount);
            }
        }
    }

    pub(crate) fn holder(&mut self, mount: usize) -> &mut Holder {
        &mut self.mounts[mount].holder
    }

    /// What a mount would say now. It is on its way then.
    pub(crate) fn say(&mut self, mount: usize) -> Poll {
        self.holder(mount).poll()
    }

    /// A whole poll.
    pub(crate) fn poll(&mut self, mount: usize) -> Polled {
        let poll = self.say(mount);
        self.deliver(mount, &poll)
    }

    /// What a mount has said arrives, and the answer to it too.
    pub(crate) fn deliver(&mut self, mount: usize, poll: &Poll) -> Polled {
        let session = self.mounts[mount].session;
        let heard = self.table.poll(self.now, session, poll);
        let heard = heard.expect("it is not overtaken");
        let polled = Polled {
            recalls: heard.answer.recalls.clone(),
            opened: heard.opened,
            restate: heard.answer.restate,
            renewed: heard.answer.renewed,
            leases_max: heard.answer.leases_max,
        };
        let (now, asserted) = (self.now, poll.asserts.is_some());
        self.holder(mount).heard(now, asserted, heard.answer);
        polled
    }

    /// A mount hears what it was told, and says that it has.
    pub(crate) fn hear(&mut self, mount: usize) {
        self.poll(mount);
        self.poll(mount);
    }

    /// A mount asks the leader something that shows these inodes.
    pub(crate) fn ask(
        &mut self,
        mount: usize,
        shown: &[InodeId],
        want: Want,
    ) -> Result<Answer, Blocked> {
        let shown: Vec<(InodeId, FileKind)> = shown.iter().map(|ino| (*ino, kind(*ino))).collect();
        let session = self.mounts[mount].session;
        let grants = self.table.read(self.now, session, &shown, want)?;
        Ok(Answer {
            generation: self.table.generation(session).unwrap_or_default(),
            number: self.table.number(),
            grants,
        })
    }

    /// The answer to a question for attributes arrives.
    pub(crate) fn learn(&mut self, mount: usize, answer: &Answer, attr: &Attr) {
        let now = self.now;
        let learned = Learned::Attr(attr);
        self.holder(mount)
            .learn(now, answer.generation, &answer.grants, learned);
    }

    /// A mount asks for attributes and takes the answer. Says which lease came with it.
    pub(crate) fn get(&mut self, mount: usize, ino: InodeId, want: Want) -> Option<Kind> {
        let answer = self
            .ask(mount, &[ino], want)
            .expect("nothing stands in the way");
        self.learn(mount, &answer, &attr(ino, 0));
        answer.grants.first().map(|grant| grant.kind)
    }

    /// A mount has got all names in [`DIR`].
    pub(crate) fn list(&mut self, mount: usize, entries: &[DirEntry]) {
        let answer = self
            .ask(mount, &[DIR], Want::Shared)
            .expect("nobody has changed it");
        let now = self.now;
        let learned = Learned::Entries {
            ino: DIR,
            after: 0,
            entries,
            more: false,
            inodes: &[],
        };
        self.holder(mount)
            .learn(now, answer.generation, &answer.grants, learned);
    }

    /// A mount's mutation is applied. Its reply is with the caller.
    pub(crate) fn change(&mut self, mount: usize, changes: &[Change]) -> Changed {
        let session = self.mounts[mount].session;
        self.table
            .changed(self.now, session, changes, &Created::Nothing)
    }

    /// That reply arrives.
    pub(crate) fn did(&mut self, mount: usize, changed: &Changed, changes: &[Change]) {
        let session = self.mounts[mount].session;
        let generation = self.table.generation(session).unwrap_or_default();
        let now = self.now;
        self.holder(mount)
            .did(now, generation, changed.number, changes, &changed.grants);
    }

    /// The mode that a mount would show from memory now.
    pub(crate) fn mode(&mut self, mount: usize, ino: InodeId) -> Option<u16> {
        let now = self.now;
        match self.holder(mount).attr(now, ino) {
            Cached::Is(attr) => Some(attr.mode),
            Cached::Absent | Cached::Unknown => None,
        }
    }

    /// What a mount was asked to give back.
    pub(crate) fn asked_back(&mut self, mount: usize) -> Vec<InodeId> {
        let acts = self.holder(mount).take_acts().into_iter();
        acts.filter_map(|act| match act {
            Act::GiveBack(ino) => Some(ino),
            _ => None,
        })
        .collect()
    }

    /// A mount hears that it is to give a lease back, does so, and says so.
    pub(crate) fn give_back(&mut self, mount: usize, ino: InodeId) {
        self.poll(mount);
        assert_eq!(self.asked_back(mount), [ino]);
        let holder = self.holder(mount);
        holder.gave_back(holder.generation(), ino);
        self.poll(mount);
    }

    /// A mount's write leases, as it would assert them.
    pub(crate) fn asserted(&mut self, mount: usize) -> Vec<Held> {
        self.say(mount).asserts.expect("it begins a generation")
    }
}

pub(crate) fn session(mount: usize) -> SessionId {
    SessionId(mount as u64 + 1)
}

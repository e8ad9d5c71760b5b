//! What was true when, and what everybody could know: the judge of all reads.
//!
//! Metadata has a version per command that changed it. A read must return one that is not older than what was
//! acknowledged, or returned by another read, before it began. What a mount made in its memory has its versions before it is
//! in the log; only its maker may see them then. Data and modification times are registers, whose writes
//! need not be in the log; each value is written once, so a read tells which write it saw.

use lumeofs_base::{Attr, FileKind, InodeId, SessionId, Timestamp};
use lumeofs_meta::change::Change;
use lumeofs_meta::namespace;
use lumeofs_meta::op::{Caller, DirEntry, NewObject, Query, Reply};
use lumeofs_meta::tables::MemoryTables;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Object {
    Attr(InodeId),
    Name(InodeId, Vec<u8>),
    Listing(InodeId),
    Xattr(InodeId, Vec<u8>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Attr(Attr),
    Name(Option<InodeId>),
    Listing(Vec<DirEntry>),
    Bytes(Option<Vec<u8>>),
    /// A listing with something that was made and has no place in it yet.
    Unlisted,
    Gone,
}

#[derive(Clone, Debug)]
struct Version {
    value: Value,
    /// It is not in the log.
    ahead: Option<Ahead>,
}

/// Who has made something in memory.
#[derive(Clone, Copy, Debug)]
struct Ahead {
    session: SessionId,
    made: Duration,
    /// The session was ended before.
    is_lost: bool,
}

impl Version {
    fn is_awaited(&self) -> bool {
        self.ahead.is_some_and(|ahead| !ahead.is_lost)
    }

    fn is_lost(&self) -> bool {
        self.ahead.is_some_and(|ahead| ahead.is_lost)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Register {
    Block(InodeId, u8),
    Time(InodeId),
}

impl Register {
    fn ino(self) -> InodeId {
        match self {
            Self::Block(ino, _) | Self::Time(ino) => ino,
        }
    }
}

#[derive(Debug)]
struct Write {
    value: u64,
    session: SessionId,
    began: Duration,
    acknowledged: Option<Duration>,
    /// When somebody knew first that it was done.
    known: Option<Duration>,
    /// It is with the datanode, or in the log.
    reached: bool,
    synced: bool,
    /// Its session was ended before it reached anything.
    lost: bool,
}

#[derive(Debug, Default)]
pub(crate) struct History {
    versions: BTreeMap<Object, Vec<Version>>,
    /// From when on which version is known to someone.
    floors: BTreeMap<Object, Vec<(Duration, usize)>>,
    changed_by: BTreeMap<(SessionId, u64), Vec<(Object, usize)>>,
    registers: BTreeMap<Register, Vec<Write>>,
    /// What each session made in its memory that is not in the log.
    made: BTreeMap<SessionId, VecDeque<Attr>>,
    pub(crate) lost: usize,
    pub(crate) lost_made: usize,
}

/// Attributes without what a writer may be ahead with.
pub(crate) fn strip(attr: &Attr) -> Attr {
    let mut attr = attr.clone();
    if attr.kind == FileKind::Regular {
        (attr.size, attr.allocated) = (0, 0);
        (attr.mtime, attr.ctime) = Default::default();
    }
    attr
}

pub(crate) fn number_of(time: Timestamp) -> u64 {
    time.secs as u64 * 1_000_000_000 + u64::from(time.nanos)
}

/// The entries after a cookie, at most so many, and whether others follow.
pub(crate) fn page(all: &[DirEntry], after: u64, count: usize) -> (Vec<DirEntry>, bool) {
    let rest: Vec<_> = all.iter().filter(|entry| entry.cookie > after).collect();
    let page = rest.iter().take(count).map(|entry| (*entry).clone());
    (page.collect(), rest.len() > count)
}

/// All entries of a directory.
pub(crate) fn listing(tables: &MemoryTables, ino: InodeId) -> Vec<DirEntry> {
    let query = Query::ReadDir {
        ino,
        cookie: 0,
        count_max: 1000,
        inodes_max: 0,
    };
    match namespace::query(tables, &caller(), &query) {
        Ok(Reply::Entries { entries, .. }) => entries,
        _ => Vec::new(),
    }
}

pub(crate) fn attr(tables: &MemoryTables, ino: InodeId) -> Option<Attr> {
    match namespace::query(tables, &caller(), &Query::GetAttr { ino }) {
        Ok(Reply::Attr(attr)) => Some(attr),
        _ => None,
    }
}

pub(crate) fn caller() -> Caller {
    Caller {
        trusted: true,
        ..Caller::default()
    }
}

impl History {
    /// Enters what a command did.
    pub(crate) fn applied(
        &mut self,
        tables: &MemoryTables,
        by: Option<(SessionId, u64)>,
        changes: &[Change],
    ) {
        let mut touched = Vec::new();
        if let Some((session, _)) = by {
            self.made_is_there(session, changes);
        }
        for change in changes {
            let ino = change.ino();
            match change {
                Change::Attr(attr) => {
                    touched.push((Object::Attr(ino), Value::Attr(strip(attr))));
                    let time = number_of(attr.mtime);
                    self.reached(Register::Time(ino), time);
                }
                Change::Name { name, entry, .. } => {
                    let to = entry.as_ref().map(|entry| entry.ino);
                    touched.push((Object::Name(ino, name.clone()), Value::Name(to)));
                    touched.push((Object::Listing(ino), Value::Listing(listing(tables, ino))));
                }
                Change::Xattr { ino } => {
                    let (ino, name) = (*ino, b"user.x".to_vec());
                    let query = Query::GetXattr {
                        ino,
                        name: name.clone(),
                    };
                    let value = match namespace::query(tables, &caller(), &query) {
                        Ok(Reply::Bytes(value)) => Some(value),
                        _ => None,
                    };
                    touched.push((Object::Xattr(ino, name), Value::Bytes(value)));
                }
                Change::Gone { ino } => touched.push((Object::Attr(*ino), Value::Gone)),
            }
        }
        let mut made = Vec::new();
        for (object, value) in touched {
            let at = self.enter(&object, value);
            made.push((object, at));
        }
        if let Some(by) = by {
            self.changed_by.entry(by).or_insert(made);
        }
    }

    /// Enters what is in the log. Returns its place.
    fn enter(&mut self, object: &Object, value: Value) -> usize {
        let versions = self.versions_of(object);
        let is_it = |version: &Version| {
            version.is_awaited() && (version.value == value || version.value == Value::Unlisted)
        };
        if let Some(at) = versions.iter().position(is_it) {
            versions[at].value = value;
            // One command may have brought several.
            let awaited = versions[..=at].iter_mut();
            for version in awaited.filter(|version| version.is_awaited()) {
                version.ahead = None;
            }
            return at;
        }
        let awaited = versions.iter().find(|version| version.is_awaited());
        assert!(
            awaited.is_none(),
            "{object:?} is {value:?}, its maker shows {awaited:?}"
        );
        let last = versions.iter().rposition(|version| !version.is_lost());
        match last {
            Some(last) if versions[last].value == value => last,
            _ => {
                versions.push(Version { value, ahead: None });
                versions.len() - 1
            }
        }
    }

    fn versions_of(&mut self, object: &Object) -> &mut Vec<Version> {
        self.versions.entry(object.clone()).or_insert_with(|| {
            let value = match object {
                Object::Attr(_) => Value::Gone,
                Object::Name(..) => Value::Name(None),
                Object::Listing(_) => Value::Listing(Vec::new()),
                Object::Xattr(..) => Value::Bytes(None),
            };
            vec![Version { value, ahead: None }]
        })
    }

    /// A mount has made something in its memory, and shows the directory so from now on: it is acknowledged.
    pub(crate) fn made(
        &mut self,
        now: Duration,
        session: SessionId,
        object: &NewObject,
        (attr, dir): (&Attr, &Attr),
    ) {
        let (parent, name) = (object.parent, object.name.clone());
        let versions = [
            (Object::Name(parent, name), Value::Name(Some(attr.ino))),
            (Object::Attr(attr.ino), Value::Attr(strip(attr))),
            (Object::Attr(parent), Value::Attr(strip(dir))),
            (Object::Listing(parent), Value::Unlisted),
        ];
        for (object, value) in versions {
            self.show_ahead(now, session, &object, value);
        }
        let made = self.made.entry(session).or_default();
        made.push_back(attr.clone());
    }

    /// A mount has set attributes in its memory: it is acknowledged.
    pub(crate) fn set(&mut self, now: Duration, session: SessionId, attr: &Attr) {
        let object = Object::Attr(attr.ino);
        self.show_ahead(now, session, &object, Value::Attr(strip(attr)));
        self.made.entry(session).or_default();
    }

    fn show_ahead(&mut self, now: Duration, session: SessionId, object: &Object, value: Value) {
        let ahead = Some(Ahead {
            session,
            made: now,
            is_lost: false,
        });
        let versions = self.versions_of(object);
        versions.push(Version { value, ahead });
        let last = versions.len() - 1;
        self.raise(object, now, last);
    }

    /// What a session has made comes into the log in the order in which it was made, as it was shown.
    fn made_is_there(&mut self, session: SessionId, changes: &[Change]) {
        let Some(made) = self.made.get_mut(&session) else {
            return;
        };
        for change in changes {
            let Change::Name {
                entry: Some(entry), ..
            } = change
            else {
                continue;
            };
            let Some(at) = made.iter().position(|attr| attr.ino == entry.ino) else {
                continue;
            };
            assert_eq!(at, 0, "{entry:?} comes before {:?}", made.front());
            let made = made.pop_front();
            let is = changes.iter().find_map(|change| match change {
                Change::Attr(attr) if attr.ino == entry.ino => Some(attr),
                _ => None,
            });
            if entry.kind == FileKind::Regular {
                assert_eq!(is, made.as_ref(), "its maker has shown it otherwise");
            }
        }
    }

    fn raise(&mut self, object: &Object, now: Duration, version: usize) {
        let floors = self.floors.entry(object.clone()).or_default();
        if floors.last().is_none_or(|(_, known)| *known < version) {
            floors.push((now, version));
        }
    }

    /// A command was acknowledged to its client.
    pub(crate) fn acknowledged(&mut self, now: Duration, session: SessionId, sequence: u64) {
        let made = self.changed_by.get(&(session, sequence)).cloned();
        for (object, version) in made.unwrap_or_default() {
            self.raise(&object, now, version);
        }
    }

    /// Judges a read that is complete.
    pub(crate) fn read(
        &mut self,
        (who, session): (usize, SessionId),
        began: Duration,
        now: Duration,
        object: &Object,
        is_like: impl Fn(&Value) -> bool,
    ) {
        let floors = self
            .floors
            .get(object)
            .map_or(&[][..], |floors| &floors[..]);
        let at = floors.partition_point(|(at, _)| *at < began);
        let mut floor = at.checked_sub(1).map_or(0, |at| floors[at].1);
        let versions = self.versions_of(object);
        while versions[floor].is_lost() {
            floor -= 1;
        }
        let is_seen = |version: &Version| {
            let ahead = version.ahead;
            ahead.is_none_or(|ahead| ahead.session == session) && is_like(&version.value)
        };
        let found = versions[floor..].iter().position(is_seen);
        let Some(found) = found else {
            panic!(
                "mount {who} read an old {object:?} at {now:?}, begun at {began:?}: known was {:?}, there are {:?}, \
                 it was {:?}",
                versions.get(floor),
                versions.len() - floor,
                versions.iter().rposition(is_seen).map(|at| floor - at)
            );
        };
        self.raise(object, now, floor + found);
    }

    pub(crate) fn write_begins(
        &mut self,
        now: Duration,
        register: Register,
        value: u64,
        session: SessionId,
    ) {
        self.registers.entry(register).or_default().push(Write {
            value,
            session,
            began: now,
            acknowledged: None,
            known: None,
            reached: false,
            synced: false,
            lost: false,
        });
    }

    fn write_mut(&mut self, register: Register, value: u64) -> Option<&mut Write> {
        let writes = self.registers.get_mut(&register)?;
        writes.iter_mut().find(|write| write.value == value)
    }

    pub(crate) fn write_ends(&mut self, now: Duration, register: Register, value: u64) {
        let write = self.write_mut(register, value).expect("it has begun");
        write.acknowledged = Some(now);
        write.known.get_or_insert(now);
    }

    pub(crate) fn reached(&mut self, register: Register, value: u64) {
        if let Some(write) = self.write_mut(register, value) {
            write.reached = true;
        }
    }

    /// A session has ended, and its term is over: times that reached nothing are lost, and what it made.
    pub(crate) fn publishes_no_more(&mut self, session: SessionId) {
        if let Some(lost) = self.made.remove(&session) {
            self.lost_made += lost.len();
            let versions = self.versions.values_mut().flatten();
            let ahead = versions.filter_map(|version| version.ahead.as_mut());
            for ahead in ahead.filter(|ahead| ahead.session == session) {
                ahead.is_lost = true;
            }
        }
        self.lose(session, |register| matches!(register, Register::Time(_)));
    }

    /// A session is shut out: what reached nothing is lost.
    pub(crate) fn fenced(&mut self, session: SessionId) {
        self.lose(session, |_| true);
    }

    fn lose(&mut self, session: SessionId, which: impl Fn(&Register) -> bool) {
        let mut lost = 0;
        let registers = self.registers.iter_mut();
        for (register, writes) in registers.filter(|(register, _)| which(register)) {
            for write in writes.iter_mut().filter(|write| write.session == session) {
                if !write.reached && !write.lost {
                    assert!(
                        !write.synced,
                        "what was synced is lost: {register:?} {write:?}"
                    );
                    write.lost = true;
                    lost += usize::from(write.acknowledged.is_some());
                }
            }
        }
        self.lost += lost;
    }

    /// An fsync that began at `began` is done.
    pub(crate) fn synced(&mut self, ino: InodeId, session: SessionId, began: Duration) {
        let versions = self.versions_of(&Object::Attr(ino));
        let ahead = versions.iter().filter_map(|version| version.ahead);
        let mut missing = ahead.filter(|ahead| ahead.session == session && ahead.made < began);
        assert_eq!(
            missing.next().map(|ahead| ahead.made),
            None,
            "{ino} is synced and not in the log"
        );
        for (register, writes) in &mut self.registers {
            if register.ino() != ino {
                continue;
            }
            // One before the last may have been overwritten before it reached anything.
            let last = writes.iter_mut().rfind(|write| write.session == session);
            if let Some(write) = last
                && write.acknowledged.is_some_and(|at| at < began)
            {
                assert!(
                    write.reached,
                    "synced, and not there: {register:?} {write:?}"
                );
                write.synced = true;
            }
        }
    }

    /// Judges a read of a register; `None` is what was there before the first write.
    pub(crate) fn read_register(
        &mut self,
        who: usize,
        began: Duration,
        now: Duration,
        register: Register,
        value: Option<u64>,
    ) {
        let Some(writes) = self.registers.get_mut(&register) else {
            return;
        };
        let seen = writes.iter().position(|write| Some(write.value) == value);
        let over = match seen {
            Some(at) => writes[at].acknowledged,
            None => Some(Duration::ZERO),
        };
        if let Some(over) = over {
            let newer = writes.iter().find(|write| {
                !write.lost && write.began > over && write.known.is_some_and(|at| at < began)
            });
            assert!(
                newer.is_none(),
                "mount {who} read an old {register:?} at {now:?}, begun at {began:?}: {value:?} of {:?}, known was \
                 {newer:?}",
                seen.map(|at| &writes[at]),
            );
        }
        if let Some(at) = seen {
            writes[at].known.get_or_insert(now);
        }
    }
}

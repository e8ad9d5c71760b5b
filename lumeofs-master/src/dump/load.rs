//! What a dump holds, and the first master of a new cluster made from it.
//!
//! What changes on the way is decided in [`lumeofs_meta::restore`]: ids, epochs, eras and the like of the lost masters
//! are not used again.

use super::GROUPS;
use super::file::{Block, DumpReader, GroupHead, Head, bad};
use crate::raft::{Restored, rows};
use crate::superblock::Superblock;
use anyhow::Result;
use lumeofs_base::{Code, FsError, FsResult, NodeId, NodeKind, entropy};
use lumeofs_meta::RECORD_FORMAT;
use lumeofs_meta::restore::{Contents, Controller, INDEX_JUMP, Metadata, Row, TERM_JUMP};
use lumeofs_proto::auth::{Credentials, Identity};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// A group of a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSummary {
    /// The last entry of its log that the rows contain.
    pub index: u64,
    /// The term of that entry.
    pub term: u64,
    /// Rows.
    pub rows: u64,
    /// Bytes of rows.
    pub bytes: u64,
}

/// A dump that was read whole and is sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// What it says of itself.
    pub head: Head,
    /// Its groups by name; all of [`GROUPS`].
    pub groups: BTreeMap<String, GroupSummary>,
    /// What is in it.
    pub contents: Contents,
}

/// The master to make.
#[derive(Clone, Debug)]
pub struct NewMaster<'a> {
    /// Its data directory. It must not hold a node.
    pub data_dir: &'a Path,
    /// `host:port` that others reach it by.
    pub advertise: &'a str,
    /// Cluster and secret, those of the dump's cluster.
    pub credentials: Credentials,
}

/// What was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The id of the new master.
    pub master: NodeId,
}

/// Reads a dump to its end. `progress` hears of the bytes of rows so far.
///
/// # Errors
/// It is no dump, cut off, damaged, or of a newer release.
pub fn inspect(input: impl Read, progress: &mut dyn FnMut(u64)) -> FsResult<Summary> {
    let mut contents = Contents::default();
    let mut groups: BTreeMap<String, GroupSummary> = BTreeMap::new();
    let bytes = Cell::new(0);
    let head = read(
        input,
        &mut |_| Ok(()),
        &mut |_, rows| {
            for (key, value) in rows {
                contents.add(key, value);
            }
            bytes.set(bytes.get() + size(rows));
            progress(bytes.get());
            Ok(())
        },
        &mut |group, rows| {
            let before: u64 = groups.values().map(|group| group.bytes).sum();
            let summary = GroupSummary {
                index: group.index,
                term: group.term,
                rows,
                bytes: bytes.get() - before,
            };
            groups.insert(group.name.clone(), summary);
            Ok(())
        },
    )?;
    Ok(Summary {
        head,
        groups,
        contents,
    })
}

/// Makes the first master of a new cluster, from a dump that [`inspect`] has found sound. An attempt that was broken
/// off leaves a directory that no master starts with.
///
/// # Errors
/// The directory is in use, the dump is of another cluster, or it cannot be written.
pub fn load(
    input: impl Read,
    summary: &Summary,
    new: &NewMaster<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<Loaded> {
    let cluster = new.credentials.cluster;
    if summary.head.cluster != cluster {
        let text = format!(
            "the dump is of cluster {}, the secret of {cluster}: datanodes accept only their own, so give the secret file \
             of the dump's cluster",
            summary.head.cluster
        );
        return Err(FsError::new(Code::Refused, text).into());
    }
    let master = summary.contents.first_master();
    let superblock = Superblock::open(
        new.data_dir,
        &Identity {
            credentials: new.credentials.clone(),
            node: master,
            kind: NodeKind::Master,
        },
    )?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let index_of = |group: &GroupHead| group.index + INDEX_JUMP;
    // What is being made; the callbacks share it.
    let making: RefCell<Option<(Restored, Change)>> = RefCell::new(None);
    let mut bytes = 0;
    read(
        input,
        &mut |group| {
            let change = match group.name == GROUPS[0] {
                true => Change::Metadata(Metadata::default()),
                false => {
                    let controller = Controller::new(index_of(group), master, new.advertise);
                    Change::Controller(controller)
                }
            };
            let restored = Restored::begin(new.data_dir, &group.name)?;
            *making.borrow_mut() = Some((restored, change));
            Ok(())
        },
        &mut |_, rows| {
            bytes += size(rows);
            progress(bytes);
            let mut making = making.borrow_mut();
            let (restored, change) = making.as_mut().expect("a group has begun");
            let changed = rows.iter();
            let changed = changed.filter_map(|(key, value)| change.row(key, value));
            restored.add(&changed.collect::<Vec<Row>>())
        },
        &mut |group, _| {
            let (mut restored, change) = making.take().expect("a group has begun");
            restored.add(&change.end())?;
            let place = (master.get(), new.advertise);
            let finished = restored.finish(place, index_of(group), group.term + TERM_JUMP);
            runtime.block_on(finished)
        },
    )?;
    drop(superblock);
    Ok(Loaded { master })
}

/// What changes in the rows of the group that is being read.
enum Change {
    Metadata(Metadata),
    Controller(Controller),
}

impl Change {
    fn row(&mut self, key: &[u8], value: &[u8]) -> Option<Row> {
        match self {
            Self::Metadata(metadata) => metadata.row(key, value),
            Self::Controller(controller) => controller.row(key, value),
        }
    }

    fn end(self) -> Vec<Row> {
        match self {
            Self::Metadata(metadata) => metadata.end(),
            Self::Controller(controller) => controller.end(u128::from_le_bytes(entropy::bytes())),
        }
    }
}

type Rows<'a> = [(&'a [u8], &'a [u8])];

fn size(rows: &Rows<'_>) -> u64 {
    let sizes = rows.iter().map(|(key, value)| key.len() + value.len());
    sizes.sum::<usize>() as u64
}

/// Reads a dump to its end; tells of the beginning of each group, of its rows, and of its end.
fn read(
    input: impl Read,
    begins: &mut dyn FnMut(&GroupHead) -> FsResult<()>,
    visit: &mut dyn FnMut(&GroupHead, &Rows<'_>) -> FsResult<()>,
    ends: &mut dyn FnMut(&GroupHead, u64) -> FsResult<()>,
) -> FsResult<Head> {
    let mut reader = DumpReader::open(input)?;
    let records = reader.head().records;
    if records != u32::from(RECORD_FORMAT) {
        return Err(bad(format_args!(
            "the dump holds records of version {records}, this program knows {RECORD_FORMAT}: use the release that wrote it"
        )));
    }
    for name in GROUPS {
        let group = match reader.next_block()? {
            Block::Group(group) if group.name == name => group,
            other => return Err(unexpected(&other, name)),
        };
        begins(&group)?;
        let mut count = 0;
        loop {
            match reader.next_block()? {
                Block::Rows(piece) => {
                    let rows = rows(&piece)?;
                    count += rows.len() as u64;
                    visit(&group, &rows)?;
                }
                Block::GroupEnd(expected) if expected == count => break,
                other => return Err(unexpected(&other, name)),
            }
        }
        ends(&group, count)?;
    }
    match reader.next_block()? {
        Block::End => Ok(reader.head().clone()),
        other => Err(unexpected(&other, "nothing more")),
    }
}

fn unexpected(block: &Block, wanted: &str) -> FsError {
    let is = match block {
        Block::Group(group) => format!("group {:?} begins", group.name),
        Block::Rows(_) => "rows come".to_owned(),
        Block::GroupEnd(rows) => format!("a group ends that says to have {rows} rows"),
        Block::End => "the dump ends".to_owned(),
    };
    bad(format_args!(
        "the dump is damaged: {is} where {wanted} was expected"
    ))
}

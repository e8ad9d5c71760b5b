//! Chunks, sizes, truncation and its tail, orphans and their purge.

use super::*;
use crate::op::{ChunkRef, CreateMode, SetAttr};
use lumeofs_base::limits::{CHUNK_SIZE_BYTES, FILE_SIZE_BYTES_MAX};
use lumeofs_base::{ChunkIndex, FileKind};

const ROOT: InodeId = InodeId::ROOT;
const CHUNK: u64 = CHUNK_SIZE_BYTES;

fn truncate(ino: InodeId, size: u64) -> Mutation {
    Mutation::SetAttr {
        ino,
        set: SetAttr {
            size: Some(size),
            ..SetAttr::default()
        },
    }
}

fn publish(ino: InodeId, size: u64, truncations: u32) -> Mutation {
    Mutation::Publish {
        ino,
        size,
        truncations,
        clear_suid: false,
    }
}

fn append(ino: InodeId, len: u64) -> Mutation {
    Mutation::Append {
        ino,
        len,
        clear_suid: false,
    }
}

fn allocate(ino: InodeId, first: u32, count: u32) -> Mutation {
    Mutation::Allocate {
        ino,
        first: ChunkIndex(first),
        count,
    }
}

fn chunks(outcome: Outcome) -> Vec<ChunkRef> {
    match outcome {
        Ok(Reply::Chunks { chunks, .. } | Reply::Appended { chunks, .. }) => chunks,
        other => panic!("{other:?}"),
    }
}

fn indices(chunks: &[ChunkRef]) -> Vec<u32> {
    chunks.iter().map(|chunk| chunk.index.0).collect()
}

impl Fixture {
    fn rows(&self, ino: InodeId) -> Vec<ChunkRef> {
        chunks(self.query(&Query::Chunks {
            ino,
            first: ChunkIndex(0),
            count: 16_384,
        }))
    }

    fn freed(&self) -> usize {
        namespace::freed_chunks_after(&self.tables, ChunkId(0), usize::MAX).len()
    }

    fn purge(&mut self, inos: &[InodeId]) -> Vec<InodeId> {
        match self.internal(Internal::Purge {
            inos: inos.to_vec(),
        }) {
            Ok(Reply::Purged { remaining }) => remaining,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn allocation_fills_holes_and_spreads_over_the_groups() {
    let mut fixture = Fixture::new();
    let ino = fixture.file(ROOT, "a");
    assert_eq!(
        indices(&fixture.rows(ino)),
        [0],
        "the first chunk comes with the file"
    );
    assert_eq!(indices(&chunks(fixture.mutate(allocate(ino, 2, 1)))), [2]);
    let all = chunks(fixture.mutate(allocate(ino, 0, 4)));
    assert_eq!(indices(&all), [0, 1, 2, 3]);
    let mut groups: Vec<_> = all.iter().map(|chunk| chunk.group.0).collect();
    groups.sort_unstable();
    assert_eq!(groups, [1, 2, 2, 3]);
    assert_eq!(fixture.rows(ino), all);
    let last = (FILE_SIZE_BYTES_MAX / CHUNK - 1) as u32;
    assert!(fixture.mutate(allocate(ino, last, 1)).is_ok());
    assert_eq!(fixture.refused(allocate(ino, last, 2)), Code::FileTooBig);
    assert_eq!(fixture.refused(allocate(ino, 0, 65)), Code::Invalid);
    assert_eq!(fixture.refused(allocate(ino, 0, 0)), Code::Invalid);
    assert_eq!(fixture.refused(allocate(ROOT, 0, 1)), Code::Invalid);
    fixture.check();
}

#[test]
fn without_a_group_files_are_made_but_hold_no_data() {
    let mut fixture = Fixture::new();
    fixture.groups.clear();
    let ino = fixture.file(ROOT, "a");
    assert!(!namespace::has_allocated(&fixture.tables));
    assert_eq!(fixture.rows(ino), []);
    assert_eq!(fixture.refused(allocate(ino, 0, 1)), Code::NoSpace);
    assert_eq!(fixture.refused(append(ino, 1)), Code::NoSpace);
    assert_eq!(fixture.attr(ino).size, 0);
    fixture.check();
}

#[test]
fn blocks_are_plausible() {
    let mut fixture = Fixture::new();
    let small = fixture.file(ROOT, "small");
    assert_eq!(attr(fixture.mutate(publish(small, 100, 0))).allocated, 4096);
    let sparse = fixture.file(ROOT, "sparse");
    assert_eq!(
        attr(fixture.mutate(truncate(sparse, 1 << 40))).allocated,
        CHUNK
    );
    let usage = fixture.query(&Query::Usage).unwrap();
    assert_eq!(
        usage,
        Reply::Usage {
            inodes: 3,
            bytes: 4096 + CHUNK
        }
    );
    fixture.mutate(unlink(ROOT, "sparse")).unwrap();
    assert_eq!(fixture.purge(&[sparse]), []);
    assert_eq!(
        fixture.query(&Query::Usage).unwrap(),
        Reply::Usage {
            inodes: 2,
            bytes: 4096
        }
    );
    fixture.check();
}

#[test]
fn publishing_only_grows_a_file() {
    let mut fixture = Fixture::new();
    let ino = fixture.create(ROOT, "a", NewNode::Regular, 0o6755).ino;
    assert_eq!(attr(fixture.mutate(publish(ino, 100, 0))).size, 100);
    let after = attr(fixture.mutate(publish(ino, 50, 0)));
    assert_eq!((after.size, after.mode), (100, 0o6755));
    assert!(after.mtime > after.btime && after.ctime == after.mtime);
    let clear = Mutation::Publish {
        ino,
        size: 0,
        truncations: 0,
        clear_suid: true,
    };
    assert_eq!(attr(fixture.mutate(clear)).mode, 0o755);
    assert_eq!(
        fixture.refused(publish(ino, FILE_SIZE_BYTES_MAX + 1, 0)),
        Code::FileTooBig
    );
    assert_eq!(fixture.refused(publish(ROOT, 1, 0)), Code::Invalid);
}

#[test]
fn appends_reserve_disjoint_ranges_with_their_chunks() {
    let mut fixture = Fixture::new();
    let ino = fixture.file(ROOT, "a");
    let mut at = 0;
    for len in [10, CHUNK, CHUNK - 10, 5] {
        match fixture.mutate(append(ino, len)) {
            Ok(Reply::Appended {
                offset,
                attr,
                chunks,
            }) => {
                assert_eq!((offset, attr.size), (at, at + len));
                let expected: Vec<_> = (at / CHUNK..(at + len).div_ceil(CHUNK))
                    .map(|index| index as u32)
                    .collect();
                assert_eq!(indices(&chunks), expected);
            }
            other => panic!("{other:?}"),
        }
        at += len;
    }
    assert_eq!(fixture.refused(append(ino, u64::MAX)), Code::FileTooBig);
    assert_eq!(fixture.refused(append(ino, 65 * CHUNK)), Code::Invalid);
    fixture.check();
}

#[test]
fn a_shrink_frees_what_is_past_it_and_leaves_an_unclean_tail() {
    let mut fixture = Fixture::new();
    let ino = fixture.file(ROOT, "a");
    fixture.mutate(allocate(ino, 0, 4)).unwrap();
    fixture.mutate(publish(ino, 4 * CHUNK, 0)).unwrap();
    let shrunk = attr(fixture.mutate(truncate(ino, CHUNK + 1)));
    assert_eq!((shrunk.truncations, shrunk.tail_unclean), (1, true));
    assert_eq!(indices(&fixture.rows(ino)), [0, 1]);
    assert_eq!(fixture.freed(), 2);

    assert_eq!(
        fixture.refused(publish(ino, CHUNK + 1, 0)),
        Code::StaleWrite,
        "planned before"
    );
    assert_eq!(
        fixture.refused(publish(ino, CHUNK + 2, 1)),
        Code::StaleWrite,
        "unclean"
    );
    assert_eq!(fixture.refused(append(ino, 1)), Code::StaleWrite);
    assert_eq!(fixture.refused(truncate(ino, CHUNK + 2)), Code::StaleWrite);
    assert!(
        fixture.mutate(publish(ino, CHUNK + 1, 1)).is_ok(),
        "inside the file"
    );

    let stale = Mutation::TailClean {
        ino,
        truncations: 0,
    };
    assert_eq!(fixture.refused(stale), Code::StaleWrite);
    let clean = Mutation::TailClean {
        ino,
        truncations: 1,
    };
    assert!(!attr(fixture.mutate(clean)).tail_unclean);
    assert_eq!(
        attr(fixture.mutate(publish(ino, CHUNK + 2, 1))).size,
        CHUNK + 2
    );
    fixture.check();
}

fn extend(ino: InodeId, from: u64, size: u64, truncations: u32) -> Mutation {
    Mutation::Extend {
        ino,
        from,
        size,
        truncations,
        clear_suid: false,
    }
}

impl Fixture {
    /// Some other session comes and ends.
    fn lose_a_session(&mut self) {
        let open = Internal::OpenSession {
            nonce: 4711,
            description: String::new(),
        };
        let Ok(Reply::Session(session)) = self.internal(open) else {
            panic!("no session")
        };
        self.internal(Internal::CloseSession { session }).unwrap();
    }
}

#[test]
fn after_a_session_ended_no_file_grows_over_a_gap_before_its_tail_is_cut() {
    let mut fixture = Fixture::new();
    let ino = fixture.file(ROOT, "a");
    fixture.mutate(publish(ino, 100, 0)).unwrap();
    fixture.mutate(extend(ino, 200, 210, 0)).unwrap();
    fixture.mutate(allocate(ino, 1, 2)).unwrap();
    fixture.lose_a_session();
    // What follows the end leaves no gap.
    fixture.mutate(publish(ino, 300, 0)).unwrap();
    fixture.mutate(append(ino, 10)).unwrap();
    fixture.mutate(extend(ino, 310, 320, 0)).unwrap();
    fixture.mutate(extend(ino, 500, 0, 0)).unwrap();
    assert_eq!(
        fixture.refused(extend(ino, 321, 400, 0)),
        Code::StaleWrite,
        "written behind a gap"
    );
    assert_eq!(
        fixture.refused(extend(ino, u64::MAX, 400, 0)),
        Code::StaleWrite,
        "nothing but a gap"
    );
    assert_eq!(fixture.refused(truncate(ino, 400)), Code::StaleWrite);

    let cut = attr(fixture.mutate(Mutation::CutTail { ino }));
    assert_eq!(
        (cut.size, cut.truncations, cut.tail_unclean),
        (320, 1, true)
    );
    assert_eq!(indices(&fixture.rows(ino)), [0]);
    // Who had written by then, but not told, must write again.
    assert_eq!(fixture.refused(publish(ino, 330, 0)), Code::StaleWrite);
    assert_eq!(fixture.refused(extend(ino, 500, 510, 1)), Code::StaleWrite);
    // One that wrote since and ended before the tail is clean may have done so behind the cut.
    fixture.lose_a_session();
    let clean = |truncations| Mutation::TailClean { ino, truncations };
    fixture.mutate(clean(1)).unwrap();
    assert_eq!(fixture.refused(extend(ino, 500, 510, 1)), Code::StaleWrite);
    let cut = attr(fixture.mutate(Mutation::CutTail { ino }));
    assert_eq!((cut.truncations, cut.tail_unclean), (2, true));
    fixture.mutate(clean(2)).unwrap();
    fixture.mutate(extend(ino, 500, 510, 2)).unwrap();
    fixture.mutate(truncate(ino, 600)).unwrap();
    let again = attr(fixture.mutate(Mutation::CutTail { ino }));
    assert_eq!((again.truncations, again.tail_unclean), (2, false));
    fixture.check();
}

#[test]
fn a_file_without_chunks_or_a_new_one_has_no_bytes_of_a_lost_session() {
    let mut fixture = Fixture::new();
    let empty = fixture.file(ROOT, "empty");
    fixture.mutate(truncate(empty, 0)).unwrap();
    let short = fixture.file(ROOT, "short");
    fixture.mutate(publish(short, 10, 0)).unwrap();
    fixture.lose_a_session();
    let new = fixture.file(ROOT, "new");
    for ino in [empty, new] {
        let truncations = fixture.attr(ino).truncations;
        fixture.mutate(extend(ino, 5, 9, truncations)).unwrap();
        fixture.mutate(truncate(ino, 100)).unwrap();
    }
    // A truncation is as good as a cut.
    let shrunk = attr(fixture.mutate(truncate(short, 5)));
    let truncations = shrunk.truncations;
    let clean = Mutation::TailClean {
        ino: short,
        truncations,
    };
    fixture.mutate(clean).unwrap();
    fixture.mutate(extend(short, 7, 9, truncations)).unwrap();
    fixture.check();
}

#[test]
fn a_shrink_to_a_chunk_boundary_or_into_a_hole_is_clean() {
    let mut fixture = Fixture::new();
    let ino = fixture.file(ROOT, "a");
    fixture.mutate(allocate(ino, 2, 1)).unwrap();
    fixture.mutate(publish(ino, 3 * CHUNK, 0)).unwrap();
    let at_boundary = attr(fixture.mutate(truncate(ino, 2 * CHUNK)));
    assert_eq!(
        (at_boundary.truncations, at_boundary.tail_unclean),
        (1, false)
    );
    let in_hole = attr(fixture.mutate(truncate(ino, CHUNK + 7)));
    assert_eq!((in_hole.truncations, in_hole.tail_unclean), (2, false));
    let unclean = attr(fixture.mutate(truncate(ino, 7)));
    assert!(unclean.tail_unclean);
    let empty = attr(fixture.mutate(truncate(ino, 0)));
    assert_eq!(
        (empty.truncations, empty.tail_unclean, empty.allocated),
        (4, false, 0)
    );
    assert_eq!(fixture.rows(ino), []);
    assert_eq!(fixture.freed(), 2);
    fixture.check();
}

#[test]
fn a_truncation_to_the_present_size_discards_what_was_written_past_it() {
    let mut fixture = Fixture::new();
    let ino = fixture.file(ROOT, "a");
    fixture.mutate(publish(ino, 10, 0)).unwrap();
    fixture.mutate(allocate(ino, 1, 2)).unwrap();
    let same = attr(fixture.mutate(truncate(ino, 10)));
    assert_eq!(
        (same.size, same.truncations, same.tail_unclean),
        (10, 1, true)
    );
    assert_eq!(indices(&fixture.rows(ino)), [0]);
    assert_eq!(
        fixture.refused(publish(ino, 3 * CHUNK, 0)),
        Code::StaleWrite
    );

    let empty = fixture.file(ROOT, "empty");
    fixture.mutate(truncate(empty, 0)).unwrap();
    let nothing_left = attr(fixture.mutate(truncate(empty, 0)));
    assert_eq!(
        nothing_left.truncations, 1,
        "there was nothing to discard the second time"
    );
}

#[test]
fn sizes_are_limited_and_only_files_have_them() {
    let mut fixture = Fixture::new();
    let file = fixture.file(ROOT, "f");
    assert!(fixture.mutate(truncate(file, FILE_SIZE_BYTES_MAX)).is_ok());
    assert_eq!(
        fixture.refused(truncate(file, FILE_SIZE_BYTES_MAX + 1)),
        Code::FileTooBig
    );
    assert_eq!(fixture.refused(truncate(ROOT, 0)), Code::IsDirectory);
    let fifo = fixture.create(ROOT, "p", NewNode::Special(FileKind::Fifo, 9), 0o600);
    assert_eq!(fifo.rdev, 0);
    assert_eq!(fixture.refused(truncate(fifo.ino, 0)), Code::Invalid);
}

#[test]
fn an_unlinked_file_lives_until_it_is_purged() {
    let mut fixture = Fixture::new();
    let ino = fixture.file(ROOT, "a");
    assert_eq!(
        fixture.purge(&[ino, InodeId(999)]),
        [],
        "a linked file is not purged"
    );
    assert_eq!(attr(fixture.mutate(unlink(ROOT, "a"))).nlink, 0);
    assert_eq!(
        namespace::orphans_after(&fixture.tables, InodeId(0), 9),
        [ino]
    );
    assert_eq!(namespace::orphans_after(&fixture.tables, ino, 9), []);
    assert_eq!(attr(fixture.mutate(publish(ino, 5, 0))).size, 5);
    assert_eq!(fixture.freed(), 0);

    assert_eq!(fixture.purge(&[ino]), []);
    assert_eq!(
        fixture.query(&Query::GetAttr { ino }).unwrap_err().code,
        Code::Stale
    );
    assert_eq!(fixture.refused(publish(ino, 6, 0)), Code::Stale);
    assert_eq!(namespace::orphans_after(&fixture.tables, InodeId(0), 9), []);
    let freed = namespace::freed_chunks_after(&fixture.tables, ChunkId(0), 9);
    assert_eq!(freed.len(), 1);
    fixture
        .internal(Internal::ChunksDeleted {
            chunks: vec![freed[0].0],
        })
        .unwrap();
    assert_eq!(fixture.freed(), 0);
    fixture.check();
}

#[test]
fn a_file_made_without_a_name_gets_its_first_one_or_is_purged() {
    let mut fixture = Fixture::new();
    let dir = fixture.create(ROOT, "d", NewNode::Directory, 0o2770).ino;
    let chgrp = Mutation::SetAttr {
        ino: dir,
        set: SetAttr {
            gid: Some(5),
            mode: Some(0o2775),
            ..SetAttr::default()
        },
    };
    fixture.mutate(chgrp).unwrap();
    let before = fixture.attr(dir);
    let unnamed = || Mutation::CreateUnnamed {
        parent: dir,
        mode: CreateMode {
            mode: 0o666,
            umask: 0o022,
        },
    };
    let made = attr(fixture.mutate(unnamed()));
    assert_eq!((made.nlink, made.mode, made.gid), (0, 0o644, 5));
    assert_eq!(
        fixture.attr(dir),
        before,
        "nothing has changed in the directory"
    );
    assert_eq!(indices(&fixture.rows(made.ino)), [0]);
    let orphans = |fixture: &Fixture| namespace::orphans_after(&fixture.tables, InodeId(0), 9);
    assert_eq!(orphans(&fixture), [made.ino]);
    fixture.check();

    let link = |ino, name: &str| Mutation::Link {
        ino,
        parent: dir,
        name: name.into(),
    };
    assert_eq!(attr(fixture.mutate(link(made.ino, "a"))).nlink, 1);
    assert_eq!(attr(fixture.mutate(link(made.ino, "b"))).nlink, 2);
    assert_eq!(
        (orphans(&fixture), fixture.purge(&[made.ino])),
        (vec![], vec![])
    );
    fixture.mutate(unlink(dir, "a")).unwrap();
    fixture.mutate(unlink(dir, "b")).unwrap();
    assert_eq!(fixture.refused(link(made.ino, "a")), Code::NotFound);

    let other = attr(fixture.mutate(unnamed())).ino;
    assert_eq!(fixture.purge(&[made.ino, other]), []);
    assert_eq!((orphans(&fixture), fixture.freed()), (vec![], 2));
    assert_eq!(fixture.refused(link(other, "a")), Code::Stale);
    fixture.as_user(1000, 1000);
    assert_eq!(fixture.refused(unnamed()), Code::Access);
    fixture.check();
}

#[test]
fn a_purge_is_bounded_and_goes_on_where_it_stopped() {
    let mut fixture = Fixture::new();
    let big = fixture.file(ROOT, "big");
    for first in (0..2048).step_by(64) {
        fixture.mutate(allocate(big, first, 64)).unwrap();
    }
    for number in 0..10 {
        let name = format!("user.{number}").into_bytes();
        let mode = crate::op::XattrMode::Set;
        fixture
            .mutate(Mutation::SetXattr {
                ino: big,
                name,
                value: vec![1],
                mode,
            })
            .unwrap();
    }
    let small = fixture.file(ROOT, "small");
    fixture.mutate(unlink(ROOT, "big")).unwrap();
    fixture.mutate(unlink(ROOT, "small")).unwrap();
    let mut remaining = vec![big, small];
    let mut commands = 0;
    while !remaining.is_empty() {
        let rows_before = fixture.tables.0.len();
        remaining = fixture.purge(&remaining);
        assert!(rows_before - fixture.tables.0.len() <= 1024);
        fixture.check();
        commands += 1;
    }
    assert_eq!(commands, 3);
    assert_eq!(fixture.freed(), 2049);
}

#[test]
fn another_chunk_size_is_set_before_the_first_chunk_only() {
    let mut fixture = Fixture::new();
    let set = |bytes| Internal::SetChunkSize { bytes };
    assert_eq!(fixture.internal(set(5000)).unwrap_err().code, Code::Invalid);
    assert_eq!(fixture.internal(set(4096)).unwrap_err().code, Code::Invalid);
    fixture.internal(set(1 << 20)).unwrap();
    let ino = fixture.file(ROOT, "a");
    assert_eq!(chunks(fixture.mutate(append(ino, 3 << 20))).len(), 3);
    assert_eq!(fixture.internal(set(2 << 20)).unwrap_err().code, Code::Busy);
    fixture.internal(set(1 << 20)).unwrap();
    assert_eq!(namespace::chunk_size(&fixture.tables), 1 << 20);
    fixture.check();
}

#[test]
fn an_era_is_begun_once_however_often_it_is_asked_for() {
    let mut fixture = Fixture::new();
    assert_eq!(namespace::era(&fixture.tables), 0);
    for _ in 0..2 {
        fixture.internal(Internal::BeginEra { after: 0 }).unwrap();
        assert_eq!(namespace::era(&fixture.tables), 1);
    }
    fixture.internal(Internal::BeginEra { after: 1 }).unwrap();
    assert_eq!(namespace::era(&fixture.tables), 2);
}

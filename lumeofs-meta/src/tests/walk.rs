//! Tables read in pages, and chunks that a check queues for deletion.

use super::*;

const ROOT: InodeId = InodeId::ROOT;

fn all_chunks(fixture: &Fixture, page: usize) -> Vec<(InodeId, ChunkId, GroupId)> {
    let (mut found, mut at) = (Vec::new(), None);
    loop {
        at = namespace::chunks_after(&fixture.tables, at, page, |ino, chunk, group| {
            found.push((ino, chunk, group));
        });
        if at.is_none() {
            return found;
        }
    }
}

fn all_names(fixture: &Fixture, page: usize) -> Vec<(InodeId, Vec<u8>, InodeId)> {
    let (mut found, mut at) = (Vec::new(), None);
    loop {
        at = namespace::names_after(&fixture.tables, at, page, |parent, name, ino| {
            found.push((parent, name.to_vec(), ino));
        });
        if at.is_none() {
            return found;
        }
    }
}

fn filled() -> (Fixture, InodeId) {
    let mut fixture = Fixture::new();
    let dir = fixture.create(ROOT, "dir", NewNode::Directory, 0o755).ino;
    for number in 0..7 {
        let name = format!("f{number}");
        fixture.create(dir, &name, NewNode::Regular, 0o644);
    }
    (fixture, dir)
}

#[test]
fn pages_of_any_size_show_every_row_once() {
    let (fixture, dir) = filled();
    let chunks = all_chunks(&fixture, usize::MAX);
    let names = all_names(&fixture, usize::MAX);
    assert_eq!((chunks.len(), names.len()), (7, 8));
    for page in 1..10 {
        assert_eq!(all_chunks(&fixture, page), chunks);
        assert_eq!(all_names(&fixture, page), names);
    }
    let place = namespace::place_of_directory(&fixture.tables, dir);
    assert_eq!(place, Some((ROOT, b"dir".to_vec())));
    assert_eq!(namespace::place_of_directory(&fixture.tables, ROOT), None);
}

#[test]
fn chunks_that_a_check_found_are_queued_once_and_ids_of_the_future_are_not() {
    let (mut fixture, _) = filled();
    let next = namespace::next_chunk(&fixture.tables);
    assert_eq!(next, ChunkId(8));
    // What was allocated and has no row any more.
    let orphan = ChunkId(3);
    let (ino, ..) = all_chunks(&fixture, 100)[2];
    fixture
        .tables
        .0
        .retain(|key, _| *key != crate::keys::chunk(ino, 0));
    let free = || Internal::FreeChunks {
        chunks: vec![(orphan, GroupId(3)), (next, GroupId(1))],
    };
    fixture.internal(free()).unwrap();
    fixture.internal(free()).unwrap();
    let queued = namespace::freed_chunks_after(&fixture.tables, ChunkId(0), 100);
    assert_eq!(queued, [(orphan, GroupId(3))]);
    let group = namespace::freed_group(&fixture.tables, orphan);
    assert_eq!(group, Some(GroupId(3)));
    assert_eq!(namespace::freed_group(&fixture.tables, next), None);
}

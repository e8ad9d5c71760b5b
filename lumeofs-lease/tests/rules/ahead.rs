//! Inodes that come with a listing: what the leader tells of them, and how many a mount asks for.

use crate::fixture::{DIR, FILE, OTHER, World, attr, entry, ms, touched, unlinked};
use lumeofs_base::limits::READDIR_INODES_MAX;
use lumeofs_base::{Attr, FileKind, InodeId};
use lumeofs_lease::{Cached, Holder, Kind, Learned, Want};
use lumeofs_meta::op::{DirEntry, Listed};

const SUB: InodeId = InodeId(2001);

fn listed(ino: InodeId) -> Listed {
    Listed {
        attr: Attr {
            has_xattrs: ino == OTHER,
            ..attr(ino, 7)
        },
        first_chunk: None,
        entries: None,
    }
}

/// A mount lists [`DIR`] with these inodes, named by their place. Says which of them it was told of.
fn list(world: &mut World, mount: usize, inodes: &[InodeId]) -> Vec<InodeId> {
    let entries: Vec<DirEntry> = (3..)
        .zip(inodes)
        .map(|(cookie, ino)| entry(format!("{cookie}").as_bytes(), cookie, *ino))
        .collect();
    let mut answer = world.ask(mount, &[DIR], Want::Shared).unwrap();
    let (now, session) = (world.now, world.mounts[mount].session);
    let offered = world.table.offer(now, session, Want::Shared, inodes);
    let listed: Vec<Listed> = offered.iter().map(|grant| listed(grant.ino)).collect();
    answer.grants.extend(offered);
    let learned = Learned::Entries {
        ino: DIR,
        after: 0,
        entries: &entries,
        more: false,
        inodes: &listed,
    };
    let holder = world.holder(mount);
    holder.learn(now, answer.generation, &answer.grants, learned);
    listed.iter().map(|listed| listed.attr.ino).collect()
}

#[test]
fn what_a_listing_tells_is_answered_from_memory_until_it_changes() {
    let mut world = World::new(2);
    assert_eq!(list(&mut world, 0, &[FILE, OTHER]), [FILE, OTHER]);
    let now = world.now;
    let holder = world.holder(0);
    assert_eq!(
        holder.lookup(now, DIR, b"3"),
        Cached::Is(listed(FILE).attr),
        "by its name"
    );
    assert_eq!(holder.attr(now, OTHER), Cached::Is(listed(OTHER).attr));
    assert_eq!(
        holder.xattr(now, FILE, b"user.a"),
        Cached::Absent,
        "it has none"
    );
    assert_eq!(holder.xattr(now, OTHER, b"user.a"), Cached::Unknown);
    let changed = world.change(1, &[touched(FILE, 8)]);
    assert!(!world.table.is_heard(&changed.unheard), "it must be told");
    world.hear(0);
    assert_eq!(world.mode(0, FILE), Some(8));
}

#[test]
fn nothing_is_told_of_an_inode_that_somebody_writes_or_has_not_heard_of() {
    let mut world = World::new(3);
    world.get(1, FILE, Want::Write(FILE));
    world.get(1, OTHER, Want::Shared);
    assert_eq!(list(&mut world, 0, &[FILE, OTHER]), [OTHER]);
    assert_eq!(world.poll(1).recalls, [], "nobody is asked for its sake");
    world.change(0, &[touched(OTHER, 8)]);
    assert_eq!(
        list(&mut world, 2, &[FILE, OTHER]),
        [],
        "mount 1 has not heard"
    );
    world.hear(1);
    assert_eq!(list(&mut world, 2, &[FILE, OTHER]), [OTHER]);
}

#[test]
fn an_own_right_stays_what_it_is() {
    let mut world = World::new(1);
    world.get(0, FILE, Want::Write(FILE));
    assert_eq!(list(&mut world, 0, &[FILE, OTHER]), [OTHER]);
    assert_eq!(world.get(0, FILE, Want::Shared), Some(Kind::Exclusive));
}

#[test]
fn what_came_with_a_listing_whose_answer_was_lost_is_told_again_or_given_up() {
    let mut world = World::new(2);
    let (now, session) = (world.now, world.mounts[0].session);
    let lost = world
        .table
        .offer(now, session, Want::Shared, &[FILE, OTHER]);
    assert_eq!(lost.len(), 2);
    assert_eq!(list(&mut world, 0, &[FILE]), [FILE]);
    // The other one is given up when it turns out that it is not there.
    world.change(1, &[touched(OTHER, 8)]);
    world.hear(0);
    world.poll(0);
    assert_eq!(
        world.table.counts(),
        [2, 0, 0],
        "the directory and one file"
    );
}

#[test]
fn a_new_leader_tells_of_nothing_before_it_knows_who_writes() {
    let mut world = World::new(2);
    world.pass(ms(7_000));
    world.elect();
    world.begin(0);
    world.ask(0, &[DIR], Want::Shared).unwrap_err();
    world.begin(1);
    assert_eq!(list(&mut world, 0, &[FILE]), [FILE]);
}

#[test]
fn who_got_no_lease_hears_nothing_and_keeps_nothing() {
    let mut world = World::new(1);
    let (now, session) = (world.now, world.mounts[0].session);
    let grants = world.table.offer(now, session, Want::Nothing, &[FILE]);
    assert!(grants.is_empty());
    assert_eq!(world.table.counts(), [0, 0, 0]);
}

#[test]
fn a_file_that_a_listing_told_of_is_open_without_a_word_and_its_end_is_heard() {
    let mut world = World::new(2);
    list(&mut world, 0, &[FILE]);
    let now = world.now;
    assert!(world.holder(0).open(now, FILE));
    world.change(1, &[unlinked(FILE)]);
    world.poll(0);
    assert_eq!(world.poll(0).opened, [FILE]);
}

/// Lists directories whose inodes are used or not. Says with how many inodes each was asked for.
fn walk(world: &mut World, times: std::ops::Range<u64>, is_used: bool) -> Vec<usize> {
    let mut counts = Vec::new();
    for time in times {
        let count = world.holder(0).listed_ahead();
        let inodes: Vec<InodeId> = (0..count as u64)
            .map(|at| InodeId(10_000 + time * 1_000 + at))
            .collect();
        list(world, 0, &inodes);
        let now = world.now;
        for ino in inodes.into_iter().filter(|_| is_used) {
            assert_ne!(world.holder(0).attr(now, ino), Cached::Unknown);
        }
        counts.push(count);
    }
    counts
}

#[test]
fn what_is_used_is_asked_for_and_what_is_not_ends() {
    let mut world = World::new(1);
    let most = READDIR_INODES_MAX;
    assert_eq!(walk(&mut world, 0..20, true), vec![most; 20]);
    let unused = walk(&mut world, 20..26, false);
    assert_eq!(unused, [most, most, most, most, 0, 0]);
    // Names that were asked for one by one let it be tried again.
    let tries = (0..64).filter(|_| world.holder(0).look_ahead(FILE, b"x").is_some());
    assert_eq!(tries.count(), 0, "of this nothing is known");
    assert_eq!(walk(&mut world, 26..28, true), [64, most]);
}

fn ahead(holder: &mut Holder, name: &[u8]) -> Option<(u64, usize)> {
    let ahead = holder.look_ahead(DIR, name)?;
    Some((ahead.after, ahead.count))
}

#[test]
fn what_did_not_come_is_not_charged() {
    let mut world = World::new(1);
    for _ in 0..100 {
        let count = world.holder(0).listed_ahead();
        assert_eq!(count, READDIR_INODES_MAX);
        world.holder(0).not_listed(count - 5);
    }
}

#[test]
fn names_that_are_looked_up_one_by_one_are_a_walk_after_some() {
    let mut world = World::new(1);
    let most = READDIR_INODES_MAX;
    let learned = Learned::Name {
        parent: DIR,
        name: b"a",
        attr: None,
    };
    let answer = world.ask(0, &[DIR], Want::Shared).unwrap();
    let now = world.now;
    assert_eq!(ahead(world.holder(0), b"a"), None);
    let holder = world.holder(0);
    holder.learn(now, answer.generation, &answer.grants, learned);
    assert_eq!(ahead(holder, b"b"), None);
    assert_eq!(ahead(holder, b"c"), None);
    assert_eq!(ahead(holder, b"d"), Some((0, most)));
    // Once it is listed: what follows the name, and nothing for one that is not there.
    world.list(0, &[entry(b"a", 30, FILE), entry(b"b", 40, OTHER)]);
    assert_eq!(ahead(world.holder(0), b"b"), Some((39, most)));
    assert_eq!(ahead(world.holder(0), b"c"), None);
}

#[test]
fn a_name_that_is_looked_up_leaves_a_listing_that_is_read_in_part() {
    let mut world = World::new(1);
    let answer = world.ask(0, &[DIR], Want::Shared).unwrap();
    let now = world.now;
    let entries = [entry(b"a", 30, FILE)];
    let learned = Learned::Entries {
        ino: DIR,
        after: 0,
        entries: &entries,
        more: true,
        inodes: &[],
    };
    let holder = world.holder(0);
    holder.learn(now, answer.generation, &answer.grants, learned);
    let found = world.ask(0, &[DIR, OTHER], Want::Shared).unwrap();
    let other = attr(OTHER, 1);
    let learned = Learned::Name {
        parent: DIR,
        name: b"z",
        attr: Some(&other),
    };
    let holder = world.holder(0);
    holder.learn(now, found.generation, &found.grants, learned);
    assert_eq!(ahead(holder, b"b"), None);
    assert_eq!(ahead(holder, b"c"), None);
    let most = READDIR_INODES_MAX;
    assert_eq!(ahead(holder, b"d"), Some((30, most)), "it goes on");
}

#[test]
fn what_is_in_a_listed_directory_comes_with_the_listing() {
    let mut world = World::new(2);
    let inner = [entry(b"a", 3, OTHER), entry(b"b", 4, FILE)];
    let directory = Attr {
        kind: FileKind::Directory,
        ..attr(SUB, 7)
    };
    let mut answer = world.ask(0, &[DIR], Want::Shared).unwrap();
    let (now, session) = (world.now, world.mounts[0].session);
    let offered = world
        .table
        .offer(now, session, Want::Shared, &[SUB, OTHER, FILE]);
    answer.grants.extend(offered);
    let with_entries = Listed {
        attr: directory.clone(),
        first_chunk: None,
        entries: Some(inner.to_vec()),
    };
    let inodes = [with_entries, listed(OTHER), listed(FILE)];
    let learned = Learned::Entries {
        ino: DIR,
        after: 0,
        entries: &[entry(b"sub", 9, InodeId(2001))],
        more: false,
        inodes: &inodes,
    };
    let holder = world.holder(0);
    holder.learn(now, answer.generation, &answer.grants, learned);
    let Cached::Is(listing) = holder.listing(now, InodeId(2001), 0, 10) else {
        panic!("the directory is not listed from memory");
    };
    assert_eq!((listing.entries, listing.more), (inner.to_vec(), false));
    assert_eq!(holder.attr(now, InodeId(2001)), Cached::Is(directory));
    assert_eq!(
        holder.lookup(now, InodeId(2001), b"b"),
        Cached::Is(listed(FILE).attr)
    );
    assert_eq!(
        holder.lookup(now, InodeId(2001), b"c"),
        Cached::Absent,
        "it is complete"
    );
}

//! What is made in memory under the exclusive lease of a directory.

use crate::fixture::{DIR, OTHER, World, attr, entry, ms, named, session, touched};
use lumeofs_base::{Attr, FileKind, InodeId};
use lumeofs_lease::{Act, Blocked, Cached, Created, Kind, Learned, Told, Touch, Want};
use lumeofs_meta::change::Change;
use lumeofs_meta::op::{Caller, CreateMode, NewNode, NewObject, SetAttr, Step};

const NEW: InodeId = InodeId(3000);
/// What [`DIR`] is in.
const ABOVE: InodeId = InodeId(1999);

fn plain_dir(entries: u64) -> Attr {
    Attr {
        has_xattrs: false,
        nlink: 2,
        size: entries,
        ..attr(DIR, 0o755)
    }
}

impl World {
    /// A mount makes a file in [`DIR`] by asking the leader, and takes the reply.
    fn create(&mut self, mount: usize, name: &[u8], cookie: u64, ino: InodeId) -> Vec<Kind> {
        let of = session(mount);
        (self.table)
            .before_change(self.now, of, &[], &[DIR])
            .expect("nothing stands in the way");
        let file = Attr {
            has_xattrs: false,
            ..attr(ino, 0o644)
        };
        let changes = [
            named(name, cookie, Some(ino)),
            Change::Attr(plain_dir(1)),
            Change::Attr(file.clone()),
        ];
        let created = Created::Now {
            attr: &file,
            above: Some(ABOVE),
        };
        let changed = (self.table).changed(self.now, of, &changes, &created);
        self.table.change_over(of, &[], &[DIR]);
        self.did(mount, &changed, &changes);
        changed.grants.iter().map(|grant| grant.kind).collect()
    }

    /// A mount has all names in [`DIR`], and makes the first of its files there.
    fn alone_in_dir(&mut self, mount: usize) -> Vec<Kind> {
        self.get(mount, DIR, Want::Shared);
        self.list(mount, &[]);
        self.create(mount, b"first", 50, InodeId(2999))
    }

    fn make(&mut self, mount: usize, name: &[u8], ino: InodeId) -> Option<Attr> {
        let now = self.now;
        self.holder(mount).make(now, (DIR, name), |time| {
            Some(NewObject {
                ino,
                parent: DIR,
                name: name.to_vec(),
                node: NewNode::Regular,
                mode: CreateMode::from(0o644),
                uid: 1,
                gid: 1,
                time,
            })
        })
    }

    /// The leader applies what a mount has made. The reply is with the caller.
    fn tell(&mut self, mount: usize) -> (Vec<Change>, lumeofs_lease::Changed) {
        let steps = self.holder(mount).take_made(100, 1 << 20);
        let objects = steps.iter().filter_map(|step| match step {
            Step::Make(object) => Some(object.clone()),
            Step::Set { .. } => None,
        });
        let objects: Vec<NewObject> = objects.collect();
        let mut changes = Vec::new();
        for (at, object) in objects.iter().enumerate() {
            changes.push(named(&object.name, 100 + at as u64, Some(object.ino)));
            changes.push(Change::Attr(Attr {
                has_xattrs: false,
                ..attr(object.ino, 0o644)
            }));
        }
        changes.push(Change::Attr(plain_dir(1 + objects.len() as u64)));
        let of = session(mount);
        (self.table)
            .before_change(self.now, of, &[], &[DIR])
            .expect("nobody else has it");
        let created = Created::Ahead(objects.iter().map(|object| object.ino).collect());
        let changed = self.table.changed(self.now, of, &changes, &created);
        self.table.change_over(of, &[], &[DIR]);
        (changes, changed)
    }

    fn told(&mut self, mount: usize, changes: &[Change], changed: &lumeofs_lease::Changed) {
        let generation = self.table.generation(session(mount)).unwrap_or_default();
        let count = changes.len() / 2;
        let now = self.now;
        self.holder(mount).told(
            now,
            &Told {
                generation,
                number: changed.number,
                is_done: &vec![true; count],
                changes: Some(changes),
                grants: &changed.grants,
            },
        );
    }
}

#[test]
fn who_is_alone_in_a_directory_gets_it_exclusively_with_the_first_thing_it_makes() {
    let mut world = World::new(2);
    let kinds = world.alone_in_dir(0);
    assert_eq!(kinds, [Kind::Exclusive, Kind::Exclusive]);

    let mut world = World::new(2);
    world.get(1, DIR, Want::Shared);
    assert_eq!(world.alone_in_dir(0), [Kind::Exclusive], "of the file only");
}

#[test]
fn what_was_made_is_seen_at_once_by_its_maker_and_listed_when_the_leader_knows_it() {
    let mut world = World::new(1);
    world.alone_in_dir(0);
    let made = world.make(0, b"new", NEW).expect("it is alone");
    let now = world.now;
    assert_eq!(world.holder(0).lookup(now, DIR, b"new"), Cached::Is(made));
    assert!(world.holder(0).open(now, NEW));
    assert_eq!(world.holder(0).listing(now, DIR, 0, 10), Cached::Unknown);
    assert!(world.holder(0).is_ahead_in(DIR) && world.holder(0).is_ahead_in(NEW));
    assert!(matches!(world.holder(0).attr(now, DIR), Cached::Is(dir) if dir.size == 2));

    let (changes, changed) = world.tell(0);
    world.told(0, &changes, &changed);
    assert!(!world.holder(0).is_ahead_in(DIR) && !world.holder(0).is_ahead_in(NEW));
    let Cached::Is(listing) = world.holder(0).listing(now, DIR, 0, 10) else {
        panic!("all of it is known");
    };
    let names: Vec<_> = listing
        .entries
        .iter()
        .map(|entry| &entry.name[..])
        .collect();
    assert_eq!(names, [&b"first"[..], b"new"]);
    // Under the lease that it was used under all the while.
    assert!(world.holder(0).is_writer(NEW));
}

#[test]
fn nothing_is_made_of_a_name_that_is_there_or_not_known_or_about_to_change() {
    let mut world = World::new(1);
    world.alone_in_dir(0);
    assert!(world.make(0, b"first", NEW).is_none());
    let touch = [Touch::Name(DIR, b"busy".to_vec())];
    world.holder(0).begin_change(&touch);
    assert!(world.make(0, b"busy", NEW).is_none());
    world.holder(0).end_change(&touch);
    assert!(world.make(0, b"busy", NEW).is_some());
    world.pass(lumeofs_lease::TERM_OF_HOLDER);
    assert!(
        world.make(0, b"late", NEW).is_none(),
        "the lease may be over"
    );
}

#[test]
fn others_wait_until_the_leader_knows_what_was_made() {
    let mut world = World::new(2);
    world.alone_in_dir(0);
    world.make(0, b"new", NEW).unwrap();
    assert_eq!(world.ask(1, &[DIR], Want::Shared).unwrap_err(), Blocked);
    world.poll(0);
    assert!(world.holder(0).take_acts().contains(&Act::GiveBack(DIR)));
    assert!(
        world.make(0, b"more", InodeId(3001)).is_none(),
        "it is given back"
    );
    let (changes, changed) = world.tell(0);
    assert_eq!(world.ask(1, &[DIR], Want::Shared).unwrap_err(), Blocked);
    world.told(0, &changes, &changed);
    let holder = world.holder(0);
    holder.gave_back(holder.generation(), DIR);
    world.poll(0);
    world
        .ask(1, &[DIR], Want::Shared)
        .expect("it was given back");
    // Both use it now: nobody gets it for a while.
    world.hear(1);
    assert!(world.make(0, b"more", InodeId(3001)).is_none());
}

#[test]
fn a_change_of_another_in_the_directory_waits_too() {
    let mut world = World::new(2);
    world.alone_in_dir(0);
    let blocked = world
        .table
        .before_change(world.now, session(1), &[], &[DIR]);
    assert_eq!(blocked.unwrap_err(), Blocked);
}

#[test]
fn two_who_make_things_in_one_directory_do_not_hand_it_to_and_fro() {
    let mut world = World::new(2);
    world.alone_in_dir(0);
    world
        .table
        .before_change(world.now, session(1), &[], &[DIR])
        .unwrap_err();
    world.give_back(0, DIR);
    world.get(1, DIR, Want::Shared);
    assert_eq!(
        world.create(1, b"second", 60, InodeId(2998)),
        [Kind::Exclusive],
        "of the file"
    );
    world.hear(0);
    world.hear(1);
    assert_eq!(
        world.create(0, b"third", 70, InodeId(2997)),
        [Kind::Exclusive],
        "of the file"
    );
}

#[test]
fn what_the_leader_does_not_know_is_asserted_at_the_next_one() {
    let mut world = World::new(2);
    world.alone_in_dir(0);
    world.make(0, b"new", NEW).unwrap();
    world.elect();
    assert!(world.poll(0).restate);
    let asserted = world.asserted(0);
    let inodes: Vec<_> = asserted.iter().map(|held| (held.ino, held.kind)).collect();
    assert_eq!(inodes, [(DIR, Kind::Exclusive), (NEW, Kind::Exclusive)]);
}

#[test]
fn until_all_have_spoken_a_new_leader_shows_no_directory() {
    let mut world = World::new(2);
    world.live(ms(10_000));
    world.elect();
    world.begin(1);
    assert_eq!(world.ask(1, &[DIR], Want::Nothing).unwrap_err(), Blocked);
    world.begin(0);
    world.ask(1, &[DIR], Want::Nothing).unwrap();
}

#[test]
fn a_directory_in_which_nothing_is_made_any_more_is_kept_shared_only() {
    let mut world = World::new(2);
    world.alone_in_dir(0);
    world.live(ms(1_500));
    let now = world.now;
    world.holder(0).relax(now);
    world.poll(0);
    // At once, without a recall.
    world.ask(1, &[DIR], Want::Shared).expect("nobody is ahead");
    assert!(matches!(
        world.holder(0).listing(now, DIR, 0, 10),
        Cached::Is(_)
    ));
}

#[test]
fn what_was_refused_is_not_there() {
    let mut world = World::new(1);
    world.alone_in_dir(0);
    world.make(0, b"new", NEW).unwrap();
    world.holder(0).take_made(10, 1000);
    let now = world.now;
    let generation = world.holder(0).generation();
    world.holder(0).told(
        now,
        &Told {
            generation,
            number: 0,
            is_done: &[false],
            changes: None,
            grants: &[],
        },
    );
    assert!(!world.holder(0).is_ahead_in(DIR));
    assert_eq!(world.holder(0).lookup(now, DIR, b"new"), Cached::Unknown);
    assert_eq!(world.holder(0).attr(now, NEW), Cached::Unknown);
}

#[test]
fn what_a_name_means_is_told_before_it_is_moved_or_removed() {
    let mut world = World::new(1);
    world.alone_in_dir(0);
    world.make(0, b"new", NEW).unwrap();
    let up = InodeId(1);
    let touch = Touch::Name(up, b"dir".to_vec());
    // It may mean the directory.
    assert!(world.holder(0).is_ahead_of(&touch));
    assert!(world.holder(0).is_ahead_of(&Touch::Inode(DIR)));
    assert!(!world.holder(0).is_ahead_of(&Touch::Inode(up)));

    let (session, now) = (session(0), world.now);
    let shown = [(up, FileKind::Directory), (DIR, FileKind::Directory)];
    let grants = world.table.read(now, session, &shown, Want::Shared);
    let generation = world.table.generation(session).unwrap();
    let dir = plain_dir(1);
    for (name, attr) in [(&b"dir"[..], Some(&dir)), (b"none", None)] {
        let learned = Learned::Name {
            parent: up,
            name,
            attr,
        };
        let grants = grants.clone().unwrap();
        world.holder(0).learn(now, generation, &grants, learned);
    }
    assert!(world.holder(0).is_ahead_of(&touch));
    let none = Touch::Name(up, b"none".to_vec());
    assert!(!world.holder(0).is_ahead_of(&none));

    let (changes, changed) = world.tell(0);
    world.told(0, &changes, &changed);
    assert!(!world.holder(0).is_ahead_of(&touch));
}

#[test]
fn nothing_is_made_in_a_directory_that_was_removed() {
    let mut world = World::new(1);
    world.alone_in_dir(0);
    let removed = Attr {
        nlink: 0,
        ..plain_dir(0)
    };
    let changes = [Change::Attr(removed)];
    let changed = world.change(0, &changes);
    world.did(0, &changed, &changes);
    assert!(world.make(0, b"new", NEW).is_none());
}

#[test]
fn a_directory_that_another_may_be_removing_is_not_had_exclusively() {
    let kind_of_new_dir = |is_alone: bool| {
        let mut world = World::new(2);
        let now = world.now;
        // Of `rmdir`: the name means nothing yet.
        let remover = session(usize::from(!is_alone));
        for of in [remover, session(0)] {
            (world.table)
                .before_change(now, of, &[], &[OTHER])
                .expect("nothing stands in the way");
        }
        let dir = plain_dir(0);
        let name = Change::Name {
            parent: OTHER,
            name: b"dir".to_vec(),
            entry: Some(entry(b"dir", 7, DIR)),
        };
        let changes = [name, Change::Attr(dir.clone())];
        let created = Created::Now {
            attr: &dir,
            above: None,
        };
        let changed = world.table.changed(now, session(0), &changes, &created);
        changed.grants[0].kind
    };
    assert_eq!(kind_of_new_dir(true), Kind::Exclusive);
    assert_eq!(kind_of_new_dir(false), Kind::Shared);
}

#[test]
fn an_answer_from_before_something_was_told_is_overtaken() {
    let mut world = World::new(1);
    world.alone_in_dir(0);
    let before = world.ask(0, &[DIR], Want::Shared).unwrap();
    world.make(0, b"new", NEW).unwrap();
    let (changes, changed) = world.tell(0);
    world.told(0, &changes, &changed);
    let holder = world.holder(0);
    assert!(holder.is_overtaken(before.generation, before.number, DIR));
}

#[test]
fn attributes_of_a_directory_that_one_has_to_itself_are_set_in_memory_too() {
    let mut world = World::new(2);
    world.alone_in_dir(0);
    let (now, caller) = (world.now, Caller::default());
    let set = SetAttr {
        mode: Some(0o700),
        ..SetAttr::default()
    };
    let time = lumeofs_base::Timestamp { secs: 77, nanos: 0 };
    let attr = world.holder(0).set(now, DIR, &caller, &set, time).unwrap();
    assert_eq!((attr.mode, attr.ctime), (0o700, time));
    assert_eq!(world.holder(0).attr(now, DIR), Cached::Is(attr));
    assert_eq!(world.ask(1, &[DIR], Want::Shared).unwrap_err(), Blocked);
    let steps = world.holder(0).take_made(10, 1000);
    let expected = SetAttr {
        ctime: Some(time),
        ..set
    };
    assert_eq!(
        steps,
        [Step::Set {
            ino: DIR,
            set: expected
        }]
    );
}

#[test]
fn nobody_waits_for_a_directory_of_a_session_that_has_ended_and_whose_term_is_over() {
    let mut world = World::new(2);
    world.alone_in_dir(0);
    world.make(0, b"new", NEW).unwrap();
    world.table.session_ended(session(0));
    assert_eq!(world.ask(1, &[DIR], Want::Shared).unwrap_err(), Blocked);
    for _ in 0..6 {
        world.pass(ms(1_000));
        world.poll(1);
    }
    world
        .ask(1, &[DIR], Want::Shared)
        .expect("it makes nothing there any more");
    let change = world
        .table
        .before_change(world.now, session(1), &[], &[DIR]);
    change.expect("nor changes anything");
}

#[test]
fn what_is_made_is_not_dated_after_a_time_that_was_set() {
    let mut world = World::new(1);
    world.alone_in_dir(0);
    let now = world.now;
    let later = lumeofs_base::Timestamp {
        secs: 1 << 40,
        nanos: 0,
    };
    let set = SetAttr {
        mtime: Some(lumeofs_meta::op::SetTime::At(later)),
        ..SetAttr::default()
    };
    let time = lumeofs_base::Timestamp { secs: 7, nanos: 0 };
    let caller = Caller::default();
    world.holder(0).set(now, DIR, &caller, &set, time).unwrap();
    let made = world.make(0, b"new", NEW).unwrap();
    assert_eq!(made.mtime, time);
    assert!(matches!(world.holder(0).attr(now, DIR), Cached::Is(dir) if dir.mtime == time));
}

#[test]
fn a_directory_that_another_may_be_moving_or_removing_is_not_had_exclusively_later_either() {
    for remover in [0, 1] {
        let mut world = World::new(2);
        // Proposed when nobody had anything in the directory, and not applied yet.
        (world.table)
            .before_change(world.now, session(remover), &[], &[ABOVE])
            .unwrap();
        let kinds = world.alone_in_dir(0);
        let has_directory = kinds.len() == 2;
        // What it does itself it knows of.
        assert_eq!(has_directory, remover == 0);
    }
}

#[test]
fn a_directory_that_was_asserted_at_a_new_leader_is_given_up_there_too() {
    let mut world = World::new(2);
    world.alone_in_dir(0);
    world.make(0, b"new", NEW).unwrap();
    world.elect();
    for mount in [0, 1] {
        world.begin(mount);
    }
    world.pass(lumeofs_lease::TERM);
    world.live(ms(100));
    let (changes, changed) = world.tell(0);
    world.told(0, &changes, &changed);
    world.live(ms(1_500));
    let now = world.now;
    world.holder(0).relax(now);
    world.poll(0);
    let free = world.ask(1, &[DIR], Want::Shared);
    free.expect("its maker relies on nothing there any more");
}

#[test]
fn what_was_told_under_another_generation_is_not_left_with_the_leader() {
    let mut world = World::new(2);
    world.alone_in_dir(0);
    world.get(0, OTHER, Want::Shared);
    world.make(0, b"new", NEW).unwrap();
    // The maker is silent for so long that its shared leases are void, and does not know it yet.
    let changed = world.change(1, &[touched(OTHER, 3)]);
    assert!(!world.table.is_heard(&changed.unheard));
    for _ in 0..6 {
        world.pass(ms(1_000));
        world.poll(1);
        world.table.tick(world.now);
    }
    assert_eq!(world.table.generation(session(0)), None);
    let (changes, changed) = world.tell(0);
    world.told(0, &changes, &changed);
    assert!(!world.holder(0).is_ahead_in(NEW));
    world.begin(0);
    for ino in [DIR, NEW] {
        let free = world.ask(1, &[ino], Want::Shared);
        free.expect("it was forgotten");
    }
}

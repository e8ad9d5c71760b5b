//! What a change of attributes does to the times.

use super::*;
use crate::op::{Access, SetAttr, SetTime};
use lumeofs_base::limits::ACCESSES_MAX;

#[test]
fn a_change_that_names_nothing_is_a_change_all_the_same() {
    let mut fixture = Fixture::new();
    let file = fixture.file(InodeId::ROOT, "file");
    let before = fixture.attr(file);
    let reply = fixture.mutate(Mutation::SetAttr {
        ino: file,
        set: SetAttr::default(),
    });
    let after = Attr {
        ctime: seconds(fixture.log.len() as u64),
        ..before.clone()
    };
    assert!(after.ctime > before.ctime);
    assert_eq!(reply, Ok(Reply::Attr(after.clone())));
    assert_eq!(fixture.attr(file), after);
}

#[test]
fn a_read_sets_the_access_time_that_the_reader_saw_and_nothing_else() {
    let mut fixture = Fixture::new();
    let file = fixture.file(InodeId::ROOT, "file");
    let before = fixture.attr(file);
    let access = |from, to| Mutation::Access {
        accesses: vec![
            Access {
                ino: InodeId(999),
                from: before.atime,
                to,
            },
            Access {
                ino: file,
                from,
                to,
            },
        ],
    };
    let read = |fixture: &mut Fixture, from, to| fixture.mutate(access(from, to)).unwrap();
    read(&mut fixture, before.atime, seconds(50));
    let after = Attr {
        atime: seconds(50),
        ..before.clone()
    };
    assert_eq!(fixture.attr(file), after);
    read(&mut fixture, before.atime, seconds(60));
    assert_eq!(fixture.attr(file), after, "another reader was first");
    let set = SetAttr {
        atime: Some(SetTime::At(seconds(3))),
        ..SetAttr::default()
    };
    fixture
        .mutate(Mutation::SetAttr { ino: file, set })
        .unwrap();
    read(&mut fixture, seconds(50), seconds(70));
    assert_eq!(fixture.attr(file).atime, seconds(3), "it was set since");
    let one = Access {
        ino: file,
        from: seconds(3),
        to: seconds(80),
    };
    let many = |count| Mutation::Access {
        accesses: vec![one; count],
    };
    assert_eq!(fixture.refused(many(ACCESSES_MAX + 1)), Code::Invalid);
    fixture.as_user(0, 0);
    assert_eq!(fixture.refused(many(1)), Code::NotPermitted);
    assert_eq!(fixture.attr(file).atime, seconds(3));
    fixture.check();
}

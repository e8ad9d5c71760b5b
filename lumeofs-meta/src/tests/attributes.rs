//! What a change of attributes does to the times.

use super::*;
use crate::op::SetAttr;

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

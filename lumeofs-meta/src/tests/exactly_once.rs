//! Sessions: each mutation is applied once, whatever is sent how often.

use super::*;
use lumeofs_base::limits::SESSION_WINDOW;

const ROOT: InodeId = InodeId::ROOT;

fn create(name: &str) -> Mutation {
    let (name, node) = (name.into(), NewNode::Regular);
    Mutation::Create {
        parent: ROOT,
        name,
        node,
        mode: 0o644.into(),
        exclusive: true,
    }
}

impl Fixture {
    fn send(&mut self, sequence: u64, acked_below: u64, mutation: Mutation) -> Outcome {
        let (session, caller) = (self.session, self.caller.clone());
        let command = Command::Mutate {
            session,
            sequence,
            acked_below,
            caller,
            mutation,
        };
        self.apply(vec![command]).remove(0)
    }
}

#[test]
fn a_repeated_mutation_returns_the_first_outcome() {
    let mut fixture = Fixture::new();
    let first = fixture.send(1, 1, create("a"));
    assert!(first.is_ok());
    let failed = fixture.send(2, 1, create("a"));
    assert_eq!(failed.as_ref().unwrap_err().code, Code::Exists);
    fixture.send(3, 1, unlink(ROOT, "a")).unwrap();
    assert_eq!(fixture.send(1, 1, create("a")), first);
    assert_eq!(
        fixture.send(2, 1, create("a")),
        failed,
        "also of a failure that would not recur"
    );
    assert_eq!(fixture.lookup(ROOT, "a"), Err(Code::NotFound));
    fixture.check();
}

#[test]
fn a_repetition_in_the_same_entry_is_found_too() {
    let mut fixture = Fixture::new();
    let command = fixture.command(create("a"));
    let outcomes = fixture.apply(vec![command.clone(), command]);
    assert_eq!(outcomes[0], outcomes[1]);
    assert!(outcomes[0].is_ok());
}

#[test]
fn sequences_outside_the_window_are_refused_and_change_nothing() {
    let mut fixture = Fixture::new();
    fixture.send(5, 4, create("a")).unwrap();
    for (sequence, acked_below) in [
        (0, 0),
        (3, 1),
        (4 + SESSION_WINDOW, 4),
        (5, 6),
        (u64::MAX, 1),
    ] {
        let outcome = fixture.send(sequence, acked_below, create("b"));
        assert_eq!(
            outcome.unwrap_err().code,
            Code::Invalid,
            "{sequence} {acked_below}"
        );
    }
    assert_eq!(fixture.lookup(ROOT, "b"), Err(Code::NotFound));
    fixture.send(4, 1, create("late")).unwrap();
    fixture.send(3 + SESSION_WINDOW, 1, create("far")).unwrap();
    fixture.check();
}

#[test]
fn outcomes_are_purged_as_the_client_acknowledges() {
    let mut fixture = Fixture::new();
    for sequence in 1..=20 {
        fixture
            .send(sequence, 1, create(&format!("{sequence}")))
            .unwrap();
    }
    let before = fixture.tables.0.len();
    fixture.send(u64::MAX, u64::MAX, create("last")).unwrap();
    // 20 outcomes go, one comes; the new file has entry, inode and chunk.
    assert_eq!(fixture.tables.0.len(), before - 20 + 1 + 3);
    fixture.check();
}

#[test]
fn an_unknown_or_closed_session_is_never_served() {
    let mut fixture = Fixture::new();
    fixture.send(1, 1, create("a")).unwrap();
    fixture
        .internal(Internal::CloseSession {
            session: fixture.session,
        })
        .unwrap();
    fixture
        .internal(Internal::CloseSession {
            session: fixture.session,
        })
        .unwrap();
    assert_eq!(
        fixture.send(1, 1, create("a")).unwrap_err().code,
        Code::SessionExpired
    );
    assert_eq!(
        fixture.send(2, 1, create("b")).unwrap_err().code,
        Code::SessionExpired
    );
    assert_eq!(namespace::sessions(&fixture.tables), []);
    fixture.check();
}

#[test]
fn a_session_that_was_ended_is_closed_only_by_its_fence() {
    let mut fixture = Fixture::new();
    let session = fixture.session;
    let open = |nonce| Internal::OpenSession {
        nonce,
        description: String::new(),
    };
    fixture.send(1, 1, create("a")).unwrap();
    fixture.internal(open(70)).unwrap();
    assert_eq!(namespace::fence(&fixture.tables).number, 0);
    for _ in 0..2 {
        fixture.internal(Internal::EndSession { session }).unwrap();
        fixture.check();
    }
    // Its first outcome is not given away either: nothing is taken from it, nothing told.
    for sequence in [1, 2] {
        let refused = fixture.send(sequence, 1, create("a")).unwrap_err();
        assert_eq!(refused.code, Code::SessionExpired);
    }
    let fence = namespace::fence(&fixture.tables);
    assert_eq!((fence.number, fence.live.len()), (1, 1));
    assert!(!fence.admits(session) && fence.admits(fence.live[0]));
    let Ok(Reply::Session(younger)) = fixture.internal(open(71)) else {
        panic!("a session")
    };
    assert!(fence.admits(younger));
    assert!(!namespace::has_session(&fixture.tables, session));
    assert_eq!(namespace::ending_sessions(&fixture.tables), [(session, 1)]);
    // Its client does not close it past the fence, nor does anybody close one that lives by it.
    let close = fixture.internal(Internal::CloseSession { session });
    assert_eq!(close.unwrap_err().code, Code::SessionExpired);
    let live = fixture.internal(Internal::CloseEnded { session: younger });
    assert_eq!(live.unwrap_err().code, Code::Invalid);
    for _ in 0..2 {
        fixture.internal(Internal::CloseEnded { session }).unwrap();
    }
    assert_eq!(namespace::ending_sessions(&fixture.tables), []);
    let gone = fixture.internal(Internal::EndSession { session });
    assert_eq!(gone.unwrap_err().code, Code::NotFound);
    assert_eq!(namespace::fence(&fixture.tables).number, 1);
    fixture.check();
}

#[test]
fn a_session_that_may_have_leases_is_known_as_such_until_it_is_closed() {
    let mut fixture = Fixture::new();
    let session = fixture.session;
    assert_eq!(namespace::leaseholders(&fixture.tables), []);
    for _ in 0..2 {
        fixture.internal(Internal::HoldLeases { session }).unwrap();
        assert_eq!(namespace::leaseholders(&fixture.tables), [session]);
        fixture.check();
    }
    fixture.internal(Internal::EndSession { session }).unwrap();
    assert!(namespace::is_leaseholder(&fixture.tables, session));
    let late = fixture.internal(Internal::HoldLeases { session });
    assert_eq!(late.unwrap_err().code, Code::SessionExpired);
    fixture.internal(Internal::CloseEnded { session }).unwrap();
    assert_eq!(namespace::leaseholders(&fixture.tables), []);
    let late = fixture.internal(Internal::HoldLeases { session });
    assert_eq!(late.unwrap_err().code, Code::SessionExpired);
    fixture.check();
}

#[test]
fn sessions_are_bounded() {
    let mut fixture = Fixture::new();
    let open = |nonce| Internal::OpenSession {
        nonce,
        description: String::new(),
    };
    let max = lumeofs_base::limits::SESSIONS_MAX as u128;
    for nonce in 1000..1000 + max - 1 {
        fixture.internal(open(nonce)).unwrap();
    }
    let refused = fixture.internal(open(1)).unwrap_err();
    assert_eq!(refused.code, Code::TooManyOpen);
    fixture.internal(open(1000)).unwrap();
    let session = fixture.session;
    fixture
        .internal(Internal::CloseSession { session })
        .unwrap();
    fixture.internal(open(1)).unwrap();
}

#[test]
fn a_nonce_finds_its_session_and_ids_are_not_reused() {
    let mut fixture = Fixture::new();
    let open = |nonce| Internal::OpenSession {
        nonce,
        description: "é".repeat(200),
    };
    let first = fixture.internal(open(1)).unwrap();
    assert_eq!(fixture.internal(open(1)).unwrap(), first);
    let sessions = namespace::sessions(&fixture.tables);
    assert_eq!(sessions.len(), 2);
    assert_eq!(
        sessions[1].description,
        "é".repeat(128),
        "descriptions are bounded"
    );
    fixture
        .internal(Internal::CloseSession {
            session: sessions[1].id,
        })
        .unwrap();
    assert_ne!(fixture.internal(open(1)).unwrap(), first);
    fixture.check();
}

#[test]
fn log_time_never_goes_back() {
    let mut fixture = Fixture::new();
    let ino = fixture.file(ROOT, "a");
    let before = fixture.attr(ino).mtime;
    let command = fixture.command(create("b"));
    let batch = Batch {
        now: seconds(0),
        groups: Vec::new(),
        commands: vec![command],
    };
    let applied = namespace::apply(&mut fixture.tables, 100, &batch).remove(0);
    assert_eq!(attr(applied.outcome).mtime, before);
    assert_eq!(namespace::applied(&fixture.tables), 100);
}

//! How many creates the namespace applies per second, without any store or network.
//!
//! `cargo run --release -p lumeofs-meta --example creates_per_second`

use lumeofs_base::clock::{Clock, SystemClock};
use lumeofs_base::{GroupId, InodeId, Timestamp};
use lumeofs_meta::namespace;
use lumeofs_meta::op::{Batch, Caller, Command, Internal, Mutation, NewNode, Reply};
use lumeofs_meta::tables::MemoryTables;

const FILES: u64 = 200_000;
const COMMANDS_PER_ENTRY: u64 = 64;

fn main() {
    let mut tables = MemoryTables::default();
    let open = Internal::OpenSession {
        nonce: 1,
        description: "example".into(),
    };
    let batch = |commands| Batch {
        now: Timestamp::default(),
        groups: vec![GroupId(1)],
        commands,
    };
    let opened = namespace::apply(&mut tables, 1, &batch(vec![Command::Internal(open)])).remove(0);
    let Ok(Reply::Session(session)) = opened.outcome else {
        panic!("no session: {opened:?}")
    };

    let entries: Vec<_> = (0..FILES / COMMANDS_PER_ENTRY)
        .map(|entry| {
            let first = entry * COMMANDS_PER_ENTRY;
            let create = |number| Command::Mutate {
                session,
                sequence: number + 1,
                acked_below: first + 1,
                caller: Caller {
                    trusted: true,
                    ..Caller::default()
                },
                mutation: Mutation::Create {
                    parent: InodeId::ROOT,
                    name: format!("file-{number}").into_bytes(),
                    node: NewNode::Regular,
                    mode: 0o644.into(),
                    exclusive: true,
                },
            };
            batch((first..first + COMMANDS_PER_ENTRY).map(create).collect())
        })
        .collect();

    let begin = SystemClock.monotonic();
    let mut failed = 0;
    for (index, entry) in (2..).zip(&entries) {
        let applied = namespace::apply(&mut tables, index, entry).into_iter();
        failed += applied.filter(|applied| applied.outcome.is_err()).count();
    }
    let seconds = (SystemClock.monotonic() - begin).as_secs_f64();
    let done = entries.len() as u64 * COMMANDS_PER_ENTRY;
    println!(
        "{done} creates in {seconds:.2} s: {:.0}/s, {failed} failed",
        done as f64 / seconds
    );
}

//! Programs that people use from several machines in turn.

use crate::shell;
use std::path::{Path, PathBuf};

/// One git repository in which each mount commits in turn; every other one sees the commit, and nothing is broken.
/// `pause` is called before each turn.
pub fn git_turns(mounts: &[PathBuf], turns: usize, mut pause: impl FnMut(usize)) {
    let environment = "export GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@t GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@t\n";
    let git =
        |mount: &Path, script: &str| shell(mount, &format!("{environment}cd repository\n{script}"));
    shell(&mounts[0], "git init -q repository");
    for turn in 1..=turns {
        pause(turn);
        let (mount, next) = (
            &mounts[turn % mounts.len()],
            &mounts[(turn + 1) % mounts.len()],
        );
        let change = format!(
            "echo turn {turn} >> log; echo {turn} > file-{turn}; [ {turn} -lt 4 ] || git mv file-$(({turn} - 3)) moved-{turn}
             git add -A; git commit -qm 'turn {turn}'; [ $(({turn} % 6)) != 0 ] || git gc -q"
        );
        git(mount, &change);
        let check = format!(
            "[ -z \"$(git status --porcelain)\" ]; [ \"$(git log --format=%s | wc -l)\" = {turn} ]
             [ \"$(git log -1 --format=%s)\" = 'turn {turn}' ]; [ \"$(wc -l < log)\" = {turn} ]
             [ \"$(cat file-{turn})\" = {turn} ]; git fsck --strict 2> errors || {{ cat errors; exit 1; }}; rm errors"
        );
        git(next, &check);
    }
}

/// An SQLite database in each journal mode, used from the mounts in turn and never at the same time.
pub fn sqlite_turns(mounts: &[PathBuf], turns: usize, mut pause: impl FnMut(usize)) {
    for mode in ["DELETE", "WAL"] {
        let create = format!(
            "sqlite3 {mode}.db 'PRAGMA journal_mode={mode}; CREATE TABLE t(id INTEGER PRIMARY KEY, turn INT, v BLOB); CREATE INDEX i ON t(turn)'"
        );
        shell(&mounts[0], &create);
    }
    for turn in 1..=turns {
        pause(turn);
        for mode in ["DELETE", "WAL"] {
            // The sum of all turns tells whether every transaction is there, once.
            let sum = turn * (turn + 1) / 2 * 40;
            let script = format!(
                "sqlite3 {mode}.db \"BEGIN; INSERT INTO t(turn, v) SELECT {turn}, randomblob(300) FROM generate_series(1, 40); COMMIT;
                   UPDATE t SET v = randomblob(500) WHERE id % 7 = {turn} % 7;\"
                 [ \"$(sqlite3 {mode}.db 'SELECT sum(turn) FROM t')\" = {sum} ]"
            );
            shell(&mounts[turn % mounts.len()], &script);
            let check = format!(
                "[ \"$(sqlite3 {mode}.db 'PRAGMA integrity_check')\" = ok ]; [ \"$(sqlite3 {mode}.db 'SELECT sum(turn) FROM t')\" = {sum} ]"
            );
            shell(&mounts[(turn + 1) % mounts.len()], &check);
        }
    }
}

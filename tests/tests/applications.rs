//! Programs that people run on filesystems.

use lumeofs_tests::{Cluster, shell};

#[test]
fn git_clones_commits_and_collects() {
    let cluster = Cluster::start();
    let repository = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    shell(
        &cluster.mount(),
        &format!(
            r#"
            export GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@t GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@t
            mkdir src
            # What belongs to the sources, and not what else lies beside them.
            if git -C {repository} rev-parse -q --verify HEAD > /dev/null 2>&1; then
                git -C {repository} archive HEAD | tar -xf - -C src
            else
                crates=$(sed -n '/^members/,/^]/s|^ *"\(.*\)",$|{repository}/\1|p' {repository}/Cargo.toml)
                cp -r $crates {repository}/docs {repository}/Cargo.toml src/
            fi
            cd src; git init -q .; git add -A; git commit -qm all; cd ..
            git clone -q src clone; cd clone
            [ -z "$(git status --porcelain)" ]; git fsck --strict
            for i in 1 2 3; do echo $i > file; git add file; git commit -qm "commit $i"; done
            git mv file moved; git commit -qm moved; git gc -q; git fsck --strict; git log --oneline | wc -l
            [ -z "$(git status --porcelain)" ]
            "#
        ),
    );
}

#[test]
fn a_program_is_built_and_runs() {
    let cluster = Cluster::start();
    shell(
        &cluster.mount(),
        r#"
        mkdir p; cd p
        for i in $(seq 20); do echo "int f$i(void) { return $i; }" > f$i.c; done
        { for i in $(seq 20); do echo "int f$i(void);"; done
          echo '#include <stdio.h>'; echo 'int main(void) { int s = 0;'
          for i in $(seq 20); do echo "s += f$i();"; done; echo 'printf("%d\n", s); return 0; }'; } > main.c
        printf 'O=$(patsubst %%.c,%%.o,$(wildcard *.c))\nall: $O\n\tgcc -o sum $O\n' > Makefile
        make -j4 > log 2>&1 || { cat log; exit 1; }
        [ "$(./sum)" = 210 ]; touch f1.c; make > log; grep -q f1.c log; if grep -q f2.c log; then exit 1; fi
        "#,
    );
}

#[test]
fn sqlite_keeps_its_integrity_in_both_journal_modes() {
    let cluster = Cluster::start();
    shell(
        &cluster.mount(),
        r#"
        for mode in DELETE WAL; do
            db=$mode.db
            { echo "PRAGMA journal_mode=$mode; CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, b BLOB);"
              for i in $(seq 60); do echo "BEGIN; INSERT INTO t(v,b) SELECT hex(randomblob(20)), randomblob(500) FROM generate_series(1,50); COMMIT;"; done
            } | sqlite3 $db > /dev/null
            sqlite3 $db "DELETE FROM t WHERE id % 3 = 0; CREATE INDEX iv ON t(v); VACUUM;"
            [ "$(sqlite3 $db 'PRAGMA integrity_check')" = ok ]
            [ "$(sqlite3 $db 'SELECT count(*) FROM t')" = 2000 ]
        done
        "#,
    );
    cluster.remount();
    shell(
        &cluster.mount(),
        r#"for db in DELETE.db WAL.db; do [ "$(sqlite3 $db 'PRAGMA integrity_check')" = ok ]; [ "$(sqlite3 $db 'SELECT count(*) FROM t')" = 2000 ]; done"#,
    );
}

#[test]
fn rsync_transfers_everything_once() {
    let cluster = Cluster::start();
    let scratch = cluster.scratch();
    let mount = cluster.mount();
    shell(
        &scratch,
        &format!(
            r#"
            mkdir -p s/d; for i in $(seq 200); do head -c $((i * 97)) /dev/urandom > s/d/f$i; done
            ln s/d/f1 s/hard; ln -s d/f2 s/soft; chmod 600 s/d/f3; chown 5:6 s/d/f4; touch -d '1999-01-01 00:00:00.5' s/d/f5
            setfattr -n user.k -v v s/d/f6
            truncate -s 100M s/sparse; mkfifo s/fifo
            rsync -aHAX --checksum s/ {m}/t/
            again=$(rsync -aHAX --checksum --itemize-changes s/ {m}/t/)
            [ -z "$again" ] || {{ echo "second run: $again"; exit 1; }}
            diff -r --exclude fifo s {m}/t
            [ "$(stat -c %h {m}/t/hard)" = 2 ]; [ "$(getfattr --only-values -n user.k {m}/t/d/f6)" = v ]
            "#,
            m = mount.display()
        ),
    );
}

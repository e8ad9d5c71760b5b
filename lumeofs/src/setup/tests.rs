use super::*;
use crate::{Cli, Command};
use clap::Parser as _;
use std::collections::BTreeMap;
use std::fs;

const PROGRAM: &[u8] = b"the program";

struct Root(PathBuf);

impl Root {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("lumeofs-setup-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        Self(dir)
    }

    fn run(&self, remove: bool, dry_run: bool) -> BTreeMap<PathBuf, Done> {
        let layout = Layout::new(Path::new("/usr/local")).unwrap();
        let mut list = List::load(&self.0, &layout.list).unwrap();
        let mut place = Place::new(self.0.clone(), dry_run);
        let (rows, result) = match remove {
            true => super::remove(&mut place, &layout, &mut list),
            false => super::install(&mut place, &layout, PROGRAM.to_vec(), &mut list),
        };
        result.unwrap();
        rows.into_iter().map(|row| (row.path, row.done)).collect()
    }

    fn at(&self, path: &str) -> PathBuf {
        below(&self.0, Path::new(path))
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_dry_run_changes_nothing_and_says_what_would_be_done() {
    let root = Root::new("dry");
    let would = root.run(false, true);
    assert!(!root.0.exists());
    let done = root.run(false, false);
    assert_eq!(would, done);
    assert!(
        done.values().all(|done| *done == Done::Installed),
        "{done:?}"
    );
    let before = fs::read(root.at("/etc/lumeofs/master.conf")).unwrap();
    root.run(true, true);
    assert_eq!(
        fs::read(root.at("/etc/lumeofs/master.conf")).unwrap(),
        before
    );
}

#[test]
fn what_was_changed_is_kept_and_what_was_not_is_replaced() {
    let root = Root::new("again");
    root.run(false, false);
    assert!(
        root.run(false, false)
            .values()
            .all(|done| *done == Done::Unchanged)
    );
    fs::write(root.at("/etc/lumeofs/master.conf"), "LUMEOFS_DATA=/mine\n").unwrap();
    // As an earlier release would have installed it.
    let unit = root.at("/usr/local/lib/systemd/system/lumeofs-master.service");
    let list = root.at("/usr/local/lib/lumeofs/installed.json");
    let now = lumeofs_base::checksum::crc32c(&fs::read(&unit).unwrap()).to_string();
    let then = lumeofs_base::checksum::crc32c(b"before").to_string();
    fs::write(&unit, "before").unwrap();
    let text = fs::read_to_string(&list).unwrap().replace(&now, &then);
    fs::write(&list, text).unwrap();
    fs::write(root.at("/usr/local/bin/lumeofs"), "another program").unwrap();
    let done = root.run(false, false);
    let of = |name: &str| done[Path::new(name)];
    assert_eq!(of("/etc/lumeofs/master.conf"), Done::Kept);
    assert_eq!(of("/etc/lumeofs/datanode-1.conf"), Done::Unchanged);
    assert_eq!(
        of("/usr/local/lib/systemd/system/lumeofs-master.service"),
        Done::Replaced
    );
    assert_eq!(of("/usr/local/bin/lumeofs"), Done::Replaced);
    assert!(
        fs::read_to_string(&unit)
            .unwrap()
            .contains("ExecStart=/usr/local/bin/lumeofs master")
    );
}

#[test]
fn a_removal_takes_what_was_installed_and_nothing_else() {
    let root = Root::new("remove");
    fs::create_dir_all(root.at("/usr/local/bin")).unwrap();
    root.run(false, false);
    fs::write(root.at("/etc/lumeofs/secret"), "secret").unwrap();
    fs::write(root.at("/etc/lumeofs/master.conf"), "LUMEOFS_DATA=/mine\n").unwrap();
    let done = root.run(true, false);
    assert_eq!(done[Path::new("/etc/lumeofs/master.conf")], Done::Kept);
    assert_eq!(
        done[Path::new("/etc/lumeofs/datanode-1.conf")],
        Done::Removed
    );
    let left: Vec<_> = fs::read_dir(root.at("/etc/lumeofs")).unwrap().collect();
    assert_eq!(left.len(), 2);
    assert!(!root.at("/sbin").exists() && root.at("/usr/local/bin").exists());
    // What was kept is known; once the administrator has let go of it, it goes too.
    fs::remove_file(root.at("/etc/lumeofs/secret")).unwrap();
    fs::remove_file(root.at("/etc/lumeofs/master.conf")).unwrap();
    root.run(true, false);
    assert!(!root.at("/etc").exists() && !root.at("/usr/local/lib").exists());
    assert!(root.at("/usr/local/bin").exists());
    assert!(root.run(true, false).is_empty());
}

#[test]
fn a_helper_of_somebody_else_is_not_replaced() {
    let root = Root::new("foreign");
    fs::create_dir_all(root.at("/sbin")).unwrap();
    fs::write(root.at("/sbin/mount.fuse.lumeofs"), "#!/bin/sh\n").unwrap();
    let layout = Layout::new(Path::new("/usr/local")).unwrap();
    let mut place = Place::new(root.0.clone(), false);
    let mut list = List::default();
    let error = super::install(&mut place, &layout, PROGRAM.to_vec(), &mut list)
        .1
        .unwrap_err();
    assert!(error.to_string().contains("move it away"), "{error}");
    // What was done before is listed.
    assert_eq!(
        root.run(true, false)[Path::new("/usr/local/bin/lumeofs")],
        Done::Removed
    );
    assert!(root.at("/sbin/mount.fuse.lumeofs").exists());
}

#[test]
fn links_do_not_lead_out_of_the_root() {
    let root = Root::new("out");
    fs::create_dir_all(&root.0).unwrap();
    std::os::unix::fs::symlink("/etc", root.at("/etc")).unwrap();
    let layout = Layout::new(Path::new("/usr/local")).unwrap();
    let mut place = Place::new(root.0.clone(), false);
    let error = super::install(&mut place, &layout, PROGRAM.to_vec(), &mut List::default())
        .1
        .unwrap_err();
    assert!(error.to_string().contains("leads out of"), "{error}");
}

/// The value of a setting, the last one.
fn setting<'a>(text: &'a str, name: &str) -> &'a str {
    let mut lines = text.lines().rev();
    lines
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        .unwrap_or_else(|| {
            panic!("no {name} in {text}");
        })
}

#[test]
fn units_and_examples_are_command_lines_of_this_program() {
    let layout = Layout::new(Path::new("/opt/lumeofs")).unwrap();
    let units: Vec<_> = layout.units().collect();
    for ((unit, text), (name, example)) in units.iter().zip(files::examples()) {
        assert_eq!(unit.parent(), Some(Path::new("/etc/systemd/system")));
        let file = setting(text, "EnvironmentFile").replace("%i", "1");
        assert_eq!(file, format!("/etc/lumeofs/{name}"));
        let line = setting(text, "ExecStart");
        assert!(line.starts_with("/opt/lumeofs/bin/lumeofs "), "{line}");
        let data = setting(example, "LUMEOFS_DATA");
        // As it is, and with the options that the example shows.
        for options in ["LUMEOFS_OPTIONS", "#LUMEOFS_OPTIONS"] {
            let line = line
                .replace("${LUMEOFS_DATA}", data)
                .replace("$LUMEOFS_OPTIONS", setting(example, options));
            assert!(!line.contains('$'), "{line}");
            let cli = Cli::try_parse_from(line.split_whitespace()).unwrap_or_else(|error| {
                panic!("{}: {line}: {error}", unit.display());
            });
            let master = unit.ends_with("lumeofs-master.service");
            assert!(match cli.command {
                Command::Master(_) => master,
                Command::Datanode(_) => !master,
                _ => false,
            });
        }
    }
}

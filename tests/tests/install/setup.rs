//! What `lumeofs setup` installs and removes.

use crate::site::{HELPER, PATIENCE, Point, turn};
use lumeofs_tests::{Cluster, binary, eventually, run, temporary};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

/// All files below a directory.
fn files(directory: &Path) -> BTreeSet<String> {
    let found = run(
        "find",
        &[
            directory.to_str().unwrap(),
            "!",
            "-type",
            "d",
            "-printf",
            "/%P\n",
        ],
    );
    found.lines().map(str::to_owned).collect()
}

#[test]
fn setup_installs_what_works_and_takes_it_away_again() {
    let root = temporary();
    let root = root.path();
    let at = root.to_str().unwrap();
    let setup = |more: &[&str]| run(binary(), &[&["setup", "--root", at], more].concat());
    let said = setup(&["--dry-run"]);
    assert!(
        said.contains("would install") && files(root).is_empty(),
        "{said}"
    );
    let said = setup(&[]);
    assert!(
        said.contains("installed") && said.contains("systemctl"),
        "{said}"
    );
    let want = [
        "/usr/local/bin/lumeofs",
        "/sbin/mount.fuse.lumeofs",
        "/usr/local/lib/systemd/system/lumeofs-master.service",
        "/usr/local/lib/systemd/system/lumeofs-datanode@.service",
        "/etc/lumeofs/master.conf",
        "/etc/lumeofs/datanode-1.conf",
        "/usr/local/lib/lumeofs/installed.json",
    ];
    assert_eq!(files(root), want.map(str::to_owned).into());
    let installed = root.join("usr/local/bin/lumeofs");
    let version = run(binary(), &["--version"]);
    assert_eq!(run(&installed, &["--version"]), version);
    let link = fs::read_link(root.join("sbin/mount.fuse.lumeofs")).unwrap();
    assert_eq!(link, Path::new("/usr/local/bin/lumeofs"));
    // By the name of the link it is the helper.
    let helper = root.join("mount.fuse.lumeofs");
    symlink(&installed, &helper).unwrap();
    assert!(run(&helper, &["--help"]).contains("for mount(8)"));
    fs::remove_file(helper).unwrap();

    // It replaces itself while it runs.
    let mut sleeper = Command::new(&installed);
    let data = root.join("data");
    let secret = root.join("secret");
    run(binary(), &["keygen", secret.to_str().unwrap()]);
    let sleeper = lumeofs_tests::Running::start(
        sleeper
            .args([
                "datanode",
                "--id",
                "1",
                "--listen",
                "127.0.0.1:0",
                "--masters",
                "127.0.0.1:1",
            ])
            .arg("--secret")
            .arg(&secret)
            .arg("--data")
            .arg(&data)
            .stderr(std::process::Stdio::null()),
    );
    eventually("it runs", PATIENCE, || data.exists());
    fs::write(root.join("etc/lumeofs/master.conf"), "# mine\n").unwrap();
    let said = run(&installed, &["setup", "--root", at]);
    assert!(
        said.contains("kept (yours)") && said.contains("unchanged"),
        "{said}"
    );
    let older = fs::read(&installed).unwrap();
    fs::remove_file(&installed).unwrap();
    fs::write(&installed, &older[..older.len() / 2]).unwrap();
    assert!(setup(&[]).contains("replaced"));
    assert_eq!(run(&installed, &["--version"]), version);
    drop(sleeper);
    fs::remove_dir_all(&data).unwrap();

    let units = root.join("usr/local/lib/systemd/system");
    verify_units(&units, &installed);

    let said = setup(&["--remove"]);
    assert!(said.contains("removed"), "{said}");
    let left = [
        "/etc/lumeofs/master.conf",
        "/secret",
        // It knows of the file that was kept.
        "/usr/local/lib/lumeofs/installed.json",
    ];
    assert_eq!(files(root), left.map(str::to_owned).into());
}

/// A real installation, taken away again at the end.
struct Installation;

impl Installation {
    const SECRET: &str = "/etc/lumeofs/secret";

    /// `None` if this machine has one already, or parts of one.
    fn new() -> Option<Self> {
        let paths = [
            HELPER,
            "/usr/local/bin/lumeofs",
            "/usr/local/lib/lumeofs",
            "/etc/lumeofs",
        ];
        let found = paths.iter().find(|path| fs::symlink_metadata(path).is_ok());
        if let Some(found) = found {
            eprintln!("{found} exists: nothing is installed on this machine for a test");
            return None;
        }
        Some(Self)
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        let _ = fs::remove_file(Self::SECRET);
        let _ = Command::new(binary()).args(["setup", "--remove"]).output();
    }
}

#[test]
fn setup_on_this_machine_is_all_that_mount_8_needs() {
    let _turn = turn();
    let Some(installation) = Installation::new() else {
        return;
    };
    let cluster = Cluster::start_with(&["--no-mount", "--masters", "1", "--datanodes", "1"]);
    let point = cluster.scratch().join("mnt");
    fs::create_dir(&point).unwrap();
    let point = Point(point);
    let at = point.0.to_str().unwrap();
    run(binary(), &["setup"]);
    assert!(run(binary(), &["setup"]).contains("unchanged      /usr/local/bin/lumeofs"));
    fs::copy(cluster.dir().join("secret"), Installation::SECRET).unwrap();
    let log = format!("log={}", cluster.scratch().join("mount.log").display());
    run(
        "mount",
        &["-t", "fuse.lumeofs", &cluster.masters(), at, "-o", &log],
    );
    fs::write(point.0.join("file"), "x").unwrap();
    // The program is replaced and removed while it runs.
    fs::remove_file("/usr/local/bin/lumeofs").unwrap();
    fs::write("/usr/local/bin/lumeofs", "an older one").unwrap();
    assert!(run(binary(), &["setup"]).contains("replaced       /usr/local/bin/lumeofs"));
    run(binary(), &["setup", "--remove"]);
    assert!(!Path::new(HELPER).exists() && !Path::new("/usr/local/bin/lumeofs").exists());
    assert!(Path::new(Installation::SECRET).exists());
    assert_eq!(fs::read_to_string(point.0.join("file")).unwrap(), "x");
    run("umount", &[at]);
    drop(installation);
    assert!(!Path::new("/etc/lumeofs").exists());
}

/// systemd's own judgement, where it is installed; the crate's tests hold the command lines in any case.
fn verify_units(units: &Path, program: &Path) {
    let Ok(_) = Command::new("systemd-analyze").arg("--version").output() else {
        eprintln!("systemd-analyze is not installed: the units are not verified here");
        return;
    };
    // It wants the program where the unit says.
    let copies = temporary();
    for unit in ["lumeofs-master.service", "lumeofs-datanode@.service"] {
        let text = fs::read_to_string(units.join(unit)).unwrap();
        assert!(text.contains("ExecStart=/usr/local/bin/lumeofs "), "{text}");
        let text = text.replace("/usr/local/bin/lumeofs", program.to_str().unwrap());
        let name = unit.replace('@', "@1");
        let copy = copies.path().join(name);
        fs::write(&copy, text).unwrap();
        let output = Command::new("systemd-analyze")
            .arg("verify")
            .arg(&copy)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let own: Vec<_> = said
            .lines()
            .filter(|line| line.contains("lumeofs"))
            .collect();
        assert!(output.status.success() && own.is_empty(), "{said}");
    }
}

//! What people mistype: addresses, secrets, mount points, options.

use crate::attempt::{ends, lumeofs, nobody, secret, text};
use lumeofs_tests::{Cluster, binary, run, temporary};
use std::process::{Command, Stdio};

#[test]
fn a_mount_that_cannot_be_says_why_and_what_to_do() {
    let cluster = Cluster::start();
    let (masters, good) = (cluster.masters(), secret(&cluster));
    let scratch = cluster.scratch();
    let point = scratch.join("point");
    std::fs::create_dir(&point).unwrap();
    let (other, wrong) = (scratch.join("other"), scratch.join("wrong"));
    run(binary(), &["keygen", &text(&other)]);
    // Of this cluster by its id, but with another secret.
    let line_of = |file: &str, key: &str| {
        let text = std::fs::read_to_string(file).unwrap();
        let mut lines = text.lines();
        lines.find(|line| line.starts_with(key)).unwrap().to_owned()
    };
    let id = line_of(&good, "cluster_id");
    let key = line_of(&text(&other), "secret");
    std::fs::write(&wrong, format!("{id}\n{key}\n")).unwrap();
    let file = scratch.join("file");
    std::fs::write(&file, "").unwrap();

    let log = text(&scratch.join("log"));
    let mount = |masters: &str, point: &str, options: String| {
        lumeofs(&["mount", masters, point, "-o", &options, "--log", &log])
    };
    let with = |secret: &str| format!("secretfile={secret}");
    let (at, nobody) = (text(&point), nobody());
    let (other, wrong) = (text(&other), text(&wrong));
    mount(&nobody, &at, with(&good))
        .says(7, &["no master answers", &nobody, "check the addresses"]);
    // Too long for any name server to be asked.
    let unknown = "host".repeat(16);
    mount(&format!("{unknown}:7000"), &at, with(&good)).says(7, &[&unknown]);
    mount("localhost", &at, with(&good)).says(1, &["want HOST:PORT"]);
    mount(&masters, &at, with(&other)).says(8, &["cluster", "secret file"]);
    mount(&masters, &at, with(&wrong)).says(8, &["wrong cluster secret", "secret file"]);
    mount(&masters, &at, with("/no/such/file")).says(1, &["/no/such/file"]);
    mount(&masters, &at, String::new()).says(1, &["no secret file", "secretfile="]);
    mount(&masters, &at, with(&good) + ",nosiud").says(1, &["nosiud", "did you mean \"nosuid\""]);
    mount(&masters, &text(&file), with(&good)).says(1, &["not a directory"]);
    mount(&masters, &text(&scratch.join("none")), with(&good)).says(1, &["mkdir -p"]);
    mount(&format!("{masters}:/none"), &at, with(&good)).says(1, &["/none does not exist"]);
    mount(&masters, &text(&cluster.mount()), with(&good)).says(1, &["is busy", "umount"]);

    let fs = |arguments: &[&str]| lumeofs(&[&["fs"], arguments].concat());
    fs(&["--masters", &nobody, "--secret", &good, "ls"]).says(7, &["no master answers", &nobody]);
    fs(&["--masters", &masters, "--secret", &wrong, "ls"]).says(8, &["secret"]);
    fs(&["--masters", &masters, "ls"]).says(1, &["--secret"]);
    fs(&["--dir", &at, "ls"]).says(3, &["lumeofs dev"]);
    let here = text(&cluster.dir());
    fs(&["--dir", &here, "cat", "/none"]).says(3, &["/none"]);
    fs(&["--dir", &here, "cat", "/"]).says(1, &["no regular file"]);
    let admin = |masters: &str, secret: &str| {
        lumeofs(&["admin", "--masters", masters, "--secret", secret, "status"])
    };
    admin(&nobody, &good).says(7, &[&nobody, "refused"]);
    admin(&masters, &wrong).says(8, &["wrong cluster secret"]);
    lumeofs(&["keygen", &good]).says(4, &[&good, "exists"]);
    lumeofs(&["dev", "--dir", &here, "--detach"]).says(1, &["runs already", "dev stop"]);
}

#[test]
fn without_a_fuse_device_the_message_says_how_to_get_one() {
    let directory = temporary();
    let (secret, point) = (
        directory.path().join("secret"),
        directory.path().join("mnt"),
    );
    std::fs::create_dir(&point).unwrap();
    run(binary(), &["keygen", &text(&secret)]);
    // In a mount namespace of its own, /dev is empty.
    let script = "mount -t tmpfs none /dev && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-c", script, "bash"]);
    command.arg(binary()).args(["mount", &nobody()]).arg(&point);
    command.args(["--foreground", "--secret"]).arg(&secret);
    ends(&mut command).says(
        1,
        &["/dev/fuse does not exist", "modprobe fuse", "--device"],
    );
}

#[test]
fn reports_end_quietly_when_nobody_reads_on() {
    let cluster = Cluster::start();
    let dir = text(&cluster.dir());
    let blob = vec![7; 3 << 20];
    std::fs::write(cluster.mount().join("blob"), &blob).unwrap();
    let commands: [&[&str]; 5] = [
        &["admin", "--dir", &dir, "raft"],
        &["admin", "--dir", &dir, "groups", "--json"],
        &["dev", "status", "--dir", &dir],
        &["fs", "--dir", &dir, "ls", "/"],
        &["fs", "--dir", &dir, "cat", "/blob"],
    ];
    for arguments in commands {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .stdout(writer)
            .stderr(Stdio::piped());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let quiet = output.status.success() && said.is_empty();
        assert!(quiet, "{arguments:?}: {said}");
        // A full disk behind standard output is a failure, but no panic either.
        let full = std::fs::File::options().write(true).open("/dev/full");
        let mut command = Command::new(binary());
        let output = command.args(arguments).stdout(full.unwrap()).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(6), "{arguments:?}: {said}");
        assert!(said.contains("No space left"), "{arguments:?}: {said}");
    }
}

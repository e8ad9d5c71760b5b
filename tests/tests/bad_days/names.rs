//! Names are bytes, and limits have their errors.

use crate::attempt::errno;
use lumeofs_tests::{Cluster, binary};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::process::Command;

const SIZE_MAX: u64 = 1 << 46;

#[test]
fn any_bytes_make_a_name_and_too_many_of_them_enametoolong() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let longest = "n".repeat(255);
    let names: [&[u8]; 8] = [
        b"\xff\xfe\x80",
        b"line\nbreak",
        b" ",
        b"\x01\x1b[2J",
        b"-rf",
        "ü".as_bytes(),
        b"back\\slash",
        longest.as_bytes(),
    ];
    for name in names {
        std::fs::write(mount.join(OsStr::from_bytes(name)), name).unwrap();
    }
    let listed = std::fs::read_dir(&mount).unwrap();
    let mut listed: Vec<OsString> = listed.map(|entry| entry.unwrap().file_name()).collect();
    let mut wanted: Vec<_> = names.map(|name| OsStr::from_bytes(name).to_owned()).into();
    listed.sort();
    wanted.sort();
    assert_eq!(listed, wanted);

    let dir = cluster.dir();
    let fs = |arguments: &[&OsStr]| {
        let mut command = Command::new(binary());
        command.args(["fs", "--dir"]).arg(&dir).args(arguments);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        output.stdout
    };
    let table = String::from_utf8(fs(&["ls".as_ref()])).expect("nothing but text");
    let escaped = !table.contains('\x1b') && table.contains(r"\xff\xfe\x80");
    assert!(escaped, "{table}");
    for name in names {
        let path = [b"/", name].concat();
        assert_eq!(fs(&["cat".as_ref(), OsStr::from_bytes(&path)]), name);
        fs(&["rm".as_ref(), OsStr::from_bytes(&path)]);
    }
    assert_eq!(std::fs::read_dir(&mount).unwrap().count(), 0);

    let (name, long) = (mount.join("name"), mount.join("n".repeat(256)));
    std::fs::write(&name, "").unwrap();
    let too_long = Some(Errno::NAMETOOLONG);
    assert_eq!(errno(File::create(&long)), too_long);
    assert_eq!(errno(std::fs::create_dir(&long)), too_long);
    assert_eq!(errno(std::fs::rename(&name, &long)), too_long);
    assert_eq!(errno(std::fs::hard_link(&name, &long)), too_long);
    assert_eq!(errno(std::os::unix::fs::symlink("x", &long)), too_long);
    assert_eq!(errno(std::fs::metadata(&long)), too_long);
}

#[test]
fn a_file_beyond_its_largest_size_is_efbig() {
    let cluster = Cluster::start();
    let path = cluster.mount().join("large");
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .unwrap();
    file.write_all_at(b"end", SIZE_MAX - 3).unwrap();
    assert_eq!(file.metadata().unwrap().len(), SIZE_MAX);
    let too_big = Some(Errno::FBIG);
    assert_eq!(errno(file.write_at(b"x", SIZE_MAX)), too_big);
    assert_eq!(errno(file.write_at(b"x", 1 << 62)), too_big);
    assert_eq!(errno(file.set_len(SIZE_MAX + 1)), too_big);
    let mut append = File::options().append(true).open(&path).unwrap();
    assert_eq!(errno(std::io::Write::write(&mut append, b"x")), too_big);
    let mut end = [0; 3];
    file.read_exact_at(&mut end, SIZE_MAX - 3).unwrap();
    assert_eq!(&end, b"end");
}

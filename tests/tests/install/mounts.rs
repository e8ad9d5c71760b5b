//! Mounts by mount(8).

use crate::site::{PATIENCE, Site, failed, succeeded};
use lumeofs_tests::{binary, eventually, is_mounted, run, shell};
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

const EROFS: Option<i32> = Some(30);
const EACCES: Option<i32> = Some(13);

#[test]
fn mount_8_mounts_with_the_usual_options_in_effect() {
    let site = Site::start();
    let (point, masters) = (site.point(), site.cluster.masters());
    succeeded(&site.mount(&masters, ""));
    assert_eq!(site.shown("FSTYPE"), "fuse.lumeofs");
    assert_eq!(site.shown("SOURCE"), masters);
    fs::create_dir_all(point.join("sub/deep")).unwrap();
    fs::write(point.join("sub/file"), "x").unwrap();
    fs::write(point.join("sub/script"), "#!/bin/sh\nexit 7\n").unwrap();
    fs::set_permissions(point.join("sub/script"), PermissionsExt::from_mode(0o4755)).unwrap();
    run(
        "mknod",
        &[point.join("sub/null").to_str().unwrap(), "c", "1", "3"],
    );
    assert_eq!(
        Command::new(point.join("sub/script"))
            .status()
            .unwrap()
            .code(),
        Some(7)
    );
    fs::read(point.join("sub/null")).unwrap();

    // What is mounted already stays alone.
    let (code, said) = failed(&site.mount(&masters, ""));
    assert_eq!(code, Some(32), "{said}");
    assert!(said.contains("busy") && said.contains("umount"), "{said}");
    site.umount();
    assert!(!is_mounted(point));

    let source = format!("{masters}:/sub");
    let usual = "ro,nosuid,nodev,noexec,noatime,relatime,allow_other,default_permissions,_netdev,nofail,\
                 x-systemd.automount,x-systemd.mount-timeout=30,X-mount.mkdir";
    succeeded(&site.mount(&source, usual));
    assert_eq!(site.shown("SOURCE"), source);
    for option in ["ro", "nosuid", "nodev", "noexec", "noatime"] {
        assert!(
            site.has(option),
            "{option} of {}",
            site.shown("VFS-OPTIONS")
        );
    }
    assert_eq!(fs::read_to_string(point.join("file")).unwrap(), "x");
    assert_eq!(errno(fs::write(point.join("new"), "")), EROFS);
    assert_eq!(errno(Command::new(point.join("script")).status()), EACCES);
    assert_eq!(errno(fs::read(point.join("null"))), EACCES);
    site.umount();

    // relatime is how the kernel shows a mount that says nothing.
    succeeded(&site.mount(&masters, "relatime"));
    assert!(site.has("relatime") && site.has("rw"));
    site.umount();

    // Refused by name, with mount(8)'s codes; -s leaves it out.
    let (code, said) = failed(&site.mount(&masters, "ro,nosiud"));
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("\"nosiud\"") && said.contains("\"nosuid\""),
        "{said}"
    );
    let (code, said) = failed(&site.mount(&format!("{masters}:/missing"), ""));
    assert_eq!(code, Some(32), "{said}");
    assert!(said.contains("/missing"), "{said}");
    let (code, said) = failed(&site.mount("nonsense", ""));
    assert_eq!(code, Some(1), "{said}");
    let mount = |flags: &[&str], more: &str| {
        let mut command = Command::new("mount");
        command
            .args(flags)
            .args(["-t", "fuse.lumeofs", &masters])
            .arg(point);
        command.args(["-o", &site.options(more)]).output().unwrap()
    };
    succeeded(&mount(&["-f"], "ro"));
    failed(&mount(&["-f"], "bogus"));
    assert!(!is_mounted(point));
    let output = mount(&["-s", "-v"], "bogus,ro");
    succeeded(&output);
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("mounted on"),
        "{output:?}"
    );
    assert!(site.has("ro"));
}

#[test]
fn a_line_of_fstab_is_mounted_remounted_and_unmounted() {
    let site = Site::start();
    let point = site.point();
    let fstab = site.cluster.scratch().join("fstab");
    let options =
        site.options("_netdev,nofail,noatime,nosuid,on-outage=block:30,x-systemd.automount");
    let masters = site.cluster.masters();
    let line = format!(
        "{masters}:/ {} fuse.lumeofs {options} 0 0\n",
        point.display()
    );
    fs::write(&fstab, line).unwrap();
    // mount(8) with this fstab instead of /etc/fstab.
    let mount = |arguments: &[&str]| {
        let mut command = Command::new("mount");
        command
            .arg("-T")
            .arg(&fstab)
            .args(arguments)
            .output()
            .unwrap()
    };
    let at = point.to_str().unwrap();
    succeeded(&mount(&[at]));
    assert!(site.has("noatime") && site.has("nosuid") && site.has("rw"));
    // `mount -a` finds it mounted, by source and place.
    succeeded(&mount(&["-a"]));
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert_eq!(mounts.lines().filter(|line| line.contains(at)).count(), 1);

    fs::write(point.join("file"), "before").unwrap();
    let open = fs::File::options()
        .write(true)
        .open(point.join("file"))
        .unwrap();
    let (code, said) = failed(&mount(&["-o", "remount,ro", at]));
    assert_eq!(code, Some(32));
    assert!(said.contains("open for writing"), "{said}");
    drop(open);
    eventually("nobody writes any more", PATIENCE, || {
        mount(&["-o", "remount,ro", at]).status.success()
    });
    assert!(site.has("ro") && site.has("noatime") && site.has("nosuid"));
    assert_eq!(errno(fs::write(point.join("file"), "")), EROFS);
    succeeded(&mount(&["-o", "remount,rw,noexec,suid", at]));
    assert!(site.has("rw") && site.has("noexec") && !site.has("nosuid"));
    fs::write(point.join("file"), "after").unwrap();
    // Without fstab, mount(8) hands on what the kernel shows.
    run("mount", &["-o", "remount,ro", at]);
    assert!(site.has("ro") && site.has("noexec") && site.has("noatime"));
    run("mount", &["-o", "remount,rw,exec,sync", at]);
    assert!(site.has("rw") && !site.has("noexec"));
    assert!(
        site.shown("FS-OPTIONS")
            .split(',')
            .any(|shown| shown == "sync")
    );

    // What only the mount process could change is refused by name.
    for (change, known) in [
        ("on-outage=eio", "on-outage=block:30"),
        ("secretfile=/x", &site.secret()),
    ] {
        let (code, said) = failed(&mount(&["-o", &format!("remount,{change}"), at]));
        assert_eq!(code, Some(32), "{said}");
        assert!(said.contains(change) && said.contains(known), "{said}");
    }
    let (code, said) = failed(&mount(&["-o", "remount,nosiud", at]));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("\"nosiud\""), "{said}");

    // A mount that began read-only becomes writable.
    run("umount", &[at]);
    succeeded(&mount(&["-o", "ro", at]));
    assert_eq!(errno(fs::write(point.join("file"), "")), EROFS);
    succeeded(&mount(&["-o", "remount,rw", at]));
    fs::write(point.join("file"), "again").unwrap();
    run("umount", &[at]);
    let (code, said) = failed(&mount(&["-o", "remount,ro", at]));
    assert!(matches!(code, Some(1 | 32)), "{said}");
}

#[test]
fn after_a_killed_mount_process_the_place_is_mounted_again_at_once() {
    let site = Site::start();
    let (point, masters) = (site.point(), site.cluster.masters());
    succeeded(&site.mount(&masters, ""));
    fs::write(point.join("file"), "kept").unwrap();
    fs::File::open(point.join("file"))
        .unwrap()
        .sync_all()
        .unwrap();
    let log = site.log().display().to_string();
    // By mount(8), and by the command, there through a symlink; a file of the old mount is open.
    let link = site.cluster.scratch().join("link");
    symlink(point, &link).unwrap();
    for round in 0..4 {
        let old = site.process();
        let open = fs::File::open(point.join("file")).unwrap();
        run("kill", &["-9", &old]);
        if round % 2 == 0 {
            succeeded(&site.mount(&masters, ""));
        } else {
            let secret = site.secret();
            run(
                binary(),
                &[
                    "mount",
                    &masters,
                    link.to_str().unwrap(),
                    "--secret",
                    &secret,
                    "--log",
                    &log,
                ],
            );
        }
        assert_eq!(
            fs::read_to_string(point.join("file")).unwrap(),
            "kept",
            "round {round}"
        );
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let here = mounts
            .lines()
            .filter(|line| line.contains(point.to_str().unwrap()));
        assert_eq!(here.count(), 1, "{mounts}");
        assert!(
            open.read_at(&mut [0], 0).is_err(),
            "a file of the old mount is gone"
        );
        eventually("the old process is gone", PATIENCE, || {
            !Path::new("/proc").join(&old).exists()
        });
    }
    // A remount of a mount without a process changes nothing and says so.
    run("kill", &["-9", &site.process()]);
    let (_, said) = failed(
        &Command::new("mount")
            .args(["-o", "remount,ro"])
            .arg(point)
            .output()
            .unwrap(),
    );
    assert!(said.contains("lost its process"), "{said}");
    run("umount", &[point.to_str().unwrap()]);
    assert!(!is_mounted(point));
}

#[test]
fn an_ordinary_user_mounts_and_unmounts_what_fstab_allows() {
    let site = Site::start();
    let point = site.point();
    // The user must reach it, own it and read the secret.
    let scratch = site.cluster.scratch();
    let (secret, fstab) = (scratch.join("secret"), scratch.join("fstab"));
    fs::copy(site.cluster.dir().join("secret"), &secret).unwrap();
    let open =
        |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    open(scratch.parent().unwrap(), 0o711);
    open(&scratch, 0o711);
    open(&secret, 0o400);
    let log = scratch.join("user.log");
    fs::write(&log, "").unwrap();
    for path in [point, &secret, &log] {
        run("chown", &["nobody", path.to_str().unwrap()]);
    }
    let line = format!(
        "{} {} fuse.lumeofs user,noauto,secretfile={},log={} 0 0\n",
        site.cluster.masters(),
        point.display(),
        secret.display(),
        log.display()
    );
    fs::write(&fstab, line).unwrap();
    // Not everywhere may ordinary users open that of the machine.
    let device = scratch.join("fuse");
    run("mknod", &[device.to_str().unwrap(), "c", "10", "229"]);
    open(&device, 0o666);
    // In a mount namespace of its own, where that is /etc/fstab.
    let script = format!(
        r#"
        unshare -m bash -euo pipefail -c '
          mount --bind {fstab} /etc/fstab
          mount --bind {device} /dev/fuse
          as() {{ setpriv --reuid nobody --regid nogroup --clear-groups -- "$@"; }}
          as mount {point}
          [ "$(findmnt -n -o FSTYPE,SOURCE {point} | tr -s " ")" = "fuse.lumeofs {masters}" ]
          findmnt -n -o VFS-OPTIONS {point} | grep nosuid | grep nodev | grep -q noexec
          as ls {point} > /dev/null
          as umount {point}
          if findmnt {point}; then exit 1; fi
        '
        "#,
        fstab = fstab.display(),
        device = device.display(),
        point = point.display(),
        masters = site.cluster.masters(),
    );
    shell(&scratch, &script);
}

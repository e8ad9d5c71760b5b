//! `lumeofs admin blocked` names the datanode for which writes wait.

use lumeofs_tests::{MachineMount, Machines, Running, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(90);
/// Files written at once: chunks lie in turn in all groups, half of which have the other datanode as primary.
const FILES: u8 = 8;

fn blocked(machines: &Machines) -> (Option<i32>, Value) {
    let output = machines.admin(&machines.first, &["blocked"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let value = serde_json::from_slice(&output.stdout);
    (
        output.status.code(),
        value.unwrap_or_else(|error| panic!("{error}: {said}")),
    )
}

/// Lets a stopped process go on when the test ends, so that it can be ended in order.
struct Stopped(Pid);

impl Stopped {
    fn new(process: &Running) -> Self {
        let pid = Pid::from_child(process);
        kill_process(pid, Signal::STOP).expect("a process of ours");
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

#[test]
fn writes_that_wait_for_a_stopped_datanode_are_listed_with_its_number() {
    let (machines, _m1) = Machines::found("2");
    let first = machines.first.clone();
    let _d1 = machines.join("datanode", "d1");
    let d2 = machines.join("datanode", "d2");
    eventually("a file can be written", SOON, || {
        machines.put(&first, "/probe").status.success()
    });
    let (one, two) = (machines.id("d1"), machines.id("d2"));
    let mount = MachineMount::new(&machines, &first, "mnt", &machines.secret(), "");
    eventually("nothing waits", SOON, || {
        let (code, said) = blocked(&machines);
        code == Some(0) && said["blocked"].as_array().is_some_and(Vec::is_empty)
    });

    let stopped = Stopped::new(&d2);
    std::thread::scope(|scope| {
        for at in 0..FILES {
            let path = mount.path(&format!("file-{at}"));
            // With two copies no write is acknowledged by one: they wait as long as it takes.
            scope.spawn(move || std::fs::write(path, [at; 5000]).expect("it is written"));
        }
        let mut last = Value::Null;
        eventually("a write waits for the stopped datanode", SOON, || {
            let (code, said) = blocked(&machines);
            last = said;
            let items = last["blocked"].as_array().expect("a list").iter();
            let mut waiting = items.filter(|item| {
                item["at"] == format!("datanode {one}")
                    && item["op"] == "write"
                    && item["nodes"]
                        .as_array()
                        .is_some_and(|nodes| nodes.contains(&two.into()))
            });
            let silent = last["not_asked"].as_array().expect("a list").iter();
            let named = silent.filter(|server| server["server"] == format!("datanode {two}"));
            let found = waiting.next().is_some_and(|item| {
                item["age_ms"].as_u64() >= Some(1000)
                    && item["session"].as_u64() > Some(0)
                    && item["client"].is_string()
            });
            found && named.count() == 1 && code == Some(9)
        });
        drop(stopped);
    });
    eventually("nothing waits any more", SOON, || {
        let (code, said) = blocked(&machines);
        code == Some(0) && said["blocked"].as_array().is_some_and(Vec::is_empty)
    });
    for at in 0..FILES {
        let read = std::fs::read(mount.path(&format!("file-{at}"))).expect("it is there");
        assert_eq!(read, [at; 5000]);
    }
}

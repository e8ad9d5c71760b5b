//! What can go wrong, as a table: each kind with what an application may notice of it.

use super::Random;
use super::faults::{clock, disk, membership, network, process};
use crate::{Role, Site, pause};
use rustix::io::Errno;
use std::time::Duration;

/// A fault with its target. The steps are called in this order.
pub(super) trait Fault {
    /// What it hits.
    fn target(&self) -> String;

    /// Before the load starts.
    fn prepare(&mut self, _site: &mut Site) {}

    /// Makes it.
    fn inject(&mut self, site: &mut Site);

    /// While it lasts.
    fn last(&mut self, _site: &mut Site, hold: Duration) {
        pause(hold);
    }

    /// Mends it, as an administrator would.
    fn heal(&mut self, site: &mut Site);

    /// Whether what this fault did is over, besides all groups in sync and all masters level.
    fn is_over(&mut self, _site: &mut Site) -> bool {
        true
    }

    /// After the load has ended: what it changed for the sake of the test is taken back.
    fn tidy(&mut self, _site: &mut Site) {}
}

/// A kind of fault.
#[derive(Debug)]
pub struct Kind {
    /// How it is named on the command line.
    pub name: &'static str,
    /// What it is, for the table.
    pub what: &'static str,
    /// Longest time that a call may take because of it.
    pub stall: Duration,
    /// Longest time from mending until everything is in sync.
    pub recovery: Duration,
    /// What calls may fail with: nothing, unless the fault takes more than a majority gives back.
    pub(super) allowed: &'static [Errno],
    /// Commands that mending takes, as words after `lumeofs admin`.
    pub(super) needs: &'static [&'static [&'static str]],
    /// What it takes one of, if another fault may come on top of it: one of a master with one of a datanode leaves a
    /// majority of both alive.
    pub pairs: Option<Role>,
    pub(super) make: fn(&mut Random, &Site) -> Box<dyn Fault>,
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const PLAIN: Kind = Kind {
    name: "",
    what: "",
    stall: seconds(10),
    recovery: seconds(60),
    allowed: &[],
    needs: &[],
    pairs: None,
    make: |_, _| Box::new(process::Nothing),
};

const MASTER: Kind = Kind {
    pairs: Some(Role::Master),
    ..PLAIN
};

const DATANODE: Kind = Kind {
    pairs: Some(Role::Datanode),
    ..PLAIN
};

/// All kinds.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "none",
        what: "nothing: what the machine does by itself",
        stall: seconds(5),
        ..PLAIN
    },
    Kind {
        name: "kill-master",
        what: "kill -9 of a master",
        stall: seconds(7),
        make: |random, site| Box::new(process::Kill::new(master(random, site))),
        ..MASTER
    },
    Kind {
        name: "kill-datanode",
        what: "kill -9 of a datanode",
        stall: seconds(5),
        make: |random, site| Box::new(process::Kill::new(datanode(random, site))),
        ..DATANODE
    },
    Kind {
        name: "stop-master",
        what: "SIGSTOP of a master, then SIGCONT",
        make: |random, site| Box::new(process::Pause::new(master(random, site))),
        ..MASTER
    },
    Kind {
        name: "stop-datanode",
        what: "SIGSTOP of a datanode, then SIGCONT",
        make: |random, site| Box::new(process::Pause::new(datanode(random, site))),
        ..DATANODE
    },
    Kind {
        name: "cut-master",
        what: "a master cut off from everybody",
        make: |random, site| Box::new(network::Cut::full(master(random, site))),
        ..MASTER
    },
    Kind {
        name: "cut-datanode",
        what: "a datanode cut off from everybody",
        make: |random, site| Box::new(network::Cut::full(datanode(random, site))),
        ..DATANODE
    },
    Kind {
        name: "mute-master",
        what: "a master whose packets all vanish; it hears the others",
        make: |random, site| Box::new(network::Cut::mute(master(random, site))),
        ..MASTER
    },
    Kind {
        name: "mute-datanode",
        what: "a datanode whose packets all vanish; it hears the others",
        make: |random, site| Box::new(network::Cut::mute(datanode(random, site))),
        ..DATANODE
    },
    Kind {
        name: "deaf-master",
        what: "a master that hears nobody; its packets arrive",
        make: |random, site| Box::new(network::Cut::deaf(master(random, site))),
        ..MASTER
    },
    Kind {
        name: "deaf-datanode",
        what: "a datanode that hears nobody; its packets arrive",
        make: |random, site| Box::new(network::Cut::deaf(datanode(random, site))),
        ..DATANODE
    },
    Kind {
        name: "cut-client",
        what: "one mount loses a datanode that everybody else reaches",
        // Its writes wait for the primary, which is well, until the link is back.
        stall: seconds(20),
        make: |random, site| Box::new(network::Cut::from_a_client(datanode(random, site))),
        ..PLAIN
    },
    Kind {
        name: "full-master",
        what: "the disk of a master is full",
        make: |random, site| Box::new(disk::Full::new(master(random, site))),
        ..PLAIN
    },
    Kind {
        name: "full-datanode",
        what: "the disk of a datanode is full",
        allowed: &[Errno::NOSPC],
        make: |random, site| Box::new(disk::Full::new(datanode(random, site))),
        ..PLAIN
    },
    Kind {
        name: "eio-master",
        what: "the disk of a master is pulled out: EIO",
        make: |random, site| Box::new(disk::Pulled::new(master(random, site))),
        ..MASTER
    },
    Kind {
        name: "eio-datanode",
        what: "the disk of a datanode is pulled out: EIO",
        make: |random, site| Box::new(disk::Pulled::new(datanode(random, site))),
        ..DATANODE
    },
    Kind {
        name: "read-only-datanode",
        what: "the kernel makes the disk of a datanode read-only after an error",
        make: |random, site| Box::new(disk::ReadOnly::new(datanode(random, site))),
        ..DATANODE
    },
    Kind {
        name: "flip-datanode",
        what: "bits flip on the disk of a datanode; a scrub mends them",
        needs: &[&["scrub", "start"], &["scrub", "status"]],
        make: |random, site| Box::new(disk::Flipped::new(datanode(random, site), random)),
        ..PLAIN
    },
    Kind {
        name: "clock-forward-master",
        what: "the clock of the leading master steps by +1 h, and back",
        make: |_, site| Box::new(clock::Step::new(site.leader("metadata"), 3600)),
        ..PLAIN
    },
    Kind {
        name: "clock-back-master",
        what: "the clock of the leading master steps by -1 h, and back",
        make: |_, site| Box::new(clock::Step::new(site.leader("metadata"), -3600)),
        ..PLAIN
    },
    Kind {
        name: "clock-forward-datanode",
        what: "the clock of a datanode steps by +1 h, and back",
        make: |random, site| Box::new(clock::Step::new(datanode(random, site), 3600)),
        ..PLAIN
    },
    Kind {
        name: "clock-back-datanode",
        what: "the clock of a datanode steps by -1 h, and back",
        make: |random, site| Box::new(clock::Step::new(datanode(random, site), -3600)),
        ..PLAIN
    },
    Kind {
        name: "restart-storm",
        what: "a master and a datanode are killed and started again and again",
        stall: seconds(20),
        make: |random, site| {
            let victims = [master(random, site), datanode(random, site)];
            Box::new(process::Storm::new(victims, random))
        },
        ..PLAIN
    },
    Kind {
        name: "wipe-datanode",
        what: "a datanode loses all its data and comes back under its id",
        make: |random, site| Box::new(membership::WipedDatanode::new(datanode(random, site))),
        ..PLAIN
    },
    Kind {
        name: "wipe-master",
        what: "a master loses all its data and is replaced by one with a new id",
        needs: &[&["master", "replace"]],
        make: |random, site| Box::new(membership::WipedMaster::new(master(random, site), site)),
        ..PLAIN
    },
    Kind {
        name: "fourth-datanode",
        what: "a datanode dies for good; a fourth one takes its place",
        recovery: seconds(120),
        needs: &[&["node", "replace"]],
        make: |random, site| Box::new(membership::Fourth::new(datanode(random, site), site)),
        ..PLAIN
    },
    Kind {
        name: "drain-datanode",
        what: "a datanode is drained to a fourth one and taken away",
        recovery: seconds(120),
        needs: &[&["node", "drain"]],
        make: |random, site| Box::new(membership::Drain::new(datanode(random, site), site)),
        ..PLAIN
    },
    Kind {
        name: "rolling-restart",
        what: "every master and datanode is stopped in order and started, one after the other",
        make: |_, _| Box::new(process::Rolling),
        ..PLAIN
    },
];

/// Any master; the leader of the metadata group more often than not, since it matters most.
fn master(random: &mut Random, site: &Site) -> &'static str {
    let masters = site.hosts_of(Role::Master);
    match random.below(2) {
        0 => site.leader("metadata"),
        _ => random.of(&masters),
    }
}

fn datanode(random: &mut Random, site: &Site) -> &'static str {
    random.of(&site.hosts_of(Role::Datanode))
}

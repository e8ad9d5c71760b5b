//! Processes that die, hang or are restarted.

use super::super::Random;
use super::super::fault::Fault;
use crate::{Role, Site, eventually, pause};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// How long one node may take to be level again when all are restarted in turn.
const NEXT: Duration = Duration::from_secs(60);
/// A storm lasts at least so long.
const STORM: Duration = Duration::from_secs(10);

/// What is measured without a fault.
pub(in super::super) struct Nothing;

impl Fault for Nothing {
    fn target(&self) -> String {
        "-".into()
    }

    fn inject(&mut self, _: &mut Site) {}

    fn heal(&mut self, _: &mut Site) {}
}

/// `kill -9`, and a start later.
pub(in super::super) struct Kill(&'static str);

impl Kill {
    pub(in super::super) fn new(host: &'static str) -> Self {
        Self(host)
    }
}

impl Fault for Kill {
    fn target(&self) -> String {
        self.0.into()
    }

    fn inject(&mut self, site: &mut Site) {
        site.kill(self.0);
    }

    fn heal(&mut self, site: &mut Site) {
        site.start_node(self.0);
    }
}

/// SIGSTOP: connections stay, nothing answers.
pub(in super::super) struct Pause(&'static str);

impl Pause {
    pub(in super::super) fn new(host: &'static str) -> Self {
        Self(host)
    }
}

impl Fault for Pause {
    fn target(&self) -> String {
        self.0.into()
    }

    fn inject(&mut self, site: &mut Site) {
        site.signal(self.0, Signal::STOP);
    }

    fn heal(&mut self, site: &mut Site) {
        site.signal(self.0, Signal::CONT);
    }
}

/// Restarts without a pause of the same nodes.
pub(in super::super) struct Storm {
    victims: [&'static str; 2],
    random: Random,
}

impl Storm {
    pub(in super::super) fn new(victims: [&'static str; 2], random: &mut Random) -> Self {
        let random = Random::new(random.number());
        Self { victims, random }
    }
}

impl Fault for Storm {
    fn target(&self) -> String {
        self.victims.join(" ")
    }

    fn inject(&mut self, _: &mut Site) {}

    fn last(&mut self, site: &mut Site, hold: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < hold.max(STORM) {
            let victim = self.random.of(&self.victims);
            site.kill(victim);
            pause(Duration::from_millis(self.random.between(0, 500)));
            site.start_node(victim);
            pause(Duration::from_millis(self.random.between(50, 1500)));
        }
    }

    fn heal(&mut self, _: &mut Site) {}
}

/// What an upgrade does: one node after the other, each when the one before is level.
pub(in super::super) struct Rolling;

impl Fault for Rolling {
    fn target(&self) -> String {
        "all".into()
    }

    fn inject(&mut self, _: &mut Site) {}

    fn last(&mut self, site: &mut Site, _: Duration) {
        for role in [Role::Master, Role::Datanode] {
            for host in site.hosts_of(role) {
                site.terminate(host);
                site.start_node(host);
                eventually(&format!("{host} is level after its restart"), NEXT, || {
                    site.masters_caught_up() && site.in_sync()
                });
            }
        }
    }

    fn heal(&mut self, _: &mut Site) {}
}

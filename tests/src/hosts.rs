//! Hosts on one machine: network namespaces on a bridge, whose links can lose packets without a word.

use crate::run;
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Network namespaces that end with this. What runs in them must end before.
#[derive(Debug)]
pub struct Hosts {
    prefix: String,
    hosts: BTreeMap<&'static str, u8>,
}

impl Hosts {
    /// A bridge without hosts. The namespaces' names begin with `prefix` and the number of this process.
    pub fn new(prefix: &str) -> Self {
        // Tests of one process may run side by side.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let hosts = Self {
            prefix: format!("{prefix}{}-{count}", std::process::id()),
            hosts: BTreeMap::new(),
        };
        let hub = hosts.namespace("hub");
        run("ip", &["netns", "add", &hub]);
        run("ip", &["-n", &hub, "link", "add", "br0", "type", "bridge"]);
        run("ip", &["-n", &hub, "link", "set", "br0", "up"]);
        hosts
    }

    /// Adds a host with [`address`] of `number`.
    pub fn add(&mut self, host: &'static str, number: u8) {
        self.hosts.insert(host, number);
        let (hub, name) = (self.namespace("hub"), self.namespace(host));
        run("ip", &["netns", "add", &name]);
        let pair = ["link", "add", "name", host, "type", "veth", "peer", "name"];
        let there = ["eth0", "netns", &name];
        run("ip", &[&["-n", &hub][..], &pair, &there].concat());
        let link = ["link", "set", "dev", host, "master", "br0", "up"];
        run("ip", &[&["-n", &hub][..], &link].concat());
        let own = format!("{}/24", address(number));
        run("ip", &["-n", &name, "addr", "add", &own, "dev", "eth0"]);
        run("ip", &["-n", &name, "link", "set", "eth0", "up"]);
        run("ip", &["-n", &name, "link", "set", "lo", "up"]);
    }

    /// All hosts.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.hosts.keys().copied()
    }

    /// The address of a host.
    pub fn address(&self, host: &str) -> String {
        address(self.hosts[host])
    }

    /// The network namespace of a host.
    pub fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    /// A program that will run on a host: the network is the host's, all else is shared.
    pub fn command(&self, host: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.namespace(host)))
            .arg("--")
            .arg(program);
        command
    }

    /// Packets from one host to another vanish.
    pub fn cut(&self, from: &str, to: &str) {
        let (namespace, to) = (self.namespace(from), self.address(to));
        let nowhere = [
            "lladdr",
            "02:00:00:00:00:ff",
            "dev",
            "eth0",
            "nud",
            "permanent",
        ];
        let begin = ["-n", &namespace, "neigh", "replace", &to];
        run("ip", &[&begin[..], &nowhere].concat());
    }

    /// Nothing gets through between one host and others.
    pub fn cut_both(&self, one: &str, others: &[&str]) {
        for other in others {
            self.cut(one, other);
            self.cut(other, one);
        }
    }

    /// Undoes [`Hosts::cut`], if that was not undone already: two faults may have cut the same.
    pub fn mend(&self, from: &str, to: &str) {
        let (namespace, to) = (self.namespace(from), self.address(to));
        let flush = ["-n", &namespace, "neigh", "flush", "to", &to];
        let permanent = ["dev", "eth0", "nud", "permanent"];
        run("ip", &[&flush[..], &permanent].concat());
    }

    /// Undoes all cuts.
    pub fn heal(&self) {
        let permanent = ["neigh", "flush", "nud", "permanent", "dev", "eth0"];
        for host in self.hosts.keys() {
            let namespace = self.namespace(host);
            run("ip", &[&["-n", &namespace][..], &permanent].concat());
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in self.hosts.keys().chain([&"hub"]) {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.namespace(host)])
                .output();
        }
    }
}

/// The address of the host with this number.
pub fn address(number: u8) -> String {
    format!("10.199.0.{number}")
}

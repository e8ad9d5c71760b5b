//! The controller: compare-and-set on the epoch, and answers that may be lost.

use crate::world::{Event, World, show};
use lumeofs_base::{Epoch, GroupConfig};

impl World {
    pub(crate) fn decide(
        &mut self,
        from: usize,
        expected: Epoch,
        config: GroupConfig,
        restart: bool,
    ) {
        if self.controller_down {
            return;
        }
        let valid = config.epoch == self.config.epoch.next()
            && config.in_sync.len() >= config.write_quorum()
            && config.in_sync.contains(&config.primary);
        let valid = valid && self.config.is_in_sync(config.primary);
        if expected == self.config.epoch && valid {
            self.takeovers += usize::from(config.primary != self.config.primary);
            let grown = config
                .in_sync
                .iter()
                .any(|node| !self.config.is_in_sync(*node));
            if grown && self.rng.percent(20) {
                self.after(10, 40_000, Event::Crash(from));
            }
            self.config = config;
            self.trace(|| format!("accepted {}, restart: {restart}", show(&self.config)));
            if restart {
                self.restarts += 1;
                if self.forgiving {
                    self.clients.on_restart(self.config.epoch);
                }
            }
        }
        // The answer may be lost; the proposer then hears of it some other way.
        if !self.rng.percent(10) || self.is_quiet() {
            let config = self.config.clone();
            self.after(300, 30_000, Event::Proposed { to: from, config });
        }
    }
}

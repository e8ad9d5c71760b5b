//! What goes wrong, by dice.

use crate::masters::Touched;
use crate::world::{Event, World, ms};
use lumeofs_meta::op::{Command, Internal};

impl World {
    pub(crate) fn fault(&mut self) {
        if self.is_quiet() {
            for mount in 0..self.mounts.len() {
                self.mounts[mount].cut_until = ms(0);
            }
            return;
        }
        self.after(200_000, 4_000_000, Event::Fault);
        let mount = self.rng.below(self.mounts.len() as u64) as usize;
        let long = ms(100 + self.rng.below(9_000));
        let until = self.now + long;
        match self.rng.below(10) {
            0..=2 => self.depose(),
            3..=5 => {
                self.trace(|| format!("mount {mount} stops for {long:?}"));
                self.counts.stops += 1;
                self.mounts[mount].stopped_until = until;
            }
            6 | 7 => {
                self.trace(|| format!("mount {mount} is cut off for {long:?}"));
                self.mounts[mount].cut_until = until;
            }
            8 => {
                self.trace(|| format!("mount {mount} crashes"));
                self.counts.crashes += 1;
                self.crash_mount(mount);
                self.after(100_000, 5_000_000, Event::Restart(mount));
            }
            _ => {
                if let Some(session) = self.mounts[mount].session
                    && self.group.leader.is_some()
                {
                    self.trace(|| format!("an administrator ends {session} of mount {mount}"));
                    let end = Internal::EndSession { session };
                    self.propose(Command::Internal(end), Touched::default(), None);
                }
            }
        }
    }
}

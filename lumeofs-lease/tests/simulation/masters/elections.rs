//! Leaders come and go.

use super::MASTERS;
use crate::bugs::Bug;
use crate::calls::Tell;
use crate::world::{Event, World};
use lumeofs_base::SessionId;
use lumeofs_meta::namespace;
use lumeofs_meta::op::{Command, Internal, Outcome};

impl World {
    /// The leader is none any more; what it had proposed is in the next one's log, or not.
    pub(crate) fn depose(&mut self) {
        let Some(leader) = self.group.leader.take() else {
            return;
        };
        let kept = self.rng.below(self.group.pending.len() as u64 + 1) as usize;
        self.group.pending.truncate(kept);
        self.trace(|| format!("master {leader} is deposed, {kept} commands stay"));
        for held in std::mem::take(&mut self.masters[leader].held) {
            self.tell(held.from, Tell::NotLeader);
        }
        self.pump(leader);
        self.after(100_000, 1_500_000, Event::Elect);
    }

    pub(crate) fn elect(&mut self) {
        if self.group.leader.is_some() {
            return;
        }
        let at = self.rng.below(MASTERS as u64) as usize;
        self.group.term += 1;
        self.counts.elections += 1;
        for proposal in std::mem::take(&mut self.group.pending) {
            self.commit(&proposal.command);
        }
        self.commit(&Command::Internal(Internal::Noop));
        self.on_apply(at, self.group.log.len());
        self.group.leader = Some(at);
        self.trace(|| format!("master {at} leads"));
        let now = self.master_clock(at);
        let mut live: Vec<SessionId> = namespace::sessions(&self.group.tables)
            .into_iter()
            .map(|session| session.id)
            .collect();
        if self.bug == Some(Bug::NoWindow) {
            live.clear();
        }
        let master = &mut self.masters[at];
        // Replies of a former leadership of this master count recalls of that.
        master.waiting.clear();
        master.table.lead(now, self.group.term, live);
    }

    /// A command before everything else.
    pub(crate) fn set_up(&mut self, command: &Command) -> Outcome {
        let applied = self.commit(command);
        for at in 0..MASTERS {
            self.on_apply(at, self.group.log.len());
        }
        applied.outcome
    }
}

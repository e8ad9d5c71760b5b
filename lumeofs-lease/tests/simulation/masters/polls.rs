//! Polls at the leader, those that are held back too.

use crate::bugs::Bug;
use crate::calls::{Ask, From, Tell};
use crate::world::World;
use lumeofs_base::SessionId;
use lumeofs_lease::{POLL_WAIT, PollAnswer};
use lumeofs_meta::namespace;
use std::time::Duration;

/// A poll that is held back.
pub(super) struct Held {
    pub(super) from: From,
    session: SessionId,
    seen: u64,
    renewed: bool,
    until: Duration,
}

impl World {
    /// A poll counts: the leader was one still after it had arrived.
    pub(crate) fn on_confirm(
        &mut self,
        at: usize,
        term: u64,
        received: Duration,
        from: From,
        ask: Ask,
    ) {
        let Ask::Poll {
            session,
            poll,
            long,
        } = ask
        else {
            return;
        };
        if (self.group.leader, self.group.term) != (Some(at), term) {
            return self.tell(from, Tell::NotLeader);
        }
        let now = self.master_clock(at);
        let master = &mut self.masters[at];
        if !namespace::has_session(&master.tables, session) {
            return self.tell(from, Tell::Expired);
        }
        let mut poll = poll;
        if self.bug == Some(Bug::ReleaseOfLaterGrants) {
            poll.released
                .iter_mut()
                .for_each(|release| release.number = u64::MAX);
        }
        let Some(heard) = master.table.poll(received, session, &poll) else {
            return self.tell(from, Tell::Overtaken);
        };
        let answer = heard.answer;
        if long && !answer.restate && answer.recalls.is_empty() {
            master.held.push(Held {
                from,
                session,
                seen: poll.seen,
                renewed: answer.renewed,
                until: now + POLL_WAIT,
            });
        } else {
            self.tell(from, Tell::Polled(answer));
        }
        self.pump(at);
    }

    /// Answers polls to which there is something to say, or whose time is over.
    pub(super) fn answer_held(&mut self, at: usize) {
        let now = self.master_clock(at);
        for held in std::mem::take(&mut self.masters[at].held) {
            let news = self.masters[at].table.news(held.session, held.seen);
            if news.restate || !news.recalls.is_empty() || now >= held.until {
                let answer = PollAnswer {
                    renewed: held.renewed && !news.restate,
                    ..news
                };
                self.tell(held.from, Tell::Polled(answer));
            } else {
                self.masters[at].held.push(held);
            }
        }
    }
}

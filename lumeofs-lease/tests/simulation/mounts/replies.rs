//! What answers lead to.

use super::ops::{Seen, Stage};
use super::plans::{Plan, touches};
use super::{Then, World};
use crate::bugs::Bug;
use crate::calls::{Ask, Tell};
use crate::masters::MASTERS;
use crate::queries;
use crate::world::MountEvent;
use lumeofs_base::{Attr, FileKind, InodeId, SessionId};
use lumeofs_lease::{Cached, Generation};
use lumeofs_meta::op::{Mutation, Outcome, Query, Reply};

impl World {
    pub(super) fn on_reply(&mut self, mount: usize, call: u64, tell: Tell) {
        let now = self.mount_clock(mount);
        if let Tell::Answer {
            query,
            outcome,
            generation,
            grants,
            ..
        } = &tell
        {
            let mut grants = grants.clone();
            if self.bug == Some(Bug::OldGrantsCount) {
                grants
                    .iter_mut()
                    .for_each(|grant| grant.number += 1_000_000);
            }
            // Also if nobody waits for it any more.
            let holder = &mut self.mounts[mount].holder;
            let before = holder.len();
            if let Some(learned) = queries::learned(query, outcome) {
                holder.learn(now, *generation, &grants, learned);
            }
            self.counts.evicted += usize::from(self.mounts[mount].holder.len() < before);
            self.run_acts(mount);
        }
        let Some(there) = self.mounts[mount].calls.get(&call) else {
            return;
        };
        if let (Ask::Write { attempt: last, .. }, Tell::Written { attempt }) = (&there.ask, &tell)
            && attempt != last
        {
            // The connection of an earlier attempt was given up (rule D3): only when the last one has arrived does nothing
            // of this write come any more.
            return;
        }
        let (then, is_over) = (there.then.clone(), there.is_over);
        let mutation = match &there.ask {
            Ask::Mutate {
                sequence, mutation, ..
            } => Some((*sequence, mutation.clone())),
            _ => None,
        };
        match tell {
            Tell::NotLeader if matches!(then, Then::Poll { .. }) => {}
            Tell::NotLeader => {
                // It is tried again.
                let state = &mut self.mounts[mount];
                state.leader = self.rng.below(MASTERS as u64) as usize;
                let attempt = state.calls[&call].attempt;
                let what = MountEvent::TimeOut { call, attempt };
                return self.mount_after(mount, 10_000, 40_000, what);
            }
            Tell::Expired | Tell::Fenced => {
                return match then {
                    Then::Open => {}
                    _ => self.reset(mount),
                };
            }
            _ => {}
        }
        self.mounts[mount].calls.remove(&call);
        if let (Some((sequence, mutation)), Tell::Done { .. }) = (mutation, &tell) {
            self.did(mount, sequence, &mutation, &tell);
        }
        match (then, tell) {
            (Then::Open, Tell::Opened(session)) => self.opened(mount, session),
            (Then::Poll { sent, poll, long }, Tell::Polled(answer)) => {
                if !is_over {
                    self.mounts[mount].polls -= 1;
                }
                self.polled(mount, sent, &poll, answer);
                if long && !is_over {
                    self.mount_after(mount, 100, 5_000, MountEvent::Poll);
                }
            }
            (Then::Poll { poll, long, .. }, _) => {
                if !is_over {
                    self.mounts[mount].leader = self.rng.below(MASTERS as u64) as usize;
                    self.poll_failed(mount, poll, long);
                }
            }
            (
                Then::Flushed {
                    ino,
                    blocks,
                    published,
                },
                Tell::Written { .. },
            ) => self.flushed(mount, ino, &blocks, published),
            (Then::Published { ino, published }, Tell::Done { .. }) => {
                self.published(mount, ino, published);
            }
            (Then::Op(op), tell) => self.op_answered(mount, op, tell),
            (Then::Reserved, Tell::Done { outcome, .. }) => self.reserved(mount, &outcome),
            (Then::Ahead, _) | (Then::Told, Tell::Done { .. }) => {}
            (then, tell) => panic!("{tell:?} for {then:?}"),
        }
    }

    fn opened(&mut self, mount: usize, session: SessionId) {
        self.mounts[mount].session = Some(session);
        self.reserve(mount);
        self.mount_after(mount, 100, 1_000, MountEvent::Poll);
    }

    /// Enters what a mutation of this mount did.
    fn did(&mut self, mount: usize, sequence: u64, mutation: &Mutation, tell: &Tell) {
        let Tell::Done {
            outcome,
            generation,
            number,
            changes,
            grants,
            repeated,
        } = tell
        else {
            return;
        };
        if let Mutation::Make { steps } = mutation {
            return self.told(mount, sequence, steps, tell);
        }
        let now = self.mount_clock(mount);
        let forgets = self.bug == Some(Bug::OwnChangesForgotten);
        let state = &mut self.mounts[mount];
        state.outstanding.remove(&sequence);
        if let Ok(Reply::Created {
            attr,
            created: true,
            ..
        }) = outcome
        {
            state.making.is_made(attr);
        }
        match *repeated {
            _ if forgets => {}
            true => {
                let touched = touched(mutation, outcome);
                state.holder.doubt(*generation, *number, &touched);
            }
            false => state.holder.did(now, *generation, *number, changes, grants),
        }
        if !matches!(mutation, Mutation::Flush { .. }) && self.bug != Some(Bug::OwnChangesNotBusy) {
            self.mounts[mount].holder.end_change(&touches(mutation));
        }
        self.run_acts(mount);
    }

    fn op_answered(&mut self, mount: usize, id: u64, tell: Tell) {
        let Some(op) = self.mounts[mount].ops.get_mut(&id) else {
            return;
        };
        let plan = op.plan.clone();
        match (plan, tell) {
            (Plan::Read { .. }, Tell::Answer { outcome: Ok(_), .. }) => {
                op.stage = Stage::Uncached;
                self.step(mount, id);
            }
            (Plan::Read { ino, block }, Tell::Data(value)) => {
                let value = match op.epoch {
                    Some(epoch) => self.fetched(mount, epoch, (ino, block), value),
                    None => value,
                };
                self.saw(mount, id, vec![Seen::Block(ino, block, value)]);
            }
            (Plan::Write { .. }, Tell::Answer { outcome: Ok(_), .. }) => {
                // It may have brought none: a recall is on its way.
                match std::mem::replace(&mut op.has_asked, true) {
                    true => self.again(mount, id),
                    false => self.step(mount, id),
                }
            }
            (
                Plan::Write {
                    ino, block, time, ..
                },
                Tell::Written { .. },
            ) => {
                let size = (u64::from(block) + 1) * 100;
                let mutation = super::flush::flush_of(ino, size, time);
                self.mutate(mount, mutation, Then::Op(id));
            }
            (Plan::Write { ino, .. }, Tell::Done { .. }) => {
                self.mounts[mount].holder.end_write(ino);
                self.complete(mount, id);
                self.flush_again_if_giving(mount, ino);
            }
            (_, Tell::Done { .. }) => self.complete(mount, id),
            (
                _,
                Tell::Answer {
                    query,
                    outcome,
                    generation,
                    number,
                    ..
                },
            ) => self.answered(mount, id, &query, outcome, (generation, number)),
            (plan, tell) => panic!("{tell:?} for {plan:?}"),
        }
    }

    fn flush_again_if_giving(&mut self, mount: usize, ino: InodeId) {
        if self.mounts[mount].giving.contains_key(&ino) {
            self.flush(mount, ino);
        }
    }

    fn answered(
        &mut self,
        mount: usize,
        id: u64,
        query: &Query,
        outcome: Outcome,
        at: (Generation, u64),
    ) {
        let seen = match (query, outcome) {
            (Query::Lookup { parent, name }, Ok(Reply::Attr(attr))) => {
                let Some(attr) = self.with_own_writes(mount, attr, at) else {
                    return self.again(mount, id);
                };
                let name = Seen::Name(*parent, name.clone(), Some(attr.ino));
                vec![name, Seen::Attr(attr)]
            }
            (Query::Lookup { parent, name }, Err(error))
                if error.code == lumeofs_base::Code::NotFound =>
            {
                vec![Seen::Name(*parent, name.clone(), None)]
            }
            (Query::GetAttr { .. }, Ok(Reply::Attr(attr))) => {
                let Some(attr) = self.with_own_writes(mount, attr, at) else {
                    return self.again(mount, id);
                };
                vec![Seen::Attr(attr)]
            }
            (
                Query::ReadDir {
                    ino,
                    cookie,
                    count_max,
                    ..
                },
                Ok(Reply::Entries { entries, more, .. }),
            ) => vec![Seen::Page(
                *ino,
                *cookie,
                *count_max as usize,
                entries,
                more,
            )],
            (Query::GetAttr { ino }, Err(error)) if error.code == lumeofs_base::Code::NotFound => {
                vec![Seen::Missing(*ino)]
            }
            (Query::GetXattr { ino, .. }, Ok(Reply::Bytes(value))) => {
                vec![Seen::Xattr(*ino, Some(value))]
            }
            (Query::GetXattr { ino, .. }, Err(error))
                if error.code == lumeofs_base::Code::NoData =>
            {
                vec![Seen::Xattr(*ino, None)]
            }
            _ => Vec::new(),
        };
        self.saw(mount, id, seen);
    }

    /// What the leader answers lacks what this mount has not published or told.
    fn with_own_writes(
        &mut self,
        mount: usize,
        attr: Attr,
        (generation, number): (Generation, u64),
    ) -> Option<Attr> {
        let now = self.mount_clock(mount);
        let state = &mut self.mounts[mount];
        if !state.holder.is_writer(attr.ino) {
            let has_own = matches!(attr.kind, FileKind::Regular | FileKind::Directory);
            let is_old = state.holder.is_ahead_in(attr.ino)
                || (has_own && state.holder.is_overtaken(generation, number, attr.ino));
            return (!is_old).then_some(attr);
        }
        match state.holder.attr(now, attr.ino) {
            Cached::Is(attr) => Some(attr),
            _ => None,
        }
    }
}

/// All inodes that a mutation may have touched.
fn touched(mutation: &Mutation, outcome: &Outcome) -> Vec<InodeId> {
    let mut inodes = match mutation {
        Mutation::Create { parent, .. }
        | Mutation::Unlink { parent, .. }
        | Mutation::Rmdir { parent, .. } => vec![*parent],
        Mutation::Link { ino, parent, .. } => vec![*ino, *parent],
        Mutation::Rename {
            parent, new_parent, ..
        } => vec![*parent, *new_parent],
        Mutation::SetAttr { ino, .. }
        | Mutation::SetXattr { ino, .. }
        | Mutation::Flush { ino, .. } => vec![*ino],
        _ => Vec::new(),
    };
    match outcome {
        Ok(Reply::Attr(attr) | Reply::Created { attr, .. } | Reply::Removed { attr }) => {
            inodes.push(attr.ino);
        }
        Ok(Reply::Renamed { attr, other }) => {
            inodes.push(attr.ino);
            inodes.extend(other.as_ref().map(|other| other.ino));
        }
        _ => {}
    }
    inodes
}

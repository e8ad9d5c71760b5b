//! What of a file is to be sent: claims on dirty ranges, and how far everything is with the primaries.

use crate::pages::intervals::without;
use crate::pages::local::{Local, Publication};
use crate::pages::state::{State, touch};
use lumeofs_base::Attr;
use lumeofs_base::limits::BLOCK_SIZE;
use std::ops::Range;

/// Bytes between two dirty ranges that are sent along, if they are there: one request instead of two.
const GAP_MAX: u64 = BLOCK_SIZE as u64;
/// Where a range is cut that is not sent to its end, since more is expected there.
const CUT_ALIGN: u64 = 256 << 10;

/// Which data a flush is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Until {
    /// What has this number or a lower one: it was written before the flush began.
    pub(crate) number: u64,
    /// What begins below this offset.
    pub(crate) below: u64,
}

impl Until {
    /// Everything, also what is written while it is sent.
    pub(crate) const ALL: Self = Self {
        number: u64::MAX,
        below: u64::MAX,
    };

    /// Of that, what begins below an offset.
    pub(crate) fn up_to(self, below: u64) -> Self {
        let below = self.below.min(below);
        Self { below, ..self }
    }
}

/// What one claim may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// This must be in it, and it begins below that offset.
    pub(crate) until: Until,
    /// Bytes at most.
    pub(crate) most: u64,
    /// Bytes per chunk: a claim leaves out no chunk between two of its ranges.
    pub(crate) chunk_size: u64,
    /// Everything, though more may be written at the end of it.
    pub(crate) whole: bool,
}

/// The answer to a [`Wanted`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Claimed {
    /// These bytes are to be sent: the claim's number, and from its first byte to its last.
    Some(u64, Range<u64>),
    /// There are some, but they are on their way already.
    UnderWay,
    /// There are none.
    None,
}

/// How the sending of a claim ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// The primaries have it.
    Done,
    /// It is to be sent again.
    Later,
    /// It cannot be written: the bytes are given up, and if the file had grown with them its end as well.
    Never,
}

#[derive(Debug)]
pub(super) struct Claim {
    id: u64,
    /// In order, and no two touch.
    pub(super) parts: Vec<Range<u64>>,
    /// The lowest number in it.
    pub(super) number: u64,
    /// The servers may cut off what of it is past the published size.
    is_cut: bool,
}

impl State {
    /// Bytes that are dirty and not on their way.
    pub(crate) fn unclaimed(&self) -> u64 {
        self.dirty.bytes()
    }

    /// Whether there is something to send, or to publish that nothing under way will be followed by.
    pub(crate) fn has_work(&self) -> bool {
        !self.dirty.is_empty() || (self.claims.is_empty() && self.is_changed())
    }

    /// Whether there is anything that the servers do not have.
    pub(crate) fn is_changed(&self) -> bool {
        !self.dirty.is_empty()
            || !self.claims.is_empty()
            || self
                .local
                .as_ref()
                .is_some_and(|local| !local.is_published())
    }

    /// Begins a flush of all that has been written. What is written from now on is not in it.
    pub(crate) fn begin_flush(&mut self) -> Until {
        self.flushes += 1;
        Until {
            number: self.flushes - 1,
            below: self.local.as_ref().map_or(u64::MAX, Local::size),
        }
    }

    /// Bytes at most that nobody else can see if the client ends now: not sent, or past the published size. `None` if
    /// the servers have everything.
    pub(crate) fn unsaved(&self) -> Option<u64> {
        self.is_changed()
            .then(|| self.load().dirty + self.unpublished())
    }

    /// Takes dirty ranges, in order, to send them.
    pub(crate) fn claim(&mut self, wanted: &Wanted) -> Claimed {
        let mut claimed: Vec<Range<u64>> = self
            .claims
            .iter()
            .flat_map(|claim| claim.parts.clone())
            .collect();
        claimed.sort_unstable_by_key(|part| part.start);
        let Until {
            number: until,
            below,
        } = wanted.until;
        let due = |number: u64, start: u64| number <= until && start < below;
        let (mut parts, mut bytes, mut number) = (Vec::<Range<u64>>::new(), 0, u64::MAX);
        let mut is_waiting = self
            .claims
            .iter()
            .any(|claim| due(claim.number, claim.parts[0].start));
        'all: for (range, of) in self.dirty.since(0) {
            if range.start >= below {
                break;
            }
            if parts.is_empty() && of > until {
                continue;
            }
            is_waiting |= due(of, range.start);
            let range = range.start..range.end.min(below);
            for part in without(&range, &claimed) {
                let reach = parts
                    .last()
                    .map(|last| (last.end - 1) / wanted.chunk_size + 1);
                if bytes >= wanted.most
                    || reach.is_some_and(|reach| part.start / wanted.chunk_size > reach)
                {
                    break 'all;
                }
                let end = part.end.min(part.start.saturating_add(wanted.most - bytes));
                bytes += end - part.start;
                number = number.min(of);
                match parts.last_mut() {
                    Some(last) if last.end == part.start => last.end = end,
                    _ => parts.push(part.start..end),
                }
            }
        }
        if let Some(last) = parts.last_mut().filter(|_| !wanted.whole) {
            let end = last.end / CUT_ALIGN * CUT_ALIGN;
            if end > last.start {
                last.end = end;
            }
        }
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
            return if is_waiting {
                Claimed::UnderWay
            } else {
                Claimed::None
            };
        };
        let span = first.start..last.end;
        for part in &parts {
            self.dirty.remove(part.clone());
        }
        let parts = self.joined(parts, &claimed);
        let id = self.number();
        self.claims.push(Claim {
            id,
            parts,
            number,
            is_cut: false,
        });
        Claimed::Some(id, span)
    }

    /// The ranges, with those joined between which little is left out that is there and nobody's.
    fn joined(&self, parts: Vec<Range<u64>>, claimed: &[Range<u64>]) -> Vec<Range<u64>> {
        let mut joined: Vec<Range<u64>> = Vec::with_capacity(parts.len());
        for part in parts {
            if let Some(last) = joined.last_mut()
                && part.start - last.end <= GAP_MAX
                && !claimed
                    .iter()
                    .any(|other| touch(other, &(last.end..part.start)))
                && self.has(&(last.end..part.start))
            {
                last.end = part.end;
                continue;
            }
            joined.push(part);
        }
        joined
    }

    /// The bytes of a claim as they are now; `None` if it was dropped.
    pub(crate) fn claimed(&self, id: u64) -> Option<Vec<(u64, Vec<u8>)>> {
        let claim = self.claims.iter().find(|claim| claim.id == id)?;
        let copy = |part: &Range<u64>| {
            let mut bytes = vec![0; (part.end - part.start) as usize];
            let missing = self.copy(part, &mut bytes);
            debug_assert!(missing.is_empty(), "dirty bytes are there");
            (part.start, bytes)
        };
        Some(claim.parts.iter().map(copy).collect())
    }

    /// Sending a claim has ended. Says whether it still was one: what was dropped meanwhile is nobody's concern.
    pub(crate) fn end_claim(&mut self, id: u64, sent: Sent) -> bool {
        let Some(at) = self.claims.iter().position(|claim| claim.id == id) else {
            return false;
        };
        let claim = self.claims.swap_remove(at);
        if sent == Sent::Done {
            self.stuck_since = None;
        }
        match sent {
            Sent::Done if claim.is_cut => {}
            Sent::Done => {
                let published = self.published_size();
                for part in claim.parts {
                    self.sent.insert(part.start.max(published)..part.end, 0);
                }
            }
            Sent::Later => {
                for part in claim.parts {
                    self.dirty.insert(part, claim.number);
                }
            }
            Sent::Never => {
                let published = self.published_size();
                let grown = claim.parts.iter().find(|part| part.end > published);
                let grown = grown.map(|part| part.start.max(published));
                for part in claim.parts {
                    self.remove(part);
                }
                if let Some(from) = grown {
                    self.cut(from);
                }
            }
        }
        true
    }

    /// Gives up what was written from `size` on, which is not published.
    fn cut(&mut self, size: u64) {
        self.drop_range(size..u64::MAX);
        if let Some(local) = &mut self.local {
            local.cut(size);
        }
    }

    fn published_size(&self) -> u64 {
        self.local.as_ref().map_or(0, Local::published_size)
    }

    /// Up to where the primaries have all bytes, were it in an older version: then nobody ever sees a hole there.
    pub(crate) fn sent_until(&self) -> u64 {
        let published = self.published_size();
        let first_unsent = |range: Range<u64>| {
            let range = range.start.max(published)..range.end;
            let unsent = without(&range, &self.sent.within(&range));
            unsent.first().map(|part| part.start)
        };
        let mut dirty = self.dirty.since(published);
        let dirty = dirty.find_map(|(range, _)| first_unsent(range));
        let claimed = self.claims.iter().flat_map(|claim| claim.parts.clone());
        let claimed = claimed.filter_map(first_unsent).min();
        dirty.unwrap_or(u64::MAX).min(claimed.unwrap_or(u64::MAX))
    }

    /// Whether a size is published that the file had, unless it has been cut since.
    pub(crate) fn has_published(&self, size: u64) -> bool {
        let local = self.local.as_ref();
        local.is_none_or(|local| local.published_size() >= size.min(local.size()))
    }

    /// That was published, and these are the attributes since.
    pub(crate) fn published(&mut self, publication: &Publication, attr: &Attr) {
        if let Some(local) = &mut self.local {
            local.published(publication, attr);
        }
        self.sent.remove(0..self.published_size());
        self.stuck_since = None;
    }

    /// Bytes past the published size that the primaries have.
    pub(crate) fn unpublished(&self) -> u64 {
        let Some(local) = &self.local else { return 0 };
        self.sent_until()
            .min(local.size())
            .saturating_sub(local.published_size())
    }

    /// The servers may have cut off what was past the published size: it is to be sent once more.
    pub(crate) fn send_tail_again(&mut self) {
        let Some(local) = &self.local else { return };
        let tail = local.published_size()..local.size();
        for claim in &mut self.claims {
            claim.is_cut = true;
        }
        self.sent.remove(tail.clone());
        self.dirty.insert(tail, self.flushes);
    }
}

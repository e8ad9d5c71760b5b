//! The core of the cache against a simple model: the servers' bytes and what a reader must see, in two arrays.
#![allow(
    clippy::single_range_in_vec_init,
    reason = "a list of one range is meant"
)]

use super::local::Local;
use super::state::State;
use super::state::sending::{Claimed, Sent, Until, Wanted};
use super::testing::{Random, attr};
use super::*;
use crate::pages::slot::SLOT_BYTES;
use lumeofs_base::Timestamp;
use std::ops::Range;

/// Bytes of the file; slots and chunks are crossed.
const FILE: usize = 3 * SLOT_BYTES as usize / 2;
const NOW: Timestamp = Timestamp { secs: 50, nanos: 0 };

struct Model {
    state: State,
    /// What readers must see.
    shown: Vec<u8>,
    /// What the primaries have.
    stored: Vec<u8>,
    /// Fetches under way, with what the primaries had when they were asked.
    fills: Vec<(u64, Vec<u8>)>,
    claims: Vec<u64>,
    random: Random,
}

impl Model {
    fn new(seed: u64) -> Self {
        let state = open_state(FILE as u64);
        Self {
            state,
            shown: vec![0; FILE],
            stored: vec![0; FILE],
            fills: Vec::new(),
            claims: Vec::new(),
            random: Random(seed),
        }
    }

    fn range(&mut self) -> Range<u64> {
        let most = if self.random.below(4) == 0 {
            40_000
        } else {
            300
        };
        let start = self.random.below(FILE as u64 - most);
        start..start + 1 + self.random.below(most)
    }

    fn step(&mut self) {
        let range = self.range();
        let place = range.start as usize..range.end as usize;
        match self.random.below(12) {
            0..=3 => {
                let byte = self.random.below(250) as u8 + 1;
                self.shown[place.clone()].fill(byte);
                self.state
                    .write(range.start, &self.shown[place], NOW, false);
            }
            4..=5 => self.begin_fill(&range),
            6 if !self.fills.is_empty() => self.end_fill(),
            7 => self.claim(),
            8 if !self.claims.is_empty() => self.end_claim(),
            9 => self.evict(),
            _ => self.check(&range),
        }
    }

    fn begin_fill(&mut self, range: &Range<u64>) {
        let (id, ranges) = self
            .state
            .begin_fill(std::slice::from_ref(range), self.random.0.is_multiple_of(2));
        if ranges.is_empty() {
            return;
        }
        let parts = ranges
            .iter()
            .map(|part| &self.stored[part.start as usize..part.end as usize]);
        self.fills.push((id, parts.flatten().copied().collect()));
    }

    fn end_fill(&mut self) {
        let at = self.random.below(self.fills.len() as u64) as usize;
        let (id, data) = self.fills.swap_remove(at);
        let failed = self.random.below(8) == 0;
        self.state.end_fill(id, (!failed).then_some(&data[..]));
    }

    fn claim(&mut self) {
        let wanted = Wanted {
            until: match self.random.below(4) {
                0 => self.state.begin_flush().up_to(FILE as u64 / 2),
                1 => self.state.begin_flush(),
                _ => Until::ALL,
            },
            most: 1 + self.random.below(30_000),
            chunk_size: 8192,
            whole: self.random.below(2) == 0,
        };
        if let Claimed::Some(id, span) = self.state.claim(&wanted) {
            let parts = self.state.claimed(id).unwrap();
            assert_eq!(parts[0].0, span.start);
            let (at, last) = parts.last().unwrap();
            assert_eq!(at + last.len() as u64, span.end);
            assert!(parts.windows(2).all(|pair| {
                let end = pair[0].0 + pair[0].1.len() as u64;
                pair[1].0 > end && pair[1].0 / 8192 <= (end - 1) / 8192 + 1
            }));
            self.claims.push(id);
        }
    }

    fn end_claim(&mut self) {
        let at = self.random.below(self.claims.len() as u64) as usize;
        let id = self.claims.swap_remove(at);
        if self.random.below(4) == 0 {
            assert!(self.state.end_claim(id, Sent::Later));
            return;
        }
        for (at, data) in self.state.claimed(id).unwrap() {
            self.stored[at as usize..at as usize + data.len()].copy_from_slice(&data);
        }
        assert!(self.state.end_claim(id, Sent::Done));
    }

    fn evict(&mut self) {
        for (index, tag) in self.state.take_new_slots() {
            self.state.evict(index, tag);
            self.state.evict(index, tag);
        }
    }

    /// What is there is what must be seen.
    fn check(&mut self, range: &Range<u64>) {
        let mut out = self.shown[range.start as usize..range.end as usize].to_vec();
        for byte in &mut out {
            *byte = byte.wrapping_add(1);
        }
        let missing = self.state.read(range, &mut out).missing;
        let mut at = range.start;
        for gap in missing.iter().chain([&(range.end..range.end)]) {
            let there = (at - range.start) as usize..(gap.start - range.start) as usize;
            assert!(out[there] == self.shown[at as usize..gap.start as usize]);
            // What is not there can be fetched.
            let gap_bytes = gap.start as usize..gap.end as usize;
            assert!(self.stored[gap_bytes.clone()] == self.shown[gap_bytes]);
            at = gap.end;
        }
    }

    fn finish(&mut self) {
        while !self.claims.is_empty() {
            self.end_claim();
        }
        let all = Wanted {
            chunk_size: 8192,
            ..everything(Until::ALL)
        };
        while let Claimed::Some(id, _) = self.state.claim(&all) {
            self.claims.push(id);
            while !self.claims.is_empty() {
                self.end_claim();
            }
        }
        assert!(self.stored == self.shown);
        assert_eq!(self.state.load().dirty, 0);
        self.state.drop_all();
        let left = self.state.load();
        assert_eq!((left.memory, left.dirty, left.slots), (0, 0, 0));
    }
}

#[test]
fn readers_see_what_was_written_last_and_all_of_it_is_sent() {
    for seed in 1..40 {
        let mut model = Model::new(seed);
        for _ in 0..300 {
            model.step();
        }
        model.finish();
    }
}

fn everything(until: Until) -> Wanted {
    Wanted {
        until,
        most: u64::MAX,
        chunk_size: 1 << 20,
        whole: true,
    }
}

fn open_state(size: u64) -> State {
    let mut state = State::default();
    state.local = Some(Local::new(attr(size)));
    state
}

#[test]
fn what_is_written_during_its_sending_is_dirty_again() {
    let mut state = open_state(0);
    state.write(0, &[1; 100], NOW, false);
    let Claimed::Some(id, _) = state.claim(&everything(Until::ALL)) else {
        panic!()
    };
    let until = state.begin_flush();
    state.write(50, &[2; 10], NOW, false);
    // A flush that began before that write waits for what is under way and for nothing else.
    assert_eq!(state.claim(&everything(until)), Claimed::UnderWay);
    // Two sendings of the same bytes are never under way.
    assert_eq!(state.claim(&everything(Until::ALL)), Claimed::UnderWay);
    state.end_claim(id, Sent::Done);
    assert_eq!(state.claim(&everything(until)), Claimed::None);
    assert!(
        matches!(state.claim(&everything(Until::ALL)), Claimed::Some(_, range) if range == (50..60))
    );
}

#[test]
fn a_flush_ends_beside_an_append_that_never_does() {
    let mut state = open_state(0);
    let mut end = 800;
    state.write(0, &[1; 800], NOW, false);
    let wanted = Wanted {
        most: 100,
        ..everything(state.begin_flush())
    };
    for claim in 0.. {
        let Claimed::Some(id, _) = state.claim(&wanted) else {
            assert_eq!(claim, 8);
            break;
        };
        // It touches what is dirty, and comes faster than anything is sent.
        state.write(end, &[2; 200], NOW, false);
        end += 200;
        state.end_claim(id, Sent::Done);
        assert!(claim < 8, "still not done");
    }
    assert_eq!((state.sent_until(), state.unclaimed()), (800, 1600));
}

#[test]
fn a_flush_ends_beside_a_writer_who_writes_it_all_again_and_again() {
    let mut state = open_state(0);
    state.write(0, &[1; 800], NOW, false);
    let wanted = Wanted {
        most: 100,
        ..everything(state.begin_flush())
    };
    for claim in 0..8 {
        let Claimed::Some(id, range) = state.claim(&wanted) else {
            panic!()
        };
        assert_eq!(range, 100 * claim..100 * (claim + 1));
        // Faster than anything is sent: it touches what is still to be sent, and is over what is.
        for at in 0..8 {
            state.write(100 * at, &[2; 100], NOW, false);
        }
        state.end_claim(id, Sent::Done);
    }
    assert_eq!(state.claim(&wanted), Claimed::None);
    assert_eq!((state.sent_until(), state.unclaimed()), (u64::MAX, 800));
}

#[test]
fn a_fetch_does_not_bring_back_what_was_dropped_or_overwritten_since_it_began() {
    let mut state = open_state(1000);
    let (dropped, _) = state.begin_fill(&[0..100], false);
    state.drop_all();
    state.end_fill(dropped, Some(&[1; 100]));
    assert_eq!(state.read(&(0..100), &mut [0; 100]).missing, [0..100]);
    let mut state = open_state(1000);
    let (written, _) = state.begin_fill(&[0..100], false);
    state.write(0, &[2; 50], NOW, false);
    let Claimed::Some(id, _) = state.claim(&everything(Until::ALL)) else {
        panic!()
    };
    state.end_claim(id, Sent::Done);
    for (index, tag) in state.take_new_slots() {
        state.evict(index, tag);
    }
    state.end_fill(written, Some(&[1; 100]));
    assert_eq!(state.read(&(0..100), &mut [0; 100]).missing, [0..100]);
}

#[test]
fn what_cannot_be_written_is_given_up_with_the_end_that_it_made() {
    let mut state = open_state(50);
    state.write(0, &[1; 10], NOW, false);
    state.write(40, &[2; 60], NOW, false);
    let Claimed::Some(id, _) = state.claim(&everything(Until::ALL)) else {
        panic!()
    };
    assert!(state.end_claim(id, Sent::Never));
    let local = state.local.as_ref().unwrap();
    assert_eq!((local.size(), state.load().dirty), (50, 0));
    // Where there is nothing any more, nothing more is to be told.
    assert!(!state.end_claim(id, Sent::Never));
}

#[test]
fn bytes_past_the_published_size_stay_until_it_is_published() {
    let mut state = open_state(0);
    state.write(0, &[1; 1000], NOW, false);
    let Claimed::Some(id, _) = state.claim(&everything(Until::ALL)) else {
        panic!()
    };
    assert_eq!(state.sent_until(), 0);
    state.end_claim(id, Sent::Done);
    let new = state.take_new_slots();
    assert_eq!(state.unpublished(), 1000);
    for (index, tag) in &new {
        state.evict(*index, *tag);
    }
    assert!(state.read(&(0..1000), &mut [0; 1000]).missing.is_empty());
    let local = state.local.as_ref().unwrap();
    let publication = local.publication(u64::MAX).unwrap();
    state.published(&publication, &attr(1000));
    for (index, tag) in new.iter().chain(&new) {
        state.evict(*index, *tag);
    }
    assert_eq!(state.load().memory, 0);
}

#[test]
fn what_was_sent_once_can_be_published_though_it_is_written_again() {
    let mut state = open_state(0);
    let claim = |state: &mut State| match state.claim(&everything(Until::ALL)) {
        Claimed::Some(id, _) => id,
        other => panic!("{other:?}"),
    };
    state.write(0, &[1; 1000], NOW, false);
    let id = claim(&mut state);
    state.end_claim(id, Sent::Done);
    state.write(0, &[2; 10], NOW, false);
    state.write(1000, &[2; 500], NOW, false);
    assert_eq!((state.sent_until(), state.unpublished()), (1000, 1000));
    assert!(!state.has_published(1000));
    let publication = state.local.as_ref().unwrap().publication(1000).unwrap();
    state.published(&publication, &attr(1000));
    assert!(state.has_published(1000) && !state.has_published(1500));
    // What is cut off while it is sent is not there.
    let id = claim(&mut state);
    state.send_tail_again();
    state.end_claim(id, Sent::Done);
    assert_eq!(state.sent_until(), 1000);
    let id = claim(&mut state);
    state.end_claim(id, Sent::Done);
    assert_eq!(state.sent_until(), u64::MAX);
    state.write(1200, &[3; 10], NOW, false);
    assert_eq!(state.sent_until(), u64::MAX);
    state.send_tail_again();
    assert_eq!(state.sent_until(), 1000);
    // A size that was cut is not waited for.
    state.local = Some(Local::new(attr(5)));
    assert!(state.has_published(1500));
}

#[test]
fn memory_stays_within_its_limit_and_the_clock_forgets_files_that_are_gone() {
    let pages = Pages::new(CACHE_BYTES_MIN);
    for ino in 0..3000 {
        let file = pages.file(InodeId(ino));
        let (id, ranges) = file.change(|state| state.begin_fill(&[0..1000], false));
        assert_eq!(ranges.len(), 1);
        file.end_fill(id, Some(&[1; 1000]));
    }
    let stats = pages.shared.stats();
    assert!(stats.memory_bytes <= CACHE_BYTES_MIN as u64);
    // A small file costs its bytes and one kilobyte.
    let cached = (0..3000).filter(|ino| {
        pages
            .file(InodeId(*ino))
            .look(|state| state.has(&(0..1000)))
    });
    assert!(cached.count() >= CACHE_BYTES_MIN / 2200);
    for ino in 0..3000 {
        pages.forget(InodeId(ino));
    }
    assert_eq!(pages.shared.stats().memory_bytes, 0);
    for ino in 0..5000 {
        let file = pages.file(InodeId(ino));
        let (id, _) = file.change(|state| state.begin_fill(&[0..10], false));
        file.end_fill(id, Some(&[1; 10]));
        pages.forget(InodeId(ino));
    }
    let entries = pages.shared.clock.lock().len();
    assert!(entries <= 4 * STALE_MAX, "{entries}");
}

#[test]
fn what_comes_into_a_file_that_was_forgotten_goes_with_it() {
    let pages = Pages::new(CACHE_BYTES_MIN);
    let file = pages.file(InodeId(1));
    pages.forget(InodeId(1));
    let (id, _) = file.change(|state| state.begin_fill(&[0..1000], true));
    file.end_fill(id, Some(&[1; 1000]));
    assert!(pages.shared.stats().memory_bytes > 1000);
    drop(file);
    let stats = pages.shared.stats();
    let slots = pages.shared.slots.load(Ordering::Relaxed);
    assert_eq!((stats.memory_bytes, stats.dirty_bytes, slots), (0, 0, 0));
    assert_eq!((stats.ahead_bytes, stats.ahead_wasted_bytes), (1000, 1000));
}

#[test]
fn a_file_that_is_read_again_and_again_survives_a_long_stream() {
    let pages = Pages::new(CACHE_BYTES_MIN);
    let hot = pages.file(InodeId(1));
    let (id, _) = hot.change(|state| state.begin_fill(&[0..1000], false));
    hot.end_fill(id, Some(&[7; 1000]));
    let stream = pages.file(InodeId(2));
    for slot in 0..200 {
        let range = slot * SLOT_BYTES..(slot + 1) * SLOT_BYTES;
        let (id, _) = stream.change(|state| state.begin_fill(&[range], false));
        stream.end_fill(id, Some(&vec![1; SLOT_BYTES as usize]));
        assert!(hot.read(&(0..1000), &mut [0; 1000]).is_empty());
    }
}

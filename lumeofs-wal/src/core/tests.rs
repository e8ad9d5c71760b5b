//! The state machine alone, against a simulated disk that checks every write, in random order of
//! appends, writer steps and keeper chores.

use super::*;
use crate::format::{RECORD_HEADER_BYTES, RecordHeader};
use lumeofs_base::rng::SplitMix64;
use std::collections::BTreeMap;

type File = u32;

const CONFIG: WalConfig = WalConfig {
    segment_bytes: 32 << 10,
    segments_kept_spare: 1,
    batch_bytes_max: 8 << 10,
    pending_bytes_max: 40 << 10,
};

/// A file as the driver has it.
#[derive(Default)]
struct SimFile {
    bytes: Vec<u8>,
    /// Generation whose header it has, and up to where batches were written in it.
    segment: Option<(Generation, u64)>,
}

struct World {
    core: Core<File>,
    files: BTreeMap<File, SimFile>,
    records: BTreeMap<Lsn, Vec<u8>>,
    highest: Lsn,
    step: Option<Step<File>>,
    chore: Option<Chore<File>>,
}

impl World {
    fn new() -> Self {
        let found = Recovered {
            live: Vec::new(),
            spares: Vec::new(),
            retired: Vec::new(),
            last: Lsn(0),
            next: None,
            next_generation: Generation(1),
        };
        Self {
            core: Core::new(CONFIG, found),
            files: BTreeMap::new(),
            records: BTreeMap::new(),
            highest: Lsn(0),
            step: None,
            chore: None,
        }
    }

    fn append(&mut self, rng: &mut SplitMix64) {
        let len = if rng.percent(5) {
            rng.below(28_000)
        } else {
            rng.below(3000)
        };
        let mut data = vec![0; len as usize];
        rng.fill(&mut data);
        let (head, tail) = data.split_at(data.len() / 2);
        if let Placed::At(lsn) = self.core.place(&Payload::new(&[head, tail])) {
            assert!(lsn > self.highest, "positions grow for ever");
            assert_eq!(self.core.last(), lsn);
            self.highest = lsn;
            self.records.insert(lsn, data);
        }
        assert!(self.core.pending_bytes <= CONFIG.pending_bytes_max as u64 + 2 * BLOCK);
    }

    /// Starts or ends a step of the writer.
    fn write(&mut self) {
        let Some(step) = self.step.take() else {
            self.step = self.core.next_step();
            return;
        };
        match step {
            Step::Begin { file, header } => {
                let file = self.files.get_mut(&file).unwrap();
                assert!(
                    file.bytes.len() as u64 >= BLOCK,
                    "overwrites prepared space"
                );
                header.encode(&mut file.bytes[..BLOCK as usize]);
                file.segment = Some((header.generation, BLOCK));
            }
            Step::Write {
                file,
                offset,
                batch,
            } => {
                let file = self.files.get_mut(&file).unwrap();
                let (generation, end) = file.segment.expect("begun before it is written to");
                assert_eq!(
                    (generation, end),
                    (batch.generation, offset),
                    "in order, nothing twice"
                );
                let target = offset as usize..offset as usize + batch.bytes().len();
                assert!(target.start.is_multiple_of(4096) && target.end.is_multiple_of(4096));
                file.segment = Some((generation, target.end as u64));
                file.bytes[target].copy_from_slice(batch.bytes());
            }
        }
        self.core.step_done();
        assert!(self.core.durable() <= self.core.last());
    }

    /// Starts or ends a chore of the keeper.
    fn keep(&mut self) {
        let Some(chore) = self.chore.take() else {
            self.chore = self.core.next_chore();
            return;
        };
        match chore {
            Chore::CreateSpare => {
                let number = self.files.keys().next_back().map_or(0, |last| last + 1);
                self.files.insert(number, SimFile::default());
                self.core.spare_created(number, 0);
                return;
            }
            Chore::Fill { file, offset, len } => {
                let file = self.files.get_mut(&file).unwrap();
                assert_eq!(
                    file.bytes.len() as u64,
                    offset,
                    "filled once, from front to back"
                );
                file.bytes.resize((offset + len) as usize, 0);
                assert!(file.bytes.len() as u64 <= CONFIG.segment_bytes);
            }
            Chore::Retire { files, .. } => {
                for (number, keep) in files {
                    self.files.get_mut(&number).unwrap().segment = None;
                    if !keep {
                        self.files.remove(&number);
                    }
                }
            }
        }
        self.core.chore_done();
    }

    fn truncate(&mut self, rng: &mut SplitMix64) {
        let Some(lsn) = self.choose(rng) else { return };
        if rng.percent(70) {
            self.core.truncate_before(lsn);
            let first = self.core.live.front().map_or(0, Segment::first);
            assert!(first <= lsn.0, "never gives up more than asked");
            self.records = self.records.split_off(&Lsn(first));
            return;
        }
        self.core.truncate_after(lsn);
        for _ in 0..1000 {
            self.write();
            self.keep();
            if !self.core.is_truncating() {
                break;
            }
        }
        assert!(!self.core.is_truncating());
        self.records.split_off(&Lsn(lsn.0 + 1));
        assert_eq!((self.core.last(), self.core.durable()), (lsn, lsn));
    }

    fn choose(&self, rng: &mut SplitMix64) -> Option<Lsn> {
        let back = rng.below(self.records.len().clamp(1, 15) as u64) as usize;
        self.records.keys().rev().nth(back).copied()
    }

    fn check(&self) {
        for (lsn, data) in &self.records {
            let found = match self.core.locate(*lsn) {
                Located::Buffered(payload) => payload,
                Located::OnDisk {
                    file,
                    offset,
                    generation,
                } => {
                    let bytes = &self.files[&file].bytes[offset as usize..];
                    let record = &bytes[..RECORD_HEADER_BYTES + data.len()];
                    assert_eq!(RecordHeader::decode(record).position, lsn.0);
                    assert!(RecordHeader::verify(record, generation));
                    record[RECORD_HEADER_BYTES..].to_vec()
                }
                Located::Missing => panic!("{lsn} is missing"),
            };
            assert!(found == *data);
        }
        let beyond = Lsn(self.core.last().0 + 8);
        assert!(matches!(self.core.locate(beyond), Located::Missing));
    }
}

#[test]
fn any_order_of_events_keeps_the_rules() {
    for seed in 0..30 {
        let mut rng = SplitMix64::new(seed);
        let mut world = World::new();
        for _ in 0..600 {
            match rng.below(100) {
                0..40 => world.append(&mut rng),
                40..45 => {
                    let lsn = world.choose(&mut rng).unwrap_or_default();
                    world.core.want(lsn);
                }
                45..75 => world.write(),
                75..96 => world.keep(),
                _ => world.truncate(&mut rng),
            }
        }
        world.check();
        let wanted = world.core.last();
        world.core.want(wanted);
        for _ in 0..1000 {
            world.write();
            world.keep();
        }
        assert_eq!(
            world.core.durable(),
            wanted,
            "seed {seed}: everything gets written"
        );
        assert!(world.highest.0 > 4 * CONFIG.segment_bytes);
        world.check();
    }
}

#[test]
fn nothing_is_written_until_somebody_waits_or_much_is_there() {
    let mut world = World::new();
    let payload = Payload::new(&[b"x"]);
    while world.core.place(&payload) == Placed::NoRoom {
        world.keep();
    }
    assert!(world.core.next_step().is_none());
    world.core.want(world.core.last());
    assert!(world.core.next_step().is_some());
}

#[test]
fn a_full_disk_leaves_the_spare_to_be_used() {
    let mut world = World::new();
    let big = vec![0; 5000];
    let parts: &[&[u8]] = &[&big];
    let payload = Payload::new(parts);
    while world.core.place(&payload) == Placed::NoRoom {
        world.keep();
    }
    // A second file is there, but the first one can be filled no further.
    world.core.spare_created(100, 16 << 10);
    world.core.live.back_mut().unwrap().filled = 12 << 10;
    world.core.next_chore();
    world.core.pause_filling();
    let generation = world.core.next_generation;
    assert!(matches!(world.core.place(&payload), Placed::At(_)));
    assert_eq!(
        world.core.live.back().unwrap().header.generation,
        generation
    );
    assert_eq!(world.core.place(&payload), Placed::NoRoom);
}

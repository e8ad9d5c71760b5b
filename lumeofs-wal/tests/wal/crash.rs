//! Power cuts at every durability point of a workload, several outcomes each, several in a row.

use crate::common::{Contents, SMALL, open, payload};
use lumeofs_base::disk::sim::SimDisk;
use lumeofs_base::rng::SplitMix64;
use lumeofs_base::{Code, FsResult};
use lumeofs_wal::{Lsn, Wal};

/// What must, and what may, be found after a crash.
#[derive(Clone, Debug, Default)]
struct Model {
    /// Records appended and not dropped.
    records: Contents,
    /// How many of them must be found, unless they are below `given_up`.
    durable: usize,
    /// Records below this may be gone.
    given_up: Lsn,
    /// A truncation to so many records was asked for and not answered.
    unanswered_keep: Option<usize>,
    /// Makes payloads unique over all rounds.
    next_payload: u64,
}

impl Model {
    /// Takes what opening found for the state from now on, if it is one of the possible ones.
    fn adopt(&mut self, found: Contents, context: &str) {
        let start = match found.first() {
            Some(first) => self.records.iter().position(|record| record == first),
            None => Some(
                self.records
                    .partition_point(|record| record.0 < self.given_up),
            ),
        };
        let start = start.unwrap_or_else(|| panic!("{context}: a record that was never appended"));
        let end = start + found.len();
        assert_eq!(
            self.records.get(start..end),
            Some(&found[..]),
            "{context}: not a prefix"
        );
        let gone = &self.records[..start];
        assert!(
            gone.iter().all(|record| record.0 < self.given_up),
            "{context}: lost at the front"
        );
        let least = self
            .unanswered_keep
            .map_or(self.durable, |keep| keep.min(self.durable));
        assert!(
            end >= least,
            "{context}: {end} of {} durable records",
            self.durable
        );
        self.records = found;
        self.durable = self.records.len();
        self.unanswered_keep = None;
    }

    /// One random operation. An error, or an end of durability during it, makes its effect unknown.
    fn act(&mut self, wal: &Wal, disk: &SimDisk, rng: &mut SplitMix64) -> FsResult<()> {
        let lost = || -> FsResult<()> {
            if disk.is_frozen() {
                Err(Code::Io.into())
            } else {
                Ok(())
            }
        };
        match rng.below(100) {
            0..60 => {
                let len = if rng.percent(10) {
                    rng.below(20_000)
                } else {
                    rng.below(2000)
                };
                let data = payload(self.next_payload, len as usize);
                self.next_payload += 1;
                let lsn = wal.append(&[&data])?;
                self.records.push((lsn, data));
            }
            60..80 => {
                let Some(index) = self.choose(rng) else {
                    return Ok(());
                };
                wal.sync(self.records[index].0)?;
                lost()?;
                self.durable = self.durable.max(index + 1);
            }
            80..85 => wal.request_sync(),
            85..93 => {
                let Some(index) = self.choose(rng) else {
                    return Ok(());
                };
                let keep = if rng.percent(5) { 0 } else { index + 1 };
                self.unanswered_keep = Some(keep);
                wal.truncate_after(if keep == 0 {
                    Lsn(0)
                } else {
                    self.records[index].0
                })?;
                lost()?;
                self.unanswered_keep = None;
                // Truncating at the end is no promise about what is already there.
                if keep < self.records.len() {
                    self.records.truncate(keep);
                    self.durable = keep;
                }
            }
            _ => {
                let Some(index) = self.choose(rng) else {
                    return Ok(());
                };
                self.given_up = self.given_up.max(self.records[index].0);
                wal.truncate_before(self.given_up)?;
            }
        }
        Ok(())
    }

    /// One of the last records that were not given up.
    fn choose(&self, rng: &mut SplitMix64) -> Option<usize> {
        let first = self
            .records
            .partition_point(|record| record.0 < self.given_up);
        let count = (self.records.len() - first).min(12) as u64;
        (count > 0).then(|| self.records.len() - 1 - rng.below(count) as usize)
    }
}

/// Runs operations until durability ends or there are no more.
fn work(disk: &SimDisk, model: &mut Model, seed: u64, context: &str) {
    let mut rng = SplitMix64::new(seed);
    let Ok((wal, found)) = open(disk, SMALL) else {
        assert!(
            disk.is_frozen(),
            "{context}: {:?}",
            open(disk, SMALL).map(drop)
        );
        return;
    };
    model.adopt(found, context);
    for _ in 0..150 {
        if let Err(error) = model.act(&wal, disk, &mut rng) {
            assert!(disk.is_frozen(), "{context}: {error}");
            return;
        }
    }
}

fn durability_points(seed: u64) -> u64 {
    let disk = SimDisk::new();
    work(&disk, &mut Model::default(), seed, "without faults");
    disk.sync_count()
}

#[test]
fn whatever_was_acknowledged_survives_a_power_cut_at_every_point() {
    for seed in 0..3 {
        let points = durability_points(seed);
        assert!(points > 50, "{points} points are too few to mean anything");
        for point in 0..=points {
            let disk = SimDisk::new();
            if point % 2 == 0 {
                disk.fail_after_syncs(point);
            } else {
                disk.freeze_after_syncs(point);
            }
            let mut model = Model::default();
            work(&disk, &mut model, seed, "first run");
            for outcome in 0..3 {
                after_the_cut(
                    disk.crash(outcome),
                    model.clone(),
                    &format!("{seed} {point} {outcome}"),
                );
            }
        }
    }
}

/// Two more lives, the first of which also ends in a cut, at a point that varies.
fn after_the_cut(disk: SimDisk, mut model: Model, context: &str) {
    let seed = lumeofs_base::checksum::crc32c(context.as_bytes()).into();
    disk.fail_after_syncs(disk.sync_count() + SplitMix64::new(seed).below(100));
    work(&disk, &mut model, seed, &format!("{context}, second run"));
    let disk = disk.crash(seed);
    work(
        &disk,
        &mut model,
        seed + 1,
        &format!("{context}, third run"),
    );
    let (_wal, found) = open(&disk.crash(seed), SMALL).unwrap();
    model.adopt(found, &format!("{context}, at last"));
}

#[test]
fn a_process_that_dies_loses_nothing_that_was_written() {
    let disk = SimDisk::new();
    let mut model = Model::default();
    for life in 0..20 {
        work(&disk, &mut model, life, &format!("life {life}"));
    }
    assert!(!model.records.is_empty());
}

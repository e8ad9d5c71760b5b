//! Where the blocks of a chunk lie on disk: block number → place, as few runs as possible.

use std::collections::BTreeMap;
use std::ops::Range;

/// Number of a block within its chunk.
pub(super) type Block = u32;

/// Number of a block within all extent files of a store, laid end to end.
pub(super) type Place = u64;

/// Adjacent places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Run {
    pub(super) place: Place,
    pub(super) count: u32,
}

/// Blocks of a chunk that lie one after the other on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    pub(super) block: Block,
    pub(super) run: Run,
}

impl Mapped {
    fn end(&self) -> Block {
        self.block + self.run.count
    }

    /// The part of it inside `range`, which it touches.
    fn clipped(&self, range: &Range<Block>) -> Mapped {
        let block = self.block.max(range.start);
        let end = self.end().min(range.end);
        let place = self.run.place + u64::from(block - self.block);
        Mapped {
            block,
            run: Run {
                place,
                count: end - block,
            },
        }
    }
}

/// The map of one chunk. Blocks that are not in it are holes.
#[derive(Clone, Debug, Default)]
pub(super) struct BlockMap {
    runs: BTreeMap<Block, Run>,
}

impl BlockMap {
    /// Places blocks; the places that they had before are appended to `freed`.
    pub(super) fn insert(&mut self, mapped: Mapped, freed: &mut Vec<Run>) {
        self.remove(mapped.block..mapped.end(), freed);
        let Mapped { mut block, mut run } = mapped;
        if let Some((&before, &left)) = self.runs.range(..block).next_back()
            && before + left.count == block
            && left.place + u64::from(left.count) == run.place
        {
            self.runs.remove(&before);
            block = before;
            run = Run {
                place: left.place,
                count: left.count + run.count,
            };
        }
        let end = block + run.count;
        if let Some(&right) = self.runs.get(&end)
            && run.place + u64::from(run.count) == right.place
        {
            self.runs.remove(&end);
            run.count += right.count;
        }
        self.runs.insert(block, run);
    }

    /// Makes holes; the places are appended to `freed`.
    pub(super) fn remove(&mut self, range: Range<Block>, freed: &mut Vec<Run>) {
        let touched: Vec<Mapped> = self.touching(range.clone()).collect();
        for mapped in touched {
            self.runs.remove(&mapped.block);
            let gone = mapped.clipped(&range);
            freed.push(gone.run);
            if mapped.block < gone.block {
                let count = gone.block - mapped.block;
                self.runs.insert(
                    mapped.block,
                    Run {
                        place: mapped.run.place,
                        count,
                    },
                );
            }
            if gone.end() < mapped.end() {
                let place = gone.run.place + u64::from(gone.run.count);
                self.runs.insert(
                    gone.end(),
                    Run {
                        place,
                        count: mapped.end() - gone.end(),
                    },
                );
            }
        }
    }

    /// The mapped parts of `range`, in order.
    pub(super) fn range(&self, range: Range<Block>) -> impl Iterator<Item = Mapped> + '_ {
        self.touching(range.clone())
            .map(move |mapped| mapped.clipped(&range))
    }

    /// Where one block lies.
    pub(super) fn get(&self, block: Block) -> Option<Place> {
        self.range(block..block + 1)
            .next()
            .map(|mapped| mapped.run.place)
    }

    /// All runs.
    pub(super) fn iter(&self) -> impl Iterator<Item = Mapped> + '_ {
        self.runs.iter().map(|(&block, &run)| Mapped { block, run })
    }

    /// One past the last mapped block.
    pub(super) fn end(&self) -> Block {
        self.runs
            .last_key_value()
            .map_or(0, |(&block, run)| block + run.count)
    }

    fn touching(&self, range: Range<Block>) -> impl Iterator<Item = Mapped> + '_ {
        let before = self.runs.range(..range.start).next_back();
        let before = before.filter(|(block, run)| *block + run.count > range.start);
        let within = (range.start < range.end).then(|| self.runs.range(range));
        let before = before.filter(|_| within.is_some());
        before
            .into_iter()
            .chain(within.into_iter().flatten())
            .map(|(&block, &run)| Mapped { block, run })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_base::rng::SplitMix64;

    fn mapped(block: Block, place: Place, count: u32) -> Mapped {
        Mapped {
            block,
            run: Run { place, count },
        }
    }

    #[test]
    fn adjacent_blocks_become_one_run() {
        let (mut map, mut freed) = (BlockMap::default(), Vec::new());
        map.insert(mapped(4, 104, 4), &mut freed);
        map.insert(mapped(0, 100, 4), &mut freed);
        map.insert(mapped(8, 300, 1), &mut freed);
        assert_eq!(
            map.iter().collect::<Vec<_>>(),
            [mapped(0, 100, 8), mapped(8, 300, 1)]
        );
        assert!(freed.is_empty());
    }

    #[test]
    fn random_changes_agree_with_an_array() {
        let mut rng = SplitMix64::new(3);
        let (mut map, mut model) = (BlockMap::default(), [None; 64]);
        let mut next = 0;
        for _ in 0..3000 {
            let start = rng.below(64) as u32;
            let end = start + 1 + rng.below(64 - u64::from(start)) as u32;
            let mut freed = Vec::new();
            let before: Vec<Place> = model[start as usize..end as usize]
                .iter()
                .flatten()
                .copied()
                .collect();
            if rng.percent(60) {
                map.insert(mapped(start, next, end - start), &mut freed);
                for block in start..end {
                    model[block as usize] = Some(next + u64::from(block - start));
                }
                next += u64::from(end - start);
            } else {
                map.remove(start..end, &mut freed);
                model[start as usize..end as usize].fill(None);
            }
            let freed: Vec<Place> = freed
                .iter()
                .flat_map(|run| run.place..run.place + u64::from(run.count))
                .collect();
            assert_eq!(freed, before);
            assert!((0..64).all(|block| map.get(block) == model[block as usize]));
            let end = model
                .iter()
                .rposition(Option::is_some)
                .map_or(0, |last| last + 1);
            assert_eq!(map.end() as usize, end);
        }
    }
}

//! Whether what members list fits what metadata names: pure, and told apart from what only changed meanwhile.
//!
//! Lists are read while files are written, made and deleted. So what looks wrong is looked at again after a while,
//! and counts only if time does not explain it: see [`confirmed`].

use lumeofs_base::{NodeId, Version};

/// A chunk at a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) chunk: u64,
    pub(super) version: Version,
    pub(super) deleted: bool,
}

/// A chunk as it was seen at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sight {
    pub(super) chunk: u64,
    /// A file has it, in this group.
    pub(super) named: bool,
    /// What each member has; `None` = nothing.
    pub(super) held: Vec<(NodeId, Option<Held>)>,
}

/// What is wrong with a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A member has an older version than another, or nothing.
    Behind {
        node: NodeId,
        has: Option<Version>,
        newest: Version,
    },
    /// A member has deleted it, and a file still names it.
    Deleted { node: NodeId },
    /// A member has it, and no file.
    Orphan,
}

impl Sight {
    fn newest(&self) -> Option<Version> {
        let live = self.live();
        live.map(|(_, held)| held.version).max()
    }

    fn live(&self) -> impl Iterator<Item = (NodeId, Held)> {
        let held = self.held.iter();
        held.filter_map(|(node, held)| Some((*node, (*held)?)))
            .filter(|(_, held)| !held.deleted)
    }

    /// Named, and no member has it: it was never written.
    pub(super) fn is_hole(&self) -> bool {
        self.named && self.held.iter().all(|(_, held)| held.is_none())
    }

    /// What is wrong, if everything stood still.
    pub(super) fn faults(&self) -> Vec<Fault> {
        if !self.named {
            return self
                .live()
                .next()
                .map(|_| Fault::Orphan)
                .into_iter()
                .collect();
        }
        let newest = self.newest();
        let fault = |(node, held): &(NodeId, Option<Held>)| match (held, newest) {
            (Some(held), _) if held.deleted => Some(Fault::Deleted { node: *node }),
            (held, Some(newest)) if held.map(|held| held.version) < Some(newest) => {
                Some(Fault::Behind {
                    node: *node,
                    has: held.map(|held| held.version),
                    newest,
                })
            }
            _ => None,
        };
        self.held.iter().filter_map(fault).collect()
    }
}

/// Chunks that look wrong among those that metadata names (`named`, in order) and those that members list (in
/// order), and how many are holes.
pub(super) fn compare(named: &[u64], members: &[(NodeId, &[Held])]) -> (Vec<Sight>, u64) {
    let (mut suspects, mut holes) = (Vec::new(), 0);
    let mut rest = named;
    let mut lists: Vec<_> = members.to_vec();
    loop {
        let firsts = lists.iter().filter_map(|(_, list)| list.first());
        let next = firsts
            .map(|held| held.chunk)
            .chain(rest.first().copied())
            .min();
        let Some(chunk) = next else {
            return (suspects, holes);
        };
        let is_named = rest.first() == Some(&chunk);
        if is_named {
            rest = &rest[1..];
        }
        let take = |(node, list): &mut (NodeId, &[Held])| {
            let held = list.first().copied().filter(|held| held.chunk == chunk);
            if held.is_some() {
                *list = &list[1..];
            }
            (*node, held)
        };
        let sight = Sight {
            chunk,
            named: is_named,
            held: lists.iter_mut().map(take).collect(),
        };
        if sight.is_hole() {
            holes += 1;
        } else if !sight.faults().is_empty() {
            suspects.push(sight);
        }
    }
}

/// What is wrong for sure, from two looks between which every operation under way came to an end. A member that
/// still lacks what another had at the first look lost it, whatever was written since.
pub(super) fn confirmed(first: &Sight, second: &Sight) -> Vec<Fault> {
    let before = first.newest();
    let holds = |fault: &Fault| match fault {
        Fault::Behind { has, .. } => first.named && *has < before,
        Fault::Deleted { node } => {
            let same =
                |other: &&Fault| matches!(other, Fault::Deleted { node: other } if other == node);
            first.faults().iter().any(|other| same(&other))
        }
        Fault::Orphan => !first.named,
    };
    second.faults().into_iter().filter(holds).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_base::{Epoch, Sequence};

    fn version(sequence: u64) -> Version {
        Version {
            epoch: Epoch(1),
            sequence: Sequence(sequence),
        }
    }

    fn held(chunk: u64, sequence: u64) -> Held {
        Held {
            chunk,
            version: version(sequence),
            deleted: false,
        }
    }

    fn gone(chunk: u64) -> Held {
        Held {
            deleted: true,
            ..held(chunk, 9)
        }
    }

    fn sight(named: bool, held: [Option<Held>; 2]) -> Sight {
        let [one, two] = held;
        Sight {
            chunk: 5,
            named,
            held: vec![(NodeId(1), one), (NodeId(2), two)],
        }
    }

    #[test]
    fn lists_that_fit_have_holes_and_tombstones_and_no_suspects() {
        let one = [held(2, 1), held(4, 2), gone(5)];
        let two = [held(2, 1), held(4, 2)];
        let members = [(NodeId(1), &one[..]), (NodeId(2), &two[..])];
        assert_eq!(compare(&[1, 2, 3, 4], &members), (vec![], 2));
    }

    #[test]
    fn every_way_not_to_fit_is_a_suspect() {
        let one = [held(1, 1), held(2, 7), held(3, 1), held(6, 1), gone(8)];
        let two = [held(1, 1), held(2, 6), held(7, 1), held(8, 1)];
        let members = [(NodeId(1), &one[..]), (NodeId(2), &two[..])];
        let (suspects, holes) = compare(&[1, 2, 3, 4, 8], &members);
        assert_eq!(holes, 1);
        let chunks: Vec<_> = suspects.iter().map(|sight| sight.chunk).collect();
        assert_eq!(chunks, [2, 3, 6, 7, 8]);
        let behind = |node, has, newest| Fault::Behind {
            node: NodeId(node),
            has,
            newest: version(newest),
        };
        assert_eq!(suspects[0].faults(), [behind(2, Some(version(6)), 7)]);
        assert_eq!(suspects[1].faults(), [behind(2, None, 1)]);
        assert_eq!(suspects[2].faults(), [Fault::Orphan]);
        assert_eq!(suspects[3].faults(), [Fault::Orphan]);
        assert_eq!(suspects[4].faults(), [Fault::Deleted { node: NodeId(1) }]);
    }

    #[test]
    fn a_chunk_that_is_written_all_the_time_is_no_fault_and_one_that_stays_behind_is() {
        let first = sight(true, [Some(held(5, 10)), Some(held(5, 9))]);
        let moves_on = sight(true, [Some(held(5, 20)), Some(held(5, 19))]);
        assert!(confirmed(&first, &moves_on).is_empty());
        let stays = sight(true, [Some(held(5, 20)), Some(held(5, 9))]);
        assert_eq!(confirmed(&first, &stays).len(), 1);
        let lacks = sight(true, [Some(held(5, 20)), None]);
        assert_eq!(confirmed(&first, &lacks).len(), 1);
    }

    #[test]
    fn a_file_that_was_made_or_removed_between_two_lists_is_no_fault() {
        let unnamed = sight(false, [Some(held(5, 1)), Some(held(5, 1))]);
        let named = sight(true, [Some(held(5, 1)), Some(held(5, 1))]);
        assert!(confirmed(&unnamed, &named).is_empty());
        let deleted = sight(false, [Some(gone(5)), Some(gone(5))]);
        let being_deleted = sight(true, [Some(gone(5)), Some(held(5, 1))]);
        assert!(confirmed(&being_deleted, &deleted).is_empty());
        assert!(confirmed(&unnamed, &deleted).is_empty());
        assert_eq!(confirmed(&unnamed, &unnamed), [Fault::Orphan]);
    }
}

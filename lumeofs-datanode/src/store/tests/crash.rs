//! Power cuts after every sync of a workload: what was acknowledged is there, each group's history
//! ends at one of its operations, nothing is damaged, no space is lost or shared.

use super::*;

const STEPS: u64 = 70;

/// How many times the usual number of workloads is tried: for long runs.
fn rounds() -> u64 {
    std::env::var("LUMEOFS_CRASH_ROUNDS").map_or(1, |text| text.parse().expect("a number"))
}

/// What a run acknowledged before the power went.
struct Run {
    steps: Vec<Step>,
    durable: BTreeMap<GroupId, Version>,
    notes: BTreeMap<GroupId, Vec<u8>>,
}

/// Steps, syncs and upkeep as `seed` decides, until power goes after so many syncs. The steps between
/// the last sync that counts and the next one are made: a crash may keep any part of them.
fn run(disk: &SimDisk, seed: u64, syncs: u64) -> Run {
    disk.freeze_after_syncs(syncs);
    let mut rng = SplitMix64::new(seed);
    let mut run = Run {
        steps: Vec::new(),
        durable: BTreeMap::new(),
        notes: BTreeMap::new(),
    };
    let config = StoreConfig {
        capacity_bytes: Some(2 << 20),
        ..small()
    };
    let Ok(store) = ChunkStore::open(Arc::new(disk.clone()), identity(), config) else {
        return run;
    };
    let mut sequence = 0;
    while sequence < STEPS && disk.sync_count() <= syncs {
        sequence += 1;
        let step = Step::random(&mut rng, sequence);
        let applied = match store.apply(step.group, step.version, &step.op, &step.data()) {
            Ok(applied) => applied,
            Err(error) if error.code == Code::NoSpace => continue,
            Err(error) => panic!("{error}"),
        };
        run.steps.push(step.clone());
        match rng.below(10) {
            0..3 => {
                store.sync(applied.lsn).unwrap();
                if !disk.is_frozen() {
                    for step in &run.steps {
                        run.durable.insert(step.group, step.version);
                    }
                }
            }
            3 => {
                let note = vec![sequence as u8; 100];
                store.set_group_note(step.group, &note).unwrap();
                if !disk.is_frozen() {
                    run.notes.insert(step.group, note);
                }
            }
            4..6 => drop(store.maintain().unwrap()),
            // Upkeep that has not synced the queue first, as when operations come at the same time.
            6..9 => drop(store.core.advance().unwrap()),
            _ => {}
        }
    }
    run
}

fn check(disk: &SimDisk, run: &Run) {
    let store = open(disk);
    for group in Model::groups() {
        let last = store.last(group);
        assert!(
            last >= run.durable.get(&group).copied().unwrap_or_default(),
            "lost operations"
        );
        let mut model = Model::default();
        for step in run
            .steps
            .iter()
            .filter(|step| step.group == group && step.version <= last)
        {
            model.apply(step);
        }
        assert_eq!(model.last.get(&group).copied().unwrap_or_default(), last);
        model.compare(&store, group);
        if let Some(note) = run.notes.get(&group) {
            assert!(store.group_note(group)[0] >= note[0], "lost a note");
        }
    }
    check_space(&store);
}

#[test]
fn every_power_cut_leaves_a_prefix_with_all_that_was_acknowledged() {
    for workload in 1..=rounds() {
        let whole = SimDisk::new();
        run(&whole, workload, u64::MAX);
        let syncs = whole.sync_count();
        assert!(syncs > 60, "the workload must be worth cutting");
        for after in 0..=syncs {
            println!("workload {workload}, cut after {after} syncs");
            let disk = SimDisk::new();
            let done = run(&disk, workload, after);
            for seed in 0..3 {
                check(&disk.crash(seed * 1000 + after), &done);
            }
        }
    }
}

#[test]
fn power_cuts_at_random_moments_of_random_workloads_are_survived() {
    for seed in 100..100 + 50 * rounds() {
        println!("seed {seed}");
        let mut rng = SplitMix64::new(seed);
        let disk = SimDisk::new();
        let done = run(&disk, seed, 5 + rng.below(120));
        check(&disk.crash(rng.next_u64()), &done);
    }
}

#[test]
fn a_power_cut_during_recovery_is_survived() {
    for seed in 0..40 * rounds() {
        println!("seed {seed}");
        let mut rng = SplitMix64::new(seed);
        let disk = SimDisk::new();
        let done = run(&disk, seed, 40 + rng.below(60));
        let again = disk.crash(seed);
        again.freeze_after_syncs(rng.below(12));
        if let Ok(store) = ChunkStore::open(Arc::new(again.clone()), identity(), small()) {
            for _ in 0..rng.below(20) {
                store.maintain().unwrap();
            }
        }
        check(&again.crash(seed), &done);
    }
}

#[test]
fn a_copy_is_whole_once_the_group_says_so() {
    let mut rng = SplitMix64::new(6);
    let (group, chunk) = (GroupId(1), ChunkId(100));
    let (old, new) = (noise(&mut rng, 90_000), noise(&mut rng, 150_000));
    let state = ChunkState {
        chunk,
        version: version(50),
        len: (new.len() as u64).next_multiple_of(B),
        truncations: 1,
        deleted: false,
        part: None,
    };
    for after in 0..40 {
        let disk = SimDisk::new();
        disk.freeze_after_syncs(after);
        let store = open(&disk);
        let op = write_op(100, 10, 0, &old);
        let applied = store.apply(group, version(1), &op, &old).unwrap();
        store.sync(applied.lsn).unwrap();
        store.copy_begin(group, chunk).unwrap();
        for (index, piece) in new.chunks(70_000).enumerate() {
            let offset = index as u64 * 70_000;
            let data = AlignedBuf::copy_of(piece);
            let sums = block_checksums(offset, piece);
            store
                .copy_piece(group, chunk, offset, &data, &sums)
                .unwrap();
            store.maintain().unwrap();
        }
        store.copy_end(group, &state).unwrap();
        store.set_last(group, version(60)).unwrap();
        let acknowledged = !disk.is_frozen();
        let store = open(&disk.crash(after));
        let found = store.state(group, chunk);
        assert!(!acknowledged || store.last(group) == version(60));
        if store.last(group) == version(60) || found == Some(state) {
            assert_eq!(found, Some(state));
            assert!(store.read(chunk, 0, new.len()).unwrap().0[..] == new[..]);
        } else if found.is_some_and(|found| found.version == version(1)) {
            assert!(store.read(chunk, 10, old.len()).unwrap().0[..] == old[..]);
        } else {
            assert_eq!(
                found.map_or(Version::default(), |found| found.version),
                Version::default()
            );
        }
        check_space(&store);
    }
}

#[test]
fn an_operation_between_any_two_steps_of_a_checkpoint_is_whole_or_gone() {
    // A write makes a checkpoint due, and the log keeps little more than its last record.
    let wal = WalConfig {
        segment_bytes: 24 << 10,
        ..WalConfig::default()
    };
    let config = StoreConfig {
        checkpoint_wal_bytes: 8000,
        wal,
        ..small()
    };
    for (steps_before, steps_after, len) in (0..6)
        .flat_map(|before| (0..6).map(move |after| (before, after)))
        .flat_map(|(before, after)| [(before, after, 3 * BLOCK_SIZE), (before, after, 100_000)])
    {
        let disk = SimDisk::new();
        let store = ChunkStore::open(Arc::new(disk.clone()), identity(), config.clone()).unwrap();
        let advance = |steps| (0..steps).for_each(|_| assert!(store.core.advance().is_ok()));
        let write = |group, sequence, value, len| {
            let data = AlignedBuf::copy_of(&vec![value; len]);
            let op = write_op(u64::from(group), 0, 0, &data);
            store
                .apply(GroupId(group), version(sequence), &op, &data)
                .unwrap()
                .lsn
        };
        let other = |sequence| store.sync(write(2, sequence, 0, 3 * BLOCK_SIZE)).unwrap();
        store.sync(write(1, 1, 1, len)).unwrap();
        store.sync(write(1, 2, 2, len)).unwrap();
        other(1);
        // A whole checkpoint, so that the log has nothing of the chunk any more.
        while store.core.advance().unwrap() {}
        other(2);
        advance(steps_before);
        write(1, 3, 3, len);
        advance(steps_after);
        for seed in 0..6 {
            let store = open(&disk.crash(seed));
            let last = store.last(GroupId(1));
            assert!(last == version(2) || last == version(3));
            assert_eq!(store.state(GroupId(1), ChunkId(1)).unwrap().version, last);
            let (data, _) = store.read(ChunkId(1), 0, len).unwrap();
            assert!(
                data.iter()
                    .all(|byte| u64::from(*byte) == last.sequence.get())
            );
            check_space(&store);
        }
    }
}

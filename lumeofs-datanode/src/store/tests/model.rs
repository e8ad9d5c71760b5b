//! The store against the model, without faults.

use super::*;

#[test]
fn random_operations_agree_with_the_model_over_reopenings() {
    for seed in 0..4 {
        let mut rng = SplitMix64::new(seed);
        let disk = SimDisk::new();
        let mut store = open(&disk);
        let mut model = Model::default();
        for sequence in 1..=250 {
            let step = Step::random(&mut rng, sequence);
            let applied = store
                .apply(step.group, step.version, &step.op, &step.data())
                .unwrap();
            assert_eq!(applied.refused.map(|error| error.code), model.apply(&step));
            assert_eq!(store.last(step.group), step.version);
            match rng.below(30) {
                0 => store.sync(applied.lsn).unwrap(),
                1 => while store.maintain().unwrap() {},
                2 => {
                    drop(store);
                    store = open(&disk);
                }
                3 => Model::groups().for_each(|group| model.compare(&store, group)),
                4 => check_space(&store),
                5..15 => drop(store.maintain().unwrap()),
                _ => {}
            }
        }
        Model::groups().for_each(|group| model.compare(&store, group));
        check_space(&store);
        assert!(
            disk.list(std::path::Path::new("chunks"))
                .unwrap()
                .contains(&"checkpoint".into())
        );
    }
}

#[test]
fn reads_of_any_alignment_return_data_and_checksums() {
    let mut rng = SplitMix64::new(9);
    let store = open(&SimDisk::new());
    let mut expected = vec![0; AREA];
    for (sequence, (offset, len)) in [(10_000, 150_000), (0, 50), (170_001, 9000)]
        .into_iter()
        .enumerate()
    {
        let data = noise(&mut rng, len);
        expected[offset..offset + len].copy_from_slice(&data);
        let op = write_op(5, offset as u64, 0, &data);
        store
            .apply(GroupId(1), version(1 + sequence as u64), &op, &data)
            .unwrap();
    }
    for _ in 0..200 {
        let offset = rng.below(AREA as u64);
        let len = rng.below(AREA as u64 - offset + 1) as usize;
        let (data, checksums) = store.read(ChunkId(5), offset, len).unwrap();
        assert!(data[..] == expected[offset as usize..][..len]);
        assert_eq!(checksums, block_checksums(offset, &data));
        store.maintain().unwrap();
    }
    let (zeros, checksums) = store.read(ChunkId(99), 1000, 9000).unwrap();
    assert!(zeros.iter().all(|byte| *byte == 0));
    assert_eq!(checksums, block_checksums(1000, &zeros));
    let past_the_end = store.read(ChunkId(5), 1 << 40, 8192).unwrap().0;
    assert!(past_the_end.iter().all(|byte| *byte == 0));
}

#[test]
fn stale_writes_and_writes_to_tombstones_are_refused_in_order() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let (group, data) = (GroupId(1), AlignedBuf::copy_of(b"hello"));
    let apply = |sequence, op: &ChunkOp| {
        let applied = store.apply(group, version(sequence), op, &data).unwrap();
        applied.refused.map(|error| error.code)
    };
    assert_eq!(apply(1, &cut_op(1, 0, 2)), None);
    assert_eq!(apply(2, &write_op(1, 0, 1, &data)), Some(Code::StaleWrite));
    assert_eq!(
        store.state(GroupId(1), ChunkId(1)).unwrap().version,
        version(1)
    );
    assert_eq!(store.last(group), version(2));
    assert_eq!(apply(3, &ChunkOp::Delete { chunk: ChunkId(1) }), None);
    assert_eq!(apply(4, &write_op(1, 0, 9, &data)), Some(Code::Stale));
    store.sync(store.core.journal.last()).unwrap();
    assert_eq!(store.durable(group), version(4));
    drop(store);
    let store = open(&disk);
    assert!(store.state(GroupId(1), ChunkId(1)).unwrap().deleted);
    assert_eq!(
        (store.last(group), store.durable(group)),
        (version(4), version(4))
    );
}

#[test]
fn a_cut_that_comes_twice_spares_what_was_written_after_the_first() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let (group, data) = (GroupId(1), AlignedBuf::copy_of(&[7; 9000]));
    let apply = |sequence, op: &ChunkOp| {
        let applied = store.apply(group, version(sequence), op, &data).unwrap();
        assert_eq!(applied.refused, None);
    };
    apply(1, &write_op(1, 0, 0, &data));
    // A write within the new size may be quicker than the cut, which must be made all the same.
    apply(2, &write_op(1, 0, 1, &AlignedBuf::copy_of(&data)));
    apply(3, &cut_op(1, 100, 1));
    let zeros = store.read(ChunkId(1), 100, 8900).unwrap().0;
    assert!(zeros.iter().all(|byte| *byte == 0));
    apply(4, &write_op(1, 100, 1, &data));
    apply(5, &cut_op(1, 100, 1));
    let kept = |store: &ChunkStore| {
        assert!(store.read(ChunkId(1), 100, 9000).unwrap().0[..] == data[..]);
        assert_eq!(
            store.state(GroupId(1), ChunkId(1)).unwrap().version,
            version(4)
        );
        assert_eq!(store.last(group), version(5));
    };
    kept(&store);
    drop(store);
    kept(&open(&disk));
}

#[test]
fn a_new_era_forgets_deleted_chunks_and_makes_none_for_an_older_plan() {
    let disk = SimDisk::new();
    let mut store = open(&disk);
    let data = AlignedBuf::copy_of(b"hello");
    let of_era = |chunk: u64, planned: u32| match write_op(chunk, 0, 0, &data) {
        ChunkOp::Write {
            chunk,
            offset,
            truncations,
            checksums,
            part,
            ..
        } => ChunkOp::Write {
            part,
            chunk,
            offset,
            truncations,
            era: planned,
            checksums,
        },
        _ => unreachable!(),
    };
    let apply = |store: &ChunkStore, group, sequence, op: &ChunkOp| {
        let applied = store.apply(GroupId(group), version(sequence), op, &data);
        applied.unwrap().refused.map(|error| error.code)
    };
    let delete = |chunk| ChunkOp::Delete {
        chunk: ChunkId(chunk),
    };
    for (sequence, chunk) in [(1, 1), (2, 2)] {
        assert_eq!(apply(&store, 1, sequence, &of_era(chunk, 0)), None);
    }
    assert_eq!(apply(&store, 2, 1, &delete(9)), None);
    assert_eq!(apply(&store, 1, 3, &delete(1)), None);
    assert_eq!(apply(&store, 1, 4, &era_op(1)), None);
    let check = |store: &ChunkStore| {
        let states = store.list(GroupId(1), None, 10);
        let ids: Vec<_> = states.iter().map(|state| state.chunk).collect();
        assert_eq!(ids, [ERA_MARK, ChunkId(2)]);
        assert_eq!(store.list(GroupId(1), Some(ERA_MARK), 10).len(), 1);
        assert_eq!(store.list(GroupId(1), None, 1).len(), 1);
        assert_eq!((store.era(GroupId(1)), store.era(GroupId(2))), (1, 0));
        assert!(store.state(GroupId(2), ChunkId(9)).unwrap().deleted);
    };
    check(&store);
    // From the log, then from a checkpoint.
    for sequence in [5, 6] {
        drop(store);
        store = open(&disk);
        check(&store);
        let late = apply(&store, 1, sequence, &of_era(1, 0));
        assert_eq!(late, Some(Code::StaleWrite));
        let big = noise(&mut SplitMix64::new(sequence), 60_000);
        for step in 1..6 {
            let op = write_op(100 + step, 0, 0, &big);
            let applied = store.apply(GroupId(3), version(sequence * 10 + step), &op, &big);
            assert_eq!(applied.unwrap().refused, None);
        }
        while store.maintain().unwrap() {}
    }
    // What was deleted in this era is remembered, and who knows of it makes new chunks.
    assert_eq!(apply(&store, 1, 7, &of_era(2, 0)), None);
    assert_eq!(apply(&store, 1, 8, &of_era(3, 1)), None);
    assert_eq!(apply(&store, 1, 9, &delete(3)), None);
    assert_eq!(apply(&store, 1, 10, &era_op(1)), None);
    assert_eq!(apply(&store, 1, 11, &of_era(3, 1)), Some(Code::Stale));
    assert_eq!(apply(&store, 1, 12, &era_op(0)), Some(Code::StaleWrite));
    check_space(&store);
}

#[test]
fn requests_that_make_no_sense_change_nothing() {
    let store = open(&SimDisk::new());
    let data = AlignedBuf::copy_of(&[1; 100]);
    let mut wrong = write_op(1, 0, 0, &data);
    if let ChunkOp::Write { checksums, .. } = &mut wrong {
        checksums[0] ^= 1;
    }
    let code = |op: &ChunkOp| {
        store
            .apply(GroupId(1), version(1), op, &data)
            .unwrap_err()
            .code
    };
    assert_eq!(code(&wrong), Code::Io);
    let past = write_op(1, lumeofs_base::limits::CHUNK_SIZE_BYTES - 50, 0, &data);
    assert_eq!(code(&past), Code::Invalid);
    store
        .apply(GroupId(1), version(1), &write_op(1, 0, 0, &data), &data)
        .unwrap();
    let other = store.apply(GroupId(2), version(1), &write_op(1, 0, 0, &data), &data);
    assert_eq!(other.unwrap_err().code, Code::Invalid);
    assert_eq!(store.last(GroupId(2)), Version::default());
    assert!(store.set_group_note(GroupId(1), &vec![0; 300_000]).is_err());
}

#[test]
fn a_copied_chunk_replaces_what_was_there_and_survives() {
    let (disk, mut rng) = (SimDisk::new(), SplitMix64::new(4));
    let store = open(&disk);
    let (group, chunk) = (GroupId(2), ChunkId(8));
    let old = noise(&mut rng, 100_000);
    store
        .apply(group, version(1), &write_op(8, 0, 0, &old), &old)
        .unwrap();
    store
        .apply(group, version(2), &ChunkOp::Delete { chunk }, &old)
        .unwrap();
    let new = noise(&mut rng, 20 * BLOCK_SIZE);
    store.copy_begin(group, chunk).unwrap();
    assert_eq!(
        store.state(group, chunk).unwrap().version,
        Version::default()
    );
    store
        .copy_piece(group, chunk, 3 * B, &new, &block_checksums(3 * B, &new))
        .unwrap();
    let state = ChunkState {
        chunk,
        version: version(77),
        len: 23 * B,
        truncations: 5,
        deleted: false,
        part: None,
    };
    store.copy_end(group, &state).unwrap();
    assert_eq!(store.last(group), version(2));
    store.set_last(group, version(80)).unwrap();
    store.set_group_note(group, b"note").unwrap();
    let after = disk.crash(1);
    drop(store);
    let store = open(&after);
    assert_eq!(store.state(group, chunk), Some(state));
    assert_eq!(store.extents(chunk), [(3 * B, 20 * B)]);
    assert!(store.read(chunk, 3 * B, new.len()).unwrap().0[..] == new[..]);
    assert_eq!(
        (store.last(group), store.group_note(group)),
        (version(80), b"note".to_vec())
    );
    store.drop_chunk(group, chunk).unwrap();
    assert_eq!(
        (store.state(group, chunk), store.list(group, None, 10)),
        (None, Vec::new())
    );
    check_space(&store);
    assert_eq!(store.space().0, store.space().1);
}

#[test]
fn long_lists_come_in_pieces() {
    let store = open(&SimDisk::new());
    let data = AlignedBuf::copy_of(b"x");
    for chunk in 1..=20 {
        let group = GroupId(1 + (chunk % 2) as u32);
        store
            .apply(group, version(chunk), &write_op(chunk, 0, 0, &data), &data)
            .unwrap();
    }
    let (mut after, mut all) = (None, Vec::new());
    loop {
        let page = store.list(GroupId(1), after, 3);
        let Some(last) = page.last() else { break };
        after = Some(last.chunk);
        all.extend(page.iter().map(|state| state.chunk.get()));
    }
    assert_eq!(all, (1..=10).map(|half| half * 2).collect::<Vec<_>>());
}

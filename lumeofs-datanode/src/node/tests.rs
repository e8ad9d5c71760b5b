//! A node whose disk hangs.

use super::*;
use crate::store::StoreConfig;
use crate::store::tests::gate::{Call, GateDisk};
use crate::store::tests::{identity, small};
use lumeofs_base::clock::ManualClock;
use lumeofs_base::limits::DISK_STALL_MAX;
use lumeofs_base::{Epoch, NodeKind};
use lumeofs_proto::auth::Credentials;
use lumeofs_replica::Role;
use std::time::{Duration, Instant};

fn config(epoch: u64) -> GroupConfig {
    let me = identity().node;
    GroupConfig {
        group: GroupId(1),
        epoch: Epoch(epoch),
        primary: me,
        members: vec![me],
        in_sync: vec![me],
        leaving: Vec::new(),
        replicas: 1,
    }
}

#[test]
fn a_node_whose_disk_hangs_leaves_its_groups_says_so_and_comes_back() {
    let (disk, clock) = (GateDisk::new(), ManualClock::default());
    let store_config = StoreConfig {
        clock: Arc::new(clock.clone()),
        ..small()
    };
    let store = ChunkStore::open(Arc::new(disk.clone()), identity(), store_config);
    let store = Arc::new(store.unwrap());
    let node_config = DatanodeConfig {
        identity: Identity {
            credentials: Credentials::generate(),
            node: identity().node,
            kind: NodeKind::Datanode,
        },
        listen: String::new(),
        advertise: String::new(),
        data_dirs: Vec::new(),
        zone: String::new(),
        masters: Vec::new(),
        scrub_rate_bytes: 0,
    };
    let node = Node::new(node_config, vec![store.clone()], Vec::new());
    let driver = node.group_of(config(1)).unwrap();
    let role = || driver.with(Caller::Quick, |core, _| core.role());
    node.tick();
    driver.with(Caller::Quick, |core, now| core.on_proposed(&config(2), now));
    assert_eq!((role(), node.trouble().as_str()), (Role::Primary, ""));
    disk.close_gate(Call::Sync);
    let (syncing, group) = (store.clone(), driver.id);
    let sync = std::thread::spawn(move || syncing.set_group_note(group, b"note"));
    disk.wait_for_call();
    clock.advance(DISK_STALL_MAX * 2);
    node.tick();
    let hanging = (role(), node.trouble());
    disk.open_gate();
    sync.join().unwrap().unwrap();
    assert_ne!(hanging.0, Role::Primary);
    assert!(hanging.1.contains("does not answer"), "{}", hanging.1);
    assert_eq!(node.trouble(), "");
    // The only member: nobody else could lead the group or bring this one up to date.
    let mut epoch = 2;
    let deadline = Instant::now() + Duration::from_secs(60);
    while role() != Role::Primary {
        assert!(Instant::now() < deadline, "{:?}", role());
        node.tick();
        epoch += 1;
        let next = config(epoch);
        driver.with(Caller::Quick, |core, now| core.on_proposed(&next, now));
        std::thread::park_timeout(Duration::from_millis(20));
    }
    node.stop();
}

//! Datanodes, as far as masters see them.

use super::{Cluster, authorize, wait_for};
use lumeofs_base::{ClusterMap, NodeKind};
use lumeofs_proto::blocking::Conn;
use lumeofs_proto::control::controller_client::ControllerClient;
use lumeofs_proto::control::{HeartbeatRequest, Node};
use lumeofs_proto::data::{ChunkReply, ChunkRequest};
use lumeofs_proto::frame::Op;
use parking_lot::Mutex;
use std::sync::Arc;

/// See [`Cluster::fake_datanode`].
pub(in crate::cluster_tests) struct FakeDatanode {
    pub(in crate::cluster_tests) address: String,
    pub(in crate::cluster_tests) deleted: Arc<Mutex<Vec<u64>>>,
}

impl Cluster {
    /// A datanode that deletes whatever it is asked to, and remembers it.
    pub(in crate::cluster_tests) fn fake_datanode(&self) -> FakeDatanode {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let deleted: Arc<Mutex<Vec<u64>>> = Arc::default();
        let (identity, seen) = (self.identity(101, NodeKind::Datanode), deleted.clone());
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (identity, seen) = (identity.clone(), seen.clone());
                std::thread::spawn(move || {
                    let mut conn = Conn::accept(stream, &identity).unwrap();
                    while let Ok(frame) = conn.receiver.receive() {
                        if frame.fixed.op == Op::Delete {
                            seen.lock()
                                .push(frame.decode::<ChunkRequest>().unwrap().chunk);
                        } else {
                            // Nothing is taken off the queue before it is on disk.
                            assert_eq!(frame.fixed.op, Op::Sync);
                        }
                        conn.sender
                            .reply(&frame.fixed, 0, &ChunkReply::default(), &[])
                            .unwrap();
                    }
                });
            }
        });
        FakeDatanode { address, deleted }
    }

    /// Sends heartbeats of datanodes until there are groups.
    pub(in crate::cluster_tests) fn register_datanodes(&self, count: u64) -> ClusterMap {
        self.register_datanodes_at(count, "127.0.0.1:1")
    }

    /// As [`Cluster::register_datanodes`], all at one address.
    pub(in crate::cluster_tests) fn register_datanodes_at(
        &self,
        count: u64,
        address: &str,
    ) -> ClusterMap {
        let mut map = ClusterMap::default();
        wait_for("replica groups", || {
            for (id, node) in self
                .ids()
                .into_iter()
                .flat_map(|id| (1..=count).map(move |node| (id, node)))
            {
                let node = Node {
                    id: 100 + node,
                    address: address.to_owned(),
                    zone: String::new(),
                    capacity_bytes: 1 << 40,
                    free_bytes: 1 << 39,
                };
                let request = HeartbeatRequest {
                    node: Some(node),
                    map_version: 0,
                    ..Default::default()
                };
                let token = self.credentials.grpc_token();
                let mut controller =
                    ControllerClient::with_interceptor(self.channel(id), authorize(token));
                match self.caller.block_on(controller.heartbeat(request)) {
                    Ok(reply) => map = postcard::from_bytes(&reply.into_inner().map).unwrap(),
                    Err(status) => {
                        let unsure = [tonic::Code::Unavailable, tonic::Code::DeadlineExceeded];
                        assert!(unsure.contains(&status.code()), "{status}");
                    }
                }
            }
            // Those that do not lead know it a moment later.
            !map.groups.is_empty() && self.status().nodes.len() as u64 == count
        });
        map
    }
}

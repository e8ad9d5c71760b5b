//! What another master knows of the masters, and the form of that on the wire.

use crate::masters::Masters;
use crate::raft::Group;
use lumeofs_base::{Code, FsError, FsResult, NodeId};
use lumeofs_meta::controller::{self, MasterRecord, MasterState};
use lumeofs_proto::auth::Identity;
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::{self, MapReply, MapRequest};
use lumeofs_proto::nonblocking::connect;
use std::time::Duration;
use tokio::time::timeout;

/// How long another master may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks the master at an address, which says whether its answer is certain.
pub(crate) async fn ask(identity: &Identity, address: &str) -> FsResult<MapReply> {
    let asked = async {
        let net = |error| FsError::from_net(&error, "ask another master");
        let (mut reader, mut writer, _) = connect(address, identity).await?;
        let request = MapRequest {
            version: 0,
            certainly: true,
        };
        writer
            .request(Op::Map, 0, &request, &[])
            .await
            .map_err(net)?;
        reader.receive().await.map_err(net)?.decode()
    };
    let asked = timeout(ASK_TIMEOUT, asked).await;
    asked.unwrap_or_else(|_| Err(FsError::new(Code::Timeout, "ask another master")))
}

/// A record for the wire.
pub(crate) fn to_wire(record: &MasterRecord, joined: bool) -> meta::MasterRecord {
    meta::MasterRecord {
        id: record.id.get(),
        address: record.address.clone(),
        state: state_to_wire(record.state),
        replaces: record.replaces.map_or(0, NodeId::get),
        joined,
    }
}

/// A state for the wire.
pub(crate) const fn state_to_wire(state: MasterState) -> u32 {
    match state {
        MasterState::Candidate => 0,
        MasterState::Joining => 1,
        MasterState::Voter => 2,
        MasterState::Leaving => 3,
        MasterState::Removed => 4,
    }
}

/// A record from the wire.
pub(crate) fn from_wire(record: &meta::MasterRecord) -> FsResult<MasterRecord> {
    let state = match record.state {
        0 => MasterState::Candidate,
        1 => MasterState::Joining,
        2 => MasterState::Voter,
        3 => MasterState::Leaving,
        4 => MasterState::Removed,
        other => {
            let text = format!("master {} has the unknown state {other}", record.id);
            return Err(FsError::new(Code::Refused, text));
        }
    };
    Ok(MasterRecord {
        id: NodeId(record.id),
        address: record.address.clone(),
        state,
        replaces: (record.replaces != 0).then_some(NodeId(record.replaces)),
    })
}

/// The records, confirmed by a quorum of the controller: its own on the leader, else from the leader. `None`: nobody
/// who was asked leads.
pub(crate) async fn certain_records(
    identity: &Identity,
    masters: &Masters,
    controller: &Group,
) -> Option<Vec<MasterRecord>> {
    if controller.linearizable().await.is_ok() {
        return Some(controller.store().read(controller::masters));
    }
    let leader = controller.leader().and_then(|id| masters.address(id));
    let others = masters.others();
    let others = others
        .into_iter()
        .filter(|other| Some(other) != leader.as_ref());
    for address in leader.iter().cloned().chain(others) {
        match ask(identity, &address).await {
            Ok(reply) if reply.certain => {
                let records: FsResult<Vec<_>> = reply.records.iter().map(from_wire).collect();
                match records {
                    Ok(records) => return Some(records),
                    Err(error) => tracing::warn!(address, %error, "records of the masters"),
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(address, %error, "asked for the masters"),
        }
    }
    None
}

//! The member's end of a stream.

use crate::convert::{answer_out, message_in};
use crate::data::Data;
use crate::group::Caller;
use crate::node::Node;
use crate::outbox::Outbox;
use lumeofs_base::{Code, FsError, FsResult, GroupId};
use lumeofs_proto::blocking::{Conn, Frame, FrameSender};
use lumeofs_proto::data::StreamMessage;
use lumeofs_proto::data::stream_message::Kind;
use lumeofs_proto::frame::{FLAG_BLOCK_CHECKSUMS, FLAG_REPLY, Op};
use lumeofs_replica::{CopyStep, ToMember, ToPrimary};
use std::io;
use std::sync::Arc;

/// A stream that a primary opened.
pub(crate) struct Inbound {
    pub(crate) outbox: Outbox<ToPrimary<Data>>,
}

/// Serves the connection as a stream until it ends.
pub(crate) fn serve(node: &Arc<Node>, conn: Conn, first: Frame) -> FsResult<()> {
    let net = |error: io::Error| FsError::from_net(&error, "replication stream");
    let closer = conn.closer().map_err(net)?;
    let Conn {
        sender,
        mut receiver,
        peer,
    } = conn;
    let message: StreamMessage = first.decode()?;
    let group = GroupId(message.group);
    let driver = match &message.kind {
        Some(Kind::Attach(config)) => {
            node.group_of(crate::convert::config_in(message.group, config.clone()))
        }
        _ => None,
    };
    let driver = driver.ok_or_else(|| {
        FsError::new(
            Code::WrongGroup,
            format!("group {group} has no replica on this datanode"),
        )
    })?;
    let stream = node.next_nonce();
    let inbound = Arc::new(Inbound {
        outbox: Outbox::new(Box::new(send_one)),
    });
    inbound.outbox.connected(sender, closer);
    driver.add_inbound(stream, inbound.clone());
    let mut frame = first;
    let ended = loop {
        let message = frame
            .decode()
            .and_then(|message| message_in(message, frame.payload.into()));
        match message {
            Ok(message) => {
                if let ToMember::Copy(CopyStep::Piece { data, .. }) = &message {
                    node.requests.add_copied_in(data.len());
                }
                driver.with(Caller::Patient, |core, now| {
                    core.on_message(peer.node, stream, message, now);
                });
            }
            Err(error) => break Err(error),
        }
        match receiver.receive() {
            Ok(next) => frame = next,
            Err(error) => break Err(net(error)),
        }
    };
    inbound.outbox.close();
    driver.remove_inbound(stream);
    ended
}

fn send_one(sender: &mut FrameSender, answer: ToPrimary<Data>) -> io::Result<()> {
    let (header, data) = answer_out(answer);
    let payload = data.as_deref().unwrap_or(&[]);
    sender.request(
        Op::Replicate,
        FLAG_BLOCK_CHECKSUMS | FLAG_REPLY,
        0,
        0,
        &header,
        &[payload],
    )
}

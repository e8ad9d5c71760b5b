//! The primary's end of a stream: a thread that connects and receives answers, one that sends.

use crate::convert::{answer_in, message_out};
use crate::data::Data;
use crate::group::{Caller, GroupDriver};
use crate::node::Node;
use crate::outbox::Outbox;
use crate::pace::Pace;
use lumeofs_base::{FsResult, GroupId, NodeId};
use lumeofs_proto::blocking::{Conn, FrameReceiver, FrameSender};
use lumeofs_proto::frame::{FLAG_BLOCK_CHECKSUMS, Op};
use lumeofs_replica::{CopyStep, StreamId, ToMember, ToPrimary};
use std::io;
use std::sync::Arc;

/// A stream to a member.
pub(crate) struct Outgoing {
    pub(crate) outbox: Outbox<ToMember<Data>>,
}

impl Outgoing {
    /// Starts to connect; the core hears of the outcome.
    pub(crate) fn open(
        node: &Arc<Node>,
        driver: &Arc<GroupDriver>,
        to: NodeId,
        stream: StreamId,
    ) -> Arc<Self> {
        let group = driver.id;
        let requests = node.requests.clone();
        let outbox = Outbox::new(Box::new(move |sender, message: ToMember<Data>| {
            if let ToMember::Copy(CopyStep::Piece { data, .. }) = &message {
                requests.add_copied_out(data.len());
            }
            send_one(group, sender, message)
        }));
        let outgoing = Arc::new(Self { outbox });
        let (this, driver, owner) = (outgoing.clone(), driver.clone(), node.clone());
        node.spawn(&format!("stream-{group}-{to}"), move || {
            if let Err(error) = this.run(&owner, &driver, to, stream) {
                tracing::debug!(%group, member = %to, %error, "stream to a member ended");
            }
            this.outbox.close();
            driver.with(Caller::Quick, |core, now| {
                core.on_stream_closed(to, stream, now)
            });
        });
        outgoing
    }

    fn run(
        self: &Arc<Self>,
        node: &Arc<Node>,
        driver: &Arc<GroupDriver>,
        to: NodeId,
        stream: StreamId,
    ) -> FsResult<()> {
        let conn = Conn::connect(&node.address_of(to)?, &node.identity)?;
        crate::peers::check_peer(&conn, to)?;
        let net = |error: io::Error| lumeofs_base::FsError::from_net(&error, "stream");
        let closer = conn.closer().map_err(net)?;
        if !self.outbox.connected(conn.sender, closer) {
            return Ok(());
        }
        let sending = self.clone();
        node.spawn(&format!("send-{}-{to}", driver.id), move || {
            sending.outbox.run()
        });
        driver.with(Caller::Quick, |core, now| {
            core.on_stream_open(to, stream, now)
        });
        receive(conn.receiver, &node.pace, driver, to, stream)
    }
}

fn receive(
    mut receiver: FrameReceiver,
    pace: &Pace,
    driver: &Arc<GroupDriver>,
    to: NodeId,
    stream: StreamId,
) -> FsResult<()> {
    loop {
        let frame = receiver
            .receive()
            .map_err(|error| lumeofs_base::FsError::from_net(&error, "receive answers"))?;
        let answer = answer_in(frame.decode()?, frame.payload.into())?;
        if matches!(answer, ToPrimary::Copied) {
            pace.copied(driver, to, stream);
            continue;
        }
        driver.with(Caller::Quick, |core, now| {
            core.on_answer(to, stream, answer, now)
        });
    }
}

fn send_one(group: GroupId, sender: &mut FrameSender, message: ToMember<Data>) -> io::Result<()> {
    let op = if matches!(message, ToMember::Attach { .. }) {
        Op::Join
    } else {
        Op::Replicate
    };
    let (header, data) = message_out(group, message);
    let payload = data.as_deref().unwrap_or(&[]);
    // The store checks the block checksums before it applies anything.
    sender.request(op, FLAG_BLOCK_CHECKSUMS, 0, 0, &header, &[payload])
}

impl GroupDriver {
    /// Gives up a stream from this side.
    pub(crate) fn end_outgoing(&self, to: NodeId, stream: StreamId) {
        self.with(Caller::Quick, |core, now| {
            core.abandon_stream(to, stream, now)
        });
    }
}

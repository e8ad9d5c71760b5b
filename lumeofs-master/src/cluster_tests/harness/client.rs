//! A client of the masters.

use super::{Cluster, PATIENCE};
use lumeofs_base::{Code, FsError, FsResult, NodeKind};
use lumeofs_meta::op::{Mutation, Query, Reply};
use lumeofs_proto::auth::Identity;
use lumeofs_proto::blocking::Conn;
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::{MetaReply, MetaRequest, OpenReport, SessionReply, SessionRequest};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A client with one session, which asks until somebody answers.
pub(in crate::cluster_tests) struct Client {
    identity: Identity,
    addresses: BTreeMap<u64, String>,
    conn: Option<(u64, Conn)>,
    pub(in crate::cluster_tests) session: u64,
    pub(in crate::cluster_tests) term: u64,
}

impl Client {
    pub(in crate::cluster_tests) fn connect(cluster: &Cluster) -> Self {
        let mut client = Self {
            identity: cluster.identity(0, NodeKind::Client),
            addresses: cluster.addresses.clone(),
            conn: None,
            session: 0,
            term: 0,
        };
        let nonce = lumeofs_base::entropy::bytes::<16>().to_vec().into();
        let open = SessionRequest {
            nonce,
            description: "test".into(),
            ..Default::default()
        };
        let reply: SessionReply = client.ask(Op::Session, &open).unwrap();
        (client.session, client.term) = (reply.session, reply.term);
        client
    }

    pub(in crate::cluster_tests) fn mutate(
        &mut self,
        sequence: u64,
        mutation: Mutation,
    ) -> FsResult<Reply> {
        let reply = self.mutate_fully(sequence, mutation)?;
        Ok(postcard::from_bytes(&reply.reply).unwrap())
    }

    /// With all that the answer says.
    pub(in crate::cluster_tests) fn mutate_fully(
        &mut self,
        sequence: u64,
        mutation: Mutation,
    ) -> FsResult<MetaReply> {
        let request = MetaRequest {
            session: self.session,
            sequence,
            acked_below: sequence.saturating_sub(500).max(1),
            trusted: true,
            op: postcard::to_stdvec(&mutation).unwrap().into(),
            ..Default::default()
        };
        if sequence.is_multiple_of(10) {
            self.learn_masters();
        }
        self.ask(Op::Mutate, &request)
    }

    /// A query with the lease that is wanted with it.
    pub(in crate::cluster_tests) fn query_wanting(
        &mut self,
        query: Query,
        want: u32,
    ) -> FsResult<MetaReply> {
        let request = MetaRequest {
            want,
            ..self.query_request(query)
        };
        self.ask(Op::Query, &request)
    }

    /// Another connection of the same session.
    pub(in crate::cluster_tests) fn twin(&self) -> Self {
        Self {
            identity: self.identity.clone(),
            addresses: self.addresses.clone(),
            conn: None,
            session: self.session,
            term: self.term,
        }
    }

    pub(in crate::cluster_tests) fn query(&mut self, query: Query) -> FsResult<Reply> {
        let reply: MetaReply = self.ask(Op::Query, &self.query_request(query))?;
        Ok(postcard::from_bytes(&reply.reply).unwrap())
    }

    /// Asks one master, once.
    pub(in crate::cluster_tests) fn query_at(&mut self, master: u64, query: Query) -> FsResult<()> {
        let request = self.query_request(query);
        let _: MetaReply = self.ask_once(master, Op::Query, &request)?;
        Ok(())
    }

    fn query_request(&self, query: Query) -> MetaRequest {
        MetaRequest {
            session: self.session,
            trusted: true,
            op: postcard::to_stdvec(&query).unwrap().into(),
            ..Default::default()
        }
    }

    pub(in crate::cluster_tests) fn report(
        &mut self,
        report: OpenReport,
    ) -> FsResult<SessionReply> {
        self.ask(Op::Opens, &report)
    }

    /// As clients do now and then: masters may have come and gone.
    fn learn_masters(&mut self) {
        if let Ok(reply) = self.keep_alive() {
            let masters = reply.masters.into_iter();
            self.addresses = masters.map(|master| (master.id, master.address)).collect();
        }
    }

    pub(in crate::cluster_tests) fn keep_alive(&mut self) -> FsResult<SessionReply> {
        self.ask(
            Op::Session,
            &SessionRequest {
                session: self.session,
                ..Default::default()
            },
        )
    }

    pub(super) fn ask<R: prost::Message + Default>(
        &mut self,
        op: Op,
        request: &impl prost::Message,
    ) -> FsResult<R> {
        let start = Instant::now();
        loop {
            for master in self.addresses.keys().copied().collect::<Vec<_>>() {
                match self.ask_once(master, op, request) {
                    Err(FsError {
                        code: Code::NotLeader(_) | Code::Timeout | Code::Unavailable | Code::Again,
                        ..
                    }) => {}
                    answer => return answer,
                }
            }
            assert!(start.elapsed() < PATIENCE, "nobody answers {op:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn ask_once<R: prost::Message + Default>(
        &mut self,
        master: u64,
        op: Op,
        request: &impl prost::Message,
    ) -> FsResult<R> {
        let mut conn = match self.conn.take() {
            Some((connected, conn)) if connected == master => conn,
            _ => Conn::connect(&self.addresses[&master], &self.identity)?,
        };
        let failed = |error: std::io::Error| FsError::from_net(&error, "ask a master");
        conn.sender
            .request(op, 0, 3000, 1, request, &[])
            .map_err(failed)?;
        let frame = conn.receiver.receive().map_err(failed)?;
        self.conn = Some((master, conn));
        frame.decode()
    }
}

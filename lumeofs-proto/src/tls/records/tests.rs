//! Our record layer against rustls' own connection, in memory.

use super::*;
use crate::auth::Credentials;
use crate::tls::{Tls, server_name};
use rustls::ServerConnection;
use rustls::unbuffered::ConnectionState;
use std::io::{Read as _, Write as _};

fn tls() -> Tls {
    let credentials = Credentials::generate().with_tls();
    credentials.tls().expect("just made").clone()
}

/// A client that is taken apart, and a server that is rustls' own.
fn halves_and_server() -> (Sealer, Opener, ServerConnection) {
    let tls = tls();
    let mut client = UnbufferedClientConnection::new(tls.frames().clone(), server_name()).unwrap();
    let mut server = ServerConnection::new(tls.server().clone()).unwrap();
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    loop {
        let status = client.process_tls_records(&mut to_client);
        let discard = status.discard;
        match status.state.unwrap() {
            ConnectionState::EncodeTlsData(mut message) => {
                let mut bytes = vec![0; 4096];
                let count = message.encode(&mut bytes).unwrap();
                to_server.extend_from_slice(&bytes[..count]);
            }
            ConnectionState::TransmitTlsData(sent) => {
                sent.done();
                feed(&mut server, &std::mem::take(&mut to_server));
            }
            ConnectionState::BlockedHandshake => {}
            ConnectionState::WriteTraffic(_) => break,
            other => panic!("{other:?}"),
        }
        to_client.drain(..discard);
        while server.wants_write() {
            server.write_tls(&mut to_client).unwrap();
        }
    }
    assert!(!server.is_handshaking() && to_client.is_empty());
    let (sealer, opener) = of_client(client).unwrap();
    (sealer, opener, server)
}

fn feed(server: &mut ServerConnection, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        server.read_tls(&mut bytes).unwrap();
        server.process_new_packets().unwrap();
    }
}

fn received(server: &mut ServerConnection) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 16];
    let count = server.reader().read(&mut bytes).unwrap();
    bytes.truncate(count);
    bytes
}

/// What the server sends, through the opener.
fn opened(server: &mut ServerConnection, opener: &mut Opener) -> Vec<u8> {
    let mut bytes = Vec::new();
    while server.wants_write() {
        server.write_tls(&mut bytes).unwrap();
    }
    let (mut plain, mut rest) = (Vec::new(), &mut bytes[..]);
    while let Some(len) = record_len(rest).unwrap() {
        let (record, later) = std::mem::take(&mut rest).split_at_mut(len);
        if let Opened::Data(data) = opener.open(record).unwrap() {
            plain.extend_from_slice(data);
        }
        rest = later;
    }
    plain
}

#[test]
fn rustls_reads_what_we_seal_and_we_open_what_it_writes() {
    let (mut sealer, mut opener, mut server) = halves_and_server();
    let parts: [&[u8]; 3] = [b"in ", b"three ", b"parts"];
    let mut records = Vec::new();
    sealer
        .seal(OutboundChunks::new(&parts), &mut records)
        .unwrap();
    feed(&mut server, &records.concat());
    assert_eq!(received(&mut server), b"in three parts");
    server.writer().write_all(&[7; 40_000]).unwrap();
    assert_eq!(opened(&mut server, &mut opener), vec![7; 40_000]);
}

#[test]
fn new_keys_are_announced_and_followed_in_both_directions() {
    let (mut sealer, mut opener, mut server) = halves_and_server();
    let say = |sealer: &mut Sealer, server: &mut ServerConnection, what: &[u8]| {
        let mut records = Vec::new();
        sealer
            .seal(OutboundChunks::Single(what), &mut records)
            .unwrap();
        feed(server, &records.concat());
        assert_eq!(received(server), what);
        records.len()
    };
    // Of our own accord.
    sealer.change_keys_after(2);
    let sent: Vec<_> = (0..4)
        .map(|_| say(&mut sealer, &mut server, b"one"))
        .collect();
    assert_eq!(sent, [1, 1, 2, 1]);
    sealer.change_keys_after(u64::MAX);
    // The other side changes its own and asks for ours.
    server.refresh_traffic_keys().unwrap();
    server.writer().write_all(b"after").unwrap();
    assert_eq!(opened(&mut server, &mut opener), b"after");
    assert_eq!(say(&mut sealer, &mut server, b"two"), 2);
    assert_eq!(say(&mut sealer, &mut server, b"three"), 1);
    server.writer().write_all(b"still").unwrap();
    assert_eq!(opened(&mut server, &mut opener), b"still");
}

#[test]
fn an_end_and_a_forgery_are_noticed() {
    let (_, mut opener, mut server) = halves_and_server();
    server.writer().write_all(b"sealed").unwrap();
    let mut bytes = Vec::new();
    server.write_tls(&mut bytes).unwrap();
    for at in HEADER_BYTES..bytes.len() {
        let mut forged = bytes.clone();
        forged[at] ^= 1;
        assert!(opener.open(&mut forged).is_err(), "byte {at}");
    }
    assert_eq!(opener.open(&mut bytes).unwrap(), Opened::Data(b"sealed"));
    // Again: the sequence number has moved on.
    assert!(opener.open(&mut bytes).is_err());
    let (_, mut opener, mut server) = halves_and_server();
    server.send_close_notify();
    let mut bytes = Vec::new();
    server.write_tls(&mut bytes).unwrap();
    assert_eq!(opener.open(&mut bytes).unwrap(), Opened::End);
    assert!(record_len(&[22, 3, 3, 0, 1]).is_err());
    assert!(record_len(&[23, 3, 3, 0xff, 0xff]).is_err());
    assert_eq!(record_len(&[23, 3, 3, 0]).unwrap(), None);
}

#[test]
fn all_nodes_present_the_same_certificate_and_only_the_secret_makes_it() {
    let credentials = Credentials::generate();
    let pem = |credentials: Credentials| {
        let credentials = credentials.with_tls();
        credentials
            .tls()
            .expect("just made")
            .certificate_pem()
            .to_owned()
    };
    let mut other = Credentials::generate();
    other.cluster = credentials.cluster;
    assert_eq!(pem(credentials.clone()), pem(credentials.clone()));
    assert_eq!(
        pem(credentials.clone().with_tls()),
        pem(credentials.clone())
    );
    assert_ne!(pem(credentials), pem(other));
}

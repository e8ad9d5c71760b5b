//! Frames over real sockets, plain and TLS, blocking and tokio.

use super::*;
use crate::auth::Credentials;
use crate::data::{ChunkReply, ChunkRequest};
use crate::nonblocking::{self, FrameReader, FrameWriter, Opening};
use lumeofs_base::{NodeId, NodeKind};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::thread::JoinHandle;
use std::time::Instant;

const LATE: Duration = Duration::from_secs(10);

fn identity(credentials: &Credentials, kind: NodeKind) -> Identity {
    Identity {
        credentials: credentials.clone(),
        node: NodeId(7),
        kind,
    }
}

/// One cluster without TLS, one with.
fn both() -> [Credentials; 2] {
    [Credentials::generate(), Credentials::generate().with_tls()]
}

/// What a blocking server makes of the next connection.
fn accept_one(credentials: &Credentials) -> (String, JoinHandle<FsResult<Conn>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = identity(credentials, NodeKind::Datanode);
    let accepted = std::thread::spawn(move || Conn::accept(listener.accept().unwrap().0, &server));
    (address, accepted)
}

fn pair(credentials: &Credentials) -> (Conn, Conn) {
    let (address, accepted) = accept_one(credentials);
    let client = Conn::connect(&address, &identity(credentials, NodeKind::Client)).unwrap();
    (client, accepted.join().unwrap().unwrap())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

type AsyncConn = (FrameReader, FrameWriter, Peer);

/// What a server on tokio makes of the next connection.
fn accept_one_async(
    runtime: &tokio::runtime::Runtime,
    credentials: &Credentials,
) -> (String, tokio::task::JoinHandle<FsResult<AsyncConn>>) {
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = identity(credentials, NodeKind::Master);
    let accepted = runtime.spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        match nonblocking::open(stream, &server.credentials).await? {
            Opening::Frames(stream) => nonblocking::accept(stream, &server).await,
            Opening::Grpc(_) => panic!("these are frames"),
        }
    });
    (address, accepted)
}

fn pattern(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|at| (at / 7) as u8 ^ salt).collect()
}

/// Empty, small, unaligned, the largest that a frame may carry; 8 MiB in all.
fn payloads(salt: u8) -> impl Iterator<Item = (u64, Vec<u8>)> {
    let sizes = [0, 1, 100 << 10, 16_383, 16_384, (1 << 20) + 4096].into_iter();
    let sizes = sizes.chain([1 << 20; 7]);
    sizes
        .zip(0..)
        .map(move |(len, at)| (at, pattern(len, salt ^ at as u8)))
}

fn send_all(sender: &mut FrameSender, salt: u8) {
    for (at, payload) in payloads(salt) {
        let asked = ChunkRequest {
            chunk: at,
            ..Default::default()
        };
        let (front, back) = payload.split_at(payload.len() / 3);
        sender
            .request(Op::Write, 0, 0, at, &asked, &[front, back])
            .unwrap();
    }
}

fn receive_all(receiver: &mut FrameReceiver, salt: u8) {
    for (at, payload) in payloads(salt) {
        let frame = receiver.receive().unwrap();
        check(&frame, at, &payload);
    }
}

fn check(frame: &Frame, at: u64, payload: &[u8]) {
    assert_eq!(frame.fixed.request, at);
    assert_eq!(frame.decode::<ChunkRequest>().unwrap().chunk, at);
    assert!(frame.payload[..] == *payload, "payload of frame {at}");
}

#[test]
fn requests_and_payloads_cross_an_authenticated_connection() {
    for credentials in both() {
        let (mut conn, mut server) = pair(&credentials);
        let thread = std::thread::spawn(move || {
            let frame = server.receiver.receive().unwrap();
            let asked: ChunkRequest = frame.decode().unwrap();
            assert_eq!((asked.chunk, frame.payload.len()), (9, 100_000));
            server
                .sender
                .reply(&frame.fixed, 0, &ChunkReply::default(), &[&frame.payload])
                .unwrap();
            let frame = server.receiver.receive().unwrap();
            server
                .sender
                .fail(&frame.fixed, &FsError::new(Code::NoSpace, "full"))
                .unwrap();
        });
        assert_eq!(
            conn.peer,
            Peer {
                node: NodeId(7),
                kind: NodeKind::Datanode
            }
        );
        let data = vec![5; 50_000];
        let asked = ChunkRequest {
            chunk: 9,
            ..Default::default()
        };
        conn.sender
            .request(Op::Write, 0, 0, 1, &asked, &[&data, &data])
            .unwrap();
        assert_eq!(conn.receiver.receive().unwrap().payload.len(), 100_000);
        conn.sender
            .request(Op::Write, 0, 0, 2, &asked, &[])
            .unwrap();
        let error = conn
            .receiver
            .receive()
            .unwrap()
            .decode::<ChunkReply>()
            .unwrap_err();
        assert_eq!(error, FsError::new(Code::NoSpace, "full"));
        thread.join().unwrap();
    }
}

#[test]
fn both_directions_carry_frames_of_all_sizes_at_the_same_time() {
    for credentials in both() {
        let (client, server) = pair(&credentials);
        std::thread::scope(|scope| {
            for (conn, mine, theirs) in [(client, 1, 2), (server, 2, 1)] {
                let (mut sender, mut receiver) = (conn.sender, conn.receiver);
                scope.spawn(move || send_all(&mut sender, mine));
                scope.spawn(move || receive_all(&mut receiver, theirs));
            }
        });
    }
}

async fn talk(conn: AsyncConn, mine: u8, theirs: u8) {
    let (mut reader, mut writer, _) = conn;
    let sending = tokio::spawn(async move {
        for (at, payload) in payloads(mine) {
            let asked = ChunkRequest {
                chunk: at,
                ..Default::default()
            };
            writer
                .request(Op::Write, at, &asked, &payload)
                .await
                .unwrap();
        }
        writer
    });
    for (at, payload) in payloads(theirs) {
        check(&reader.receive().await.unwrap(), at, &payload);
    }
    sending.await.unwrap();
}

#[test]
fn blocking_and_tokio_ends_understand_each_other() {
    let runtime = runtime();
    for credentials in both() {
        let (address, accepted) = accept_one_async(&runtime, &credentials);
        let mut client =
            Conn::connect(&address, &identity(&credentials, NodeKind::Client)).unwrap();
        let server = runtime.block_on(accepted).unwrap().unwrap();
        let talking = runtime.spawn(talk(server, 1, 2));
        std::thread::scope(|scope| {
            scope.spawn(|| send_all(&mut client.sender, 2));
            receive_all(&mut client.receiver, 1);
        });
        runtime.block_on(talking).unwrap();

        let (address, accepted) = accept_one(&credentials);
        let client = identity(&credentials, NodeKind::Client);
        let client = runtime
            .block_on(nonblocking::connect(&address, &client))
            .unwrap();
        let mut server = accepted.join().unwrap().unwrap();
        let talking = runtime.spawn(talk(client, 3, 4));
        std::thread::scope(|scope| {
            scope.spawn(|| send_all(&mut server.sender, 4));
            receive_all(&mut server.receiver, 3);
        });
        runtime.block_on(talking).unwrap();
    }
}

#[test]
fn who_does_not_belong_is_refused_with_a_reason() {
    let [plain, tls] = both();
    let mut in_plain = Credentials::parse(&plain.to_text()).unwrap();
    in_plain.cluster = tls.cluster;
    let cases = [
        // Another cluster, in both modes; the same cluster id with another secret.
        (&plain, Credentials::generate(), "secret", "cluster"),
        (
            &tls,
            Credentials::generate().with_tls(),
            "same secret file",
            "wrong cluster secret",
        ),
        (
            &tls,
            in_plain.clone().with_tls(),
            "same secret file",
            "wrong cluster secret",
        ),
        // One side has the line, the other has not.
        (&tls, in_plain, "tls = true", "tls = true"),
        (
            &plain,
            plain.clone().with_tls(),
            "does not speak TLS",
            "does not speak TLS",
        ),
    ];
    let runtime = runtime();
    for (server, client, server_says, client_says) in cases {
        let client = identity(&client, NodeKind::Client);
        let mut ends = Vec::new();
        let (address, accepted) = accept_one(server);
        ends.push(Conn::connect(&address, &client).unwrap_err());
        ends.push(accepted.join().unwrap().unwrap_err());
        let (address, accepted) = accept_one(server);
        let connected = runtime.block_on(nonblocking::connect(&address, &client));
        ends.push(connected.unwrap_err());
        ends.push(accepted.join().unwrap().unwrap_err());
        let (address, accepted) = accept_one_async(&runtime, server);
        ends.push(Conn::connect(&address, &client).unwrap_err());
        ends.push(runtime.block_on(accepted).unwrap().unwrap_err());
        for (error, says) in ends.iter().zip([client_says, server_says].iter().cycle()) {
            assert_eq!(error.code, Code::Refused, "{error}");
            assert!(error.context.contains(says), "{says:?}: {error}");
        }
    }
}

#[test]
fn closing_from_another_thread_ends_a_wait_on_both_sides() {
    for credentials in both() {
        let (mut client, mut server) = pair(&credentials);
        let closer = client.closer().unwrap();
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| client.receiver.receive().unwrap_err());
            let other = scope.spawn(|| server.receiver.receive().unwrap_err());
            std::thread::park_timeout(Duration::from_millis(50));
            closer.close();
            for ended in [waiting, other] {
                assert_eq!(ended.join().unwrap().kind(), io::ErrorKind::UnexpectedEof);
            }
        });
        assert!(begun.elapsed() < LATE);
        let sent = client
            .sender
            .request(Op::Read, 0, 0, 1, &ChunkRequest::default(), &[]);
        assert!(sent.is_err());
    }
}

/// Carries a connection, but what comes from the client piece by piece, with pauses.
fn slow_proxy(to: String, piece: usize, pause: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (mut near, _) = listener.accept().unwrap();
        let mut far = TcpStream::connect(to).unwrap();
        far.set_nodelay(true).unwrap();
        let (mut from, mut back) = (far.try_clone().unwrap(), near.try_clone().unwrap());
        std::thread::spawn(move || io::copy(&mut from, &mut back));
        let mut bytes = vec![0; piece];
        while let Ok(count) = near.read(&mut bytes)
            && count > 0
        {
            std::thread::park_timeout(pause);
            if far.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
    });
    address
}

#[test]
fn a_time_out_in_the_middle_of_a_frame_loses_nothing() {
    for credentials in both() {
        let (address, accepted) = accept_one(&credentials);
        // About ten pauses per frame, each longer than the time-out of the receiver.
        let address = slow_proxy(address, 1000, Duration::from_millis(10));
        let mut client =
            Conn::connect(&address, &identity(&credentials, NodeKind::Client)).unwrap();
        let mut server = accepted.join().unwrap().unwrap();
        let payload = pattern(10_000, 3);
        let asked = ChunkRequest::default();
        for at in 0..3 {
            client
                .sender
                .request(Op::Write, 0, 0, at, &asked, &[&payload])
                .unwrap();
        }
        server
            .receiver
            .set_timeout(Some(Duration::from_millis(2)))
            .unwrap();
        let mut waits = 0;
        for at in 0..3 {
            let frame = server
                .receiver
                .receive_while(&mut || {
                    waits += 1;
                    Ok(())
                })
                .unwrap();
            assert_eq!(frame.fixed.request, at);
            assert!(frame.payload[..] == payload);
        }
        assert!(waits > 0);
        let mut late = || Err(io::ErrorKind::TimedOut.into());
        let error = server.receiver.receive_while(&mut late).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}

#[test]
fn a_changed_bit_ends_an_encrypted_connection() {
    let credentials = Credentials::generate().with_tls();
    let (mut client, mut server) = pair(&credentials);
    let socket = client.closer().unwrap();
    // A record of 32 bytes that nobody sealed.
    let forged = [&[23, 3, 3, 0, 32][..], &[0xa5; 32]].concat();
    (&socket.0).write_all(&forged).unwrap();
    let error = server.receiver.receive().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    (&server.closer().unwrap().0)
        .write_all(b"LMFR, in the clear")
        .unwrap();
    let error = client.receiver.receive().unwrap_err();
    assert!(error.to_string().contains("not a TLS record"), "{error}");
}

#[test]
fn a_handshake_that_stops_halfway_does_not_hang() {
    let credentials = Credentials::generate().with_tls();
    for bytes in [&[][..], &[crate::tls::FIRST_BYTE, 3, 1, 1, 0], b"LMF"] {
        let (address, accepted) = accept_one(&credentials);
        let mut socket = TcpStream::connect(address).unwrap();
        socket.write_all(bytes).unwrap();
        let error = accepted.join().unwrap().unwrap_err();
        assert_eq!(error.code, Code::Timeout, "{error}");
    }
}

#[test]
fn keys_change_while_both_directions_are_busy() {
    let credentials = Credentials::generate().with_tls();
    let (mut client, mut server) = pair(&credentials);
    for conn in [&mut client, &mut server] {
        let Outgoing::Tls(_, sealer) = &mut conn.sender.stream else {
            panic!("plain");
        };
        sealer.change_keys_after(5);
    }
    std::thread::scope(|scope| {
        for (conn, mine, theirs) in [(client, 1, 2), (server, 2, 1)] {
            let (mut sender, mut receiver) = (conn.sender, conn.receiver);
            scope.spawn(move || send_all(&mut sender, mine));
            scope.spawn(move || receive_all(&mut receiver, theirs));
        }
    });
}

//! What does not belong on the wire: other versions, lengths, checksums, and servers that are none.

use crate::attempt::{address, lumeofs, secret};
use lumeofs_tests::Cluster;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// The version that this build speaks.
const VERSION: u16 = 3;

/// A frame's fixed header; the checksums in it are wrong.
fn header(version: u16, header_len: u32, payload_len: u32) -> Vec<u8> {
    let mut bytes = b"LMFR".to_vec();
    bytes.extend(version.to_le_bytes());
    // Operation 1, flags, zero; deadline, request.
    bytes.extend([1, 0, 0, 0, 0, 0]);
    bytes.extend([0; 12]);
    bytes.extend(header_len.to_le_bytes());
    bytes.extend(payload_len.to_le_bytes());
    bytes.extend([0x5a; 8]);
    bytes
}

/// Sends bytes and returns what comes back until the connection ends.
fn answer(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let late = Some(Duration::from_secs(10));
    stream.set_read_timeout(late).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .expect("the server ends the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn servers_refuse_malformed_frames_with_a_reason_and_go_on() {
    let cluster = Cluster::start();
    let file = cluster.mount().join("file");
    std::fs::write(&file, "before").unwrap();
    for node in ["master-1", "datanode-101"] {
        let to = address(&cluster, node);
        let cases = [
            (header(99, 0, 0), "wire version 99"),
            (
                header(VERSION, u32::MAX, 0),
                "frame header of 4294967295 bytes",
            ),
            (header(VERSION, 0, u32::MAX), "payload of 4294967295 bytes"),
            (header(VERSION, 0, 0), "bad checksum"),
        ];
        for (bytes, reason) in cases {
            let said = answer(&to, &bytes);
            assert!(
                said.contains(reason),
                "{node}: {reason:?} is missing: {said:?}"
            );
        }
        // Less than a frame ends with the time for the handshake.
        answer(&to, &header(VERSION, 100, 0));
        answer(&to, b"LMFR");
    }
    // A datanode speaks frames only; a master takes other beginnings for gRPC.
    let datanode = address(&cluster, "datanode-101");
    assert!(answer(&datanode, &[b'x'; 40]).contains("not a LumeoFS frame"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "before");
    std::fs::write(&file, "after").unwrap();
    for node in ["master-1", "datanode-101"] {
        assert!(cluster.pid(node).is_some(), "{node} runs");
        let log = cluster.dir().join(format!("logs/{node}.log"));
        let log = std::fs::read_to_string(log).unwrap();
        let told = log.contains("wire version 99") && log.contains("from=");
        assert!(told && !log.contains("panicked"), "{log}");
    }
}

/// Accepts connections and answers the first bytes of each with these; without any, never.
fn fake_server(answer: Option<Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            if let Some(answer) = &answer {
                let _ = stream.read(&mut [0; 40]);
                let _ = stream.write_all(answer);
            }
            open.push(stream);
        }
    });
    address
}

#[test]
fn clients_say_what_is_wrong_with_a_server_that_is_none_of_theirs() {
    let cluster = Cluster::start_with(&["--no-mount"]);
    let secret = secret(&cluster);
    let ask = |address: &str| lumeofs(&["fs", "--masters", address, "--secret", &secret, "ls"]);
    let says = |bytes: Vec<u8>, parts: &[&str]| {
        ask(&fake_server(Some(bytes))).says(8, parts);
    };
    says(header(99, 0, 0), &["wire version 99", "this build"]);
    says(header(VERSION, u32::MAX, 0), &["4294967295 bytes"]);
    says(header(VERSION, 0, 0), &["bad checksum"]);
    let http = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
    says(http.to_vec(), &["not a LumeoFS frame"]);
    let silent = fake_server(None);
    ask(&silent).says(7, &["no master answers", &silent]);
    let datanode = address(&cluster, "datanode-101");
    ask(&datanode).says(7, &[&datanode]);
}

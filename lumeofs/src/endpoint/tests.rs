use super::*;
use lumeofs_base::metrics::Kind;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

fn served(time: Duration) -> SocketAddr {
    let collect: Collect = Box::new(|page| page.value(Kind::Gauge, "lumeofs_test_things", "T", 5));
    start_with("127.0.0.1:0", collect, time).unwrap()
}

/// Sends bytes and reads until the server closes.
fn ask(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    // The server may close before it has read all of a request that is too long.
    let _ = stream.write_all(request);
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    String::from_utf8(reply).unwrap()
}

#[test]
fn metrics_hold_those_of_the_process_and_of_its_role() {
    let reply = ask(
        served(CONNECTION_TIME),
        b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n",
    );
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    assert!(reply.contains("text/plain; version=0.0.4"), "{reply}");
    for name in [
        "process_resident_memory_bytes",
        "process_threads",
        "process_open_fds",
        "process_cpu_seconds_total",
        "process_start_time_seconds",
        "lumeofs_build_info",
        "lumeofs_test_things",
    ] {
        let sample = reply.lines().find_map(|line| line.strip_prefix(name));
        let sample = sample.unwrap_or_else(|| panic!("{name} in {reply}"));
        let value: f64 = sample
            .split_whitespace()
            .next_back()
            .unwrap()
            .parse()
            .unwrap();
        assert!(value > 0.0, "{name}{sample}");
    }
}

#[test]
fn what_is_not_there_and_wrong_methods_are_told() {
    let address = served(CONNECTION_TIME);
    for (request, status) in [
        ("GET /healthz", "200"),
        ("GET /nothing", "404"),
        ("PUT /metrics", "405"),
        ("DELETE /log", "405"),
    ] {
        let reply = ask(
            address,
            format!("{request} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").as_bytes(),
        );
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{reply}");
    }
}

#[test]
fn malformed_and_oversize_requests_are_refused() {
    let address = served(CONNECTION_TIME);
    let reply = ask(address, b"\x01\x02\x03 nonsense\r\n\r\n");
    assert!(reply.starts_with("HTTP/1.1 400 "), "{reply}");
    let head = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(HEAD_MAX * 2));
    let reply = ask(address, head.as_bytes());
    assert!(!reply.contains(" 200 "), "{reply}");
    let body = "y".repeat(BODY_MAX + 1);
    let put = format!(
        "PUT /log HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let reply = ask(address, put.as_bytes());
    assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
    let reply = ask(address, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
}

#[test]
fn slow_clients_are_cut_off_and_others_are_served_then() {
    let address = served(Duration::from_secs(1));
    let slow: Vec<_> = (0..CONNECTIONS_MAX)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /heal").unwrap();
            stream
        })
        .collect();
    let reply = ask(address, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    drop(slow);
}

#[test]
fn a_filter_is_changed_by_peers_on_this_machine_only() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let status = |peer: &str| {
        let collect: Collect = Box::new(|_| {});
        let body = Full::new(Bytes::from_static(b"not=a=filter"));
        let request = Request::put("/log").body(body).unwrap();
        let reply = runtime.block_on(answer(request, peer.parse().unwrap(), &collect));
        reply.unwrap().status()
    };
    for near in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        assert_eq!(status(near), StatusCode::BAD_REQUEST, "{near}");
    }
    for far in ["10.0.0.1", "fe80::1", "::ffff:10.0.0.1"] {
        assert_eq!(status(far), StatusCode::FORBIDDEN, "{far}");
    }
}

#[test]
fn a_taken_port_is_an_error_that_names_it() {
    let address = served(CONNECTION_TIME).to_string();
    let error = start_early::<()>(Some(&address), |(), _| {})
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&address) && error.contains("--metrics"),
        "{error}"
    );
}

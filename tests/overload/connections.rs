//! The limits of a connection: their number, the time for a handshake, for silence, for an unanswered ping, and the size of what is sent.

use std::path::Path;
use std::time::{Duration, Instant};

use cell_directory::proto::v1;
use http::HeaderMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_types::StatusExt;

use crate::caller::Connection;
use crate::celld::Celld;
use crate::otlp::OtlpReceiver;
use crate::{SOON, resolve};

/// HTTP/2's preface and an empty SETTINGS frame.
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn dev(folder: &Path, flags: &[&str]) -> Celld {
    Celld::dev(folder, &[&["--log-filter=error", "--max-queue-delay=1m"], flags].concat())
}

/// Waits until the server ends the connection, and says what it sent before.
async fn end_of(mut socket: TcpStream) -> Vec<u8> {
    let mut sent = Vec::new();
    // A reset ends it as well.
    let _ = tokio::time::timeout(SOON, socket.read_to_end(&mut sent)).await.expect("it is cut");
    sent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_above_the_limit_are_refused_and_harm_nobody() {
    let (collector, receiver) = OtlpReceiver::start().await;
    let folder = tempfile::tempdir().unwrap();
    let telemetry = ["--otlp-endpoint", &collector, "--metrics-interval=100ms"];
    let flags = [&["--max-connections=2"][..], &telemetry].concat();
    let server = dev(folder.path(), &flags);
    let first = Connection::open(&server.address).await.unwrap();
    let second = Connection::open(&server.address).await.unwrap();
    for connection in [&first, &second] {
        connection.resolve("tenant").await.unwrap();
    }
    for _ in 0..3 {
        let third = TcpStream::connect(&server.address).await.unwrap();
        assert!(end_of(third).await.is_empty(), "closed without a word");
        for connection in [&first, &second] {
            connection.resolve("tenant").await.unwrap();
        }
    }
    let refused = |points: &[crate::otlp::MetricPoint]| {
        points.iter().any(|point| point.has(&[("cause", "limit")]) && point.count() as u64 == 3)
    };
    receiver.wait_for_points("cell.connections.ended", refused, SOON).await;
    // A place that is given back is taken by the next.
    drop(second);
    let deadline = Instant::now() + SOON;
    let next = loop {
        match Connection::open(&server.address).await {
            Ok(next) => break next,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    next.resolve("tenant").await.unwrap();
    first.resolve("tenant").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_finish_the_handshake_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let server = dev(folder.path(), &["--handshake-timeout=500ms"]);
    let good = Connection::open(&server.address).await.unwrap();
    for greeting in [&b""[..], &GREETING[..10], &GREETING[..24], &GREETING[..32]] {
        let mut socket = TcpStream::connect(&server.address).await.unwrap();
        socket.write_all(greeting).await.unwrap();
        end_of(socket).await;
    }
    // One byte at a time does not help.
    let mut socket = TcpStream::connect(&server.address).await.unwrap();
    let began = Instant::now();
    let mut cut = false;
    for byte in GREETING {
        cut = cut || socket.write_all(&[*byte]).await.is_err();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    end_of(socket).await;
    assert!(cut || began.elapsed() > Duration::from_millis(500));
    // Who is greeted stays.
    good.resolve("tenant").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_finish_the_tls_handshake_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let flags = ["--handshake-timeout=500ms", "--tls-cert", cert, "--tls-key", key];
    let server = dev(&folder.path().join("data"), &flags);
    // Nothing, and the head of a record that never comes.
    for hello in [&b""[..], b"\x16\x03\x01\x02\0"] {
        let mut socket = TcpStream::connect(&server.address).await.unwrap();
        socket.write_all(hello).await.unwrap();
        end_of(socket).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_idle_is_told_to_go_and_then_cut() {
    let folder = tempfile::tempdir().unwrap();
    let server = dev(folder.path(), &["--idle-timeout=1s", "--connection-grace=200ms"]);
    let began = Instant::now();
    // One that calls now and then stays for much longer than the timeout.
    let busy = Connection::open(&server.address).await.unwrap();
    let calling = async {
        while began.elapsed() < Duration::from_secs(4) {
            busy.resolve("tenant").await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let leaving = async {
        let idle = Connection::open(&server.address).await.unwrap();
        let ended = tokio::time::timeout(SOON, idle.ended()).await.expect("it is told to go");
        ended.expect("in order");
        assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    };
    // Greets, and then neither calls nor listens: it does not answer the ping after the GOAWAY.
    let deaf = async {
        let mut socket = TcpStream::connect(&server.address).await.unwrap();
        socket.write_all(GREETING).await.unwrap();
        let sent = end_of(socket).await;
        let goaway = sent.windows(5).any(|frame| frame == [0, 0, 8, 7, 0]);
        assert!(goaway, "no GOAWAY: {sent:?}");
    };
    tokio::join!(calling, leaving, deaf);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_answer_a_ping_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let server = dev(folder.path(), &["--keepalive-interval=200ms", "--keepalive-timeout=300ms"]);
    let good = Connection::open(&server.address).await.unwrap();
    let mut socket = TcpStream::connect(&server.address).await.unwrap();
    socket.write_all(GREETING).await.unwrap();
    end_of(socket).await;
    // Who answers stays.
    good.resolve("tenant").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_is_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let flags =
        ["--max-header-bytes=4096", "--max-message-bytes=2048", "--max-concurrent-streams=7"];
    let server = dev(folder.path(), &flags);
    let connection = Connection::open(&server.address).await.unwrap();
    let with = |size: usize| {
        let mut headers = HeaderMap::new();
        headers.insert("x-large", "x".repeat(size).parse().unwrap());
        headers
    };
    let call = async |size, key: &str| {
        let request: v1::ResolveRequest = resolve(key);
        connection.call("CellDirectory/Resolve", &request, with(size)).await.unwrap()
    };
    let reason = |status: &tonic::Status| status.get_details_error_info().map(|info| info.reason);
    assert_eq!(call(3000, "tenant").await.code(), Code::Ok);
    let status = call(4096, "tenant").await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(reason(&status).as_deref(), Some("HEADERS_TOO_LARGE"));
    // Beyond twice the limit HTTP/2 refuses it before anybody sees it.
    assert_eq!(call(9000, "tenant").await.message(), "http 431");
    let status = call(0, &"x".repeat(3000)).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(reason(&status).as_deref(), Some("MESSAGE_TOO_LARGE"));
    // The connection is as good as before, and tells its limit.
    assert_eq!(call(0, "tenant").await.code(), Code::Ok);
    assert_eq!(connection.client.current_max_send_streams(), 7);
}

//! What a well-behaved client never sends: bytes on a bare HTTP/2 connection. And deadlines, which clients tend to keep by themselves.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cell_directory::proto::v1;
use http::HeaderMap;
use prost::Message;
use tonic::{Code, Status};

use crate::checks::{refusal, refused};
use crate::valve::Valve;
use crate::world::{Engine, Server, World, def, look_up, pin, resolve};

on_both_engines!(
    malformed_messages_are_refused,
    malformed_frames_are_refused,
    oversized_messages_are_refused,
    unknown_methods_are_refused,
    an_expired_deadline_is_exceeded_and_changes_nothing,
    a_slow_table_does_not_outlast_the_deadline,
    malformed_deadlines_are_refused,
);

/// Every method, and its request's size of a `partition_key` or whatever is field 1.
const METHODS: [&str; 13] = [
    "CellDirectory/Resolve",
    "CellDirectory/BatchResolve",
    "CellDirectory/GetPlacement",
    "CellDirectory/ListPlacements",
    "CellDirectory/PinPlacement",
    "CellDirectory/DeletePlacement",
    "CellDirectory/GetPlacementHistory",
    "CellDirectory/ImportPlacements",
    "CellAdmin/CreateCell",
    "CellAdmin/GetCell",
    "CellAdmin/ListCells",
    "CellAdmin/UpdateCell",
    "CellAdmin/DeleteCell",
];

fn frame(message: &[u8]) -> Vec<u8> {
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend(message);
    frame
}

/// Posts a body to a path and reads the status that comes back, from trailers or from headers.
async fn post(server: &Server, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Status {
    let address: std::net::SocketAddr = server.process.address.parse().unwrap();
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(socket).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut request = http::Request::post(format!("http://{address}/{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut client = client.ready().await.unwrap();
    let (answer, mut stream) = client.send_request(request.body(()).unwrap(), false).unwrap();
    // The server may have answered before it has read all of it.
    let _ = stream.send_data(Bytes::from(body), true);
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    let (parts, mut body) = answer.into_parts();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
    }
    let mut all: HeaderMap = body.trailers().await.ok().flatten().unwrap_or_default();
    all.extend(parts.headers);
    connection.abort();
    Status::from_header_map(&all).unwrap_or_else(|| panic!("no status: {all:?}"))
}

async fn post_cells(
    server: &Server,
    method: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Status {
    post(server, &format!("cells.v1.{method}"), headers, body).await
}

async fn malformed_messages_are_refused(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let before = world.dump().await;
    for method in METHODS {
        for message in [
            // A field that ends early; a varint without end; a wire type that does not exist.
            &b"\x0a\xff"[..],
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x0f",
            // Field 1 of every request, be it a string or a message: text that is not UTF-8.
            b"\x0a\x02\xc3\x28",
        ] {
            if method == "CellAdmin/ListCells" && message[1..].starts_with(b"\x02") {
                continue; // A string field of that number would be of the wrong type already.
            }
            let status = post_cells(&server, method, &[], frame(message)).await;
            refusal(&status, Code::InvalidArgument, "MALFORMED_MESSAGE");
        }
    }
    assert_eq!(world.dump().await, before);
    server.resolve("tenant").await;
}

async fn malformed_frames_are_refused(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let before = world.dump().await;
    let whole = frame(&resolve("tenant").encode_to_vec());
    let cut = whole[..whole.len() - 1].to_vec();
    for body in [vec![], vec![0, 0], cut, b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
        let status = post_cells(&server, "CellDirectory/Resolve", &[], body.clone()).await;
        let info = status.code();
        assert!(
            matches!(info, Code::InvalidArgument | Code::ResourceExhausted),
            "{body:?}: {status:?}"
        );
        let reason = match info {
            Code::InvalidArgument => "MALFORMED_MESSAGE",
            _ => "MESSAGE_TOO_LARGE",
        };
        refusal(&status, info, reason);
    }
    let mut compressed = whole.clone();
    compressed[0] = 1;
    let headers = [("grpc-encoding", "gzip")];
    let status = post_cells(&server, "CellDirectory/Resolve", &headers, compressed.clone()).await;
    refusal(&status, Code::Unimplemented, "ENCODING_NOT_SUPPORTED");
    let status = post_cells(&server, "CellDirectory/Resolve", &[], compressed).await;
    refusal(&status, Code::InvalidArgument, "MALFORMED_MESSAGE");
    assert_eq!(world.dump().await, before);
    let status = post_cells(&server, "CellDirectory/Resolve", &[], whole).await;
    assert_eq!(status.code(), Code::Ok, "{status:?}");
}

async fn oversized_messages_are_refused(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let before = world.dump().await;
    // The servers here take 256 KiB.
    let long = "x".repeat(262_144);
    let answer = server.try_resolve(resolve(&long)).await;
    refused(answer, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    let answer = server.create_cell(v1::Cell { endpoint: long.clone(), ..def() }).await;
    refused(answer, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    let row = v1::PlacementImport { partition_key: long, cell_id: "cell-a".into(), ..def() };
    let portion = v1::ImportPlacementsRequest { placements: vec![row], ..def() };
    let answer = server.directory.clone().import_placements(tokio_stream::iter([portion])).await;
    refused(answer, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    // Announced, but not even sent.
    let announced = [&[0][..], &u32::MAX.to_be_bytes()].concat();
    let status = post_cells(&server, "CellDirectory/Resolve", &[], announced).await;
    refusal(&status, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    assert_eq!(world.dump().await, before);
}

async fn unknown_methods_are_refused(engine: Engine) {
    let (_world, server) = World::with_cells(engine, &["cell-a"]).await;
    for path in [
        "cells.v1.CellDirectory/Forget",
        "cells.v1.CellDirectory/resolve",
        "cells.v2.CellDirectory/Resolve",
        "CellDirectory/Resolve",
        "",
        "..",
    ] {
        let status = post(&server, path, &[], frame(b"")).await;
        refusal(&status, Code::Unimplemented, "METHOD_NOT_FOUND");
    }
}

async fn an_expired_deadline_is_exceeded_and_changes_nothing(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    server.resolve("known").await;
    let weight = v1::UpdateCellRequest {
        cell: Some(v1::Cell { cell_id: "cell-a".into(), weight: Some(1), ..def() }),
        update_mask: crate::world::mask(&["weight"]),
        ..def()
    };
    let cell = Some(crate::celld::cell("cell-b"));
    let import = v1::ImportPlacementsRequest {
        placements: vec![v1::PlacementImport {
            partition_key: "imported".into(),
            cell_id: "cell-a".into(),
            ..def()
        }],
        ..def()
    };
    let before = world.dump().await;
    for (method, message) in [
        ("CellDirectory/Resolve", resolve("tenant").encode_to_vec()),
        ("CellDirectory/Resolve", look_up("tenant").encode_to_vec()),
        ("CellDirectory/PinPlacement", pin("tenant", "cell-a").encode_to_vec()),
        (
            "CellDirectory/DeletePlacement",
            v1::DeletePlacementRequest { partition_key: "known".into(), ..def() }.encode_to_vec(),
        ),
        ("CellDirectory/ImportPlacements", import.encode_to_vec()),
        ("CellAdmin/UpdateCell", weight.encode_to_vec()),
        ("CellAdmin/CreateCell", v1::CreateCellRequest { cell, ..def() }.encode_to_vec()),
    ] {
        for timeout in ["0n", "1n", "0S"] {
            let headers = [("grpc-timeout", timeout)];
            let status = post_cells(&server, method, &headers, frame(&message)).await;
            refusal(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
        }
    }
    // The changes of a server are made one after the other: what was under way is done when this is.
    server.pin(pin("last", "cell-a")).await.unwrap();
    server.delete("last").await.unwrap();
    let untouched: Vec<_> =
        world.dump().await.into_iter().filter(|item| before.contains(item)).collect();
    // All but the head and the count of the cell, which the last two moved.
    assert_eq!(untouched.len(), before.len() - 2);
    assert_eq!(world.journal().await.len(), 4, "the cell, the known tenant, and the last two");
}

async fn a_slow_table_does_not_outlast_the_deadline(engine: Engine) {
    let world = World::new(engine).await;
    let valve = Valve::before(&world.endpoint());
    let server = world.serve_through(&valve.endpoint(), &["--default-cell=cell-a"]).await;
    server.process.create_cells(&["cell-a", "cell-b"]).await;
    server.resolve("known").await;
    valve.shut();
    let headers = [("grpc-timeout", "300m")];
    let began = Instant::now();
    let refuse = v1::FallbackPolicy::Refuse.into();
    let request = v1::ResolveRequest { fallback: refuse, ..resolve("tenant") };
    let get = v1::GetPlacementRequest { partition_key: "tenant".into() };
    let portion = v1::ImportPlacementsRequest {
        placements: vec![v1::PlacementImport {
            partition_key: "imported".into(),
            cell_id: "cell-a".into(),
            ..def()
        }],
        ..def()
    };
    for (method, message) in [
        ("CellDirectory/Resolve", request.encode_to_vec()),
        ("CellDirectory/GetPlacement", get.encode_to_vec()),
        ("CellDirectory/PinPlacement", pin("tenant", "cell-b").encode_to_vec()),
        ("CellDirectory/ImportPlacements", portion.encode_to_vec()),
        ("CellAdmin/ListCells", vec![]),
    ] {
        let status = post_cells(&server, method, &headers, frame(&message)).await;
        refusal(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    }
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());

    // Who welcomes a guess gets one before the deadline; what is held needs neither.
    let mut request = tonic::Request::new(look_up("tenant"));
    request.set_timeout(Duration::from_secs(1));
    let guess = server.directory.clone().resolve(request).await.unwrap().into_inner();
    let (placement, decision) = (guess.placement.unwrap(), guess.decision.unwrap());
    assert_eq!((placement.cell_id.as_str(), placement.epoch), ("cell-a", 0));
    assert_eq!((decision.source(), decision.authoritative), (v1::DecisionSource::Fallback, false));
    assert_eq!(decision.fallback_reason(), v1::FallbackReason::Timeout);
    assert_eq!(decision.age, None);
    let known = server.resolve("known").await;
    assert_eq!(known.decision.unwrap().source(), v1::DecisionSource::Memory);

    valve.open();
    let answer = server.resolve("tenant").await;
    assert_eq!(answer.placement.unwrap().epoch, 1, "the guess was not kept");
}

async fn malformed_deadlines_are_refused(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let before = world.dump().await;
    let body = frame(&resolve("tenant").encode_to_vec());
    for ill in ["", "S", "1", "1s", "-1S", "1.5S", "123456789S", "1 S"] {
        let headers = [("grpc-timeout", ill)];
        let status = post_cells(&server, "CellDirectory/Resolve", &headers, body.clone()).await;
        let details = refusal(&status, Code::InvalidArgument, "MALFORMED_MESSAGE");
        let field = &details.bad_request().unwrap().field_violations[0].field;
        assert_eq!(field, "grpc-timeout", "{ill:?}");
    }
    assert_eq!(world.dump().await, before);
    for well in ["99999999H", "1M"] {
        let headers = [("grpc-timeout", well)];
        let status = post_cells(&server, "CellDirectory/Resolve", &headers, body.clone()).await;
        assert_eq!(status.code(), Code::Ok, "{well}: {status:?}");
    }
}

//! Health, reflection, and an orderly end.

use std::process::ExitStatus;

use cell_directory::proto::v1;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::celld::{Celld, command};
use crate::checks::refused;
use crate::valve::Valve;
use crate::world::{Engine, Server, World, def, look_up, resolve, until};

on_both_engines!(
    health_is_told_for_each_service,
    a_draining_server_finishes_what_is_under_way,
    reflection_lists_the_services,
);

const SERVICES: [&str; 3] = ["", "cells.v1.CellDirectory", "cells.v1.CellAdmin"];

async fn health(
    channel: &tonic::transport::Channel,
    service: &str,
) -> Result<ServingStatus, tonic::Status> {
    let request = HealthCheckRequest { service: service.into() };
    let answer = HealthClient::new(channel.clone()).check(request).await?;
    Ok(answer.into_inner().status())
}

fn terminate(id: u32) {
    let kill = std::process::Command::new("kill").args(["-TERM", &id.to_string()]).status();
    assert!(kill.unwrap().success());
}

/// Waits for a process that was told to end.
async fn ended(server: Server) -> ExitStatus {
    let Server { process, .. } = server;
    tokio::task::spawn_blocking(|| process.terminate()).await.unwrap()
}

async fn health_is_told_for_each_service(engine: Engine) {
    let (_world, server) = World::with_cells(engine, &["cell-a"]).await;
    for service in SERVICES {
        assert_eq!(health(&server.channel, service).await.unwrap(), ServingStatus::Serving);
    }
    let unknown = health(&server.channel, "cells.v1.Nothing").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    let mut watches = Vec::new();
    for service in SERVICES {
        let request = HealthCheckRequest { service: service.into() };
        let watch = HealthClient::new(server.channel.clone()).watch(request).await.unwrap();
        let mut watch = watch.into_inner();
        let first = watch.message().await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::Serving, "{service}");
        watches.push(watch);
    }
    terminate(server.process.id());
    for mut watch in watches {
        let next = watch.message().await.unwrap().unwrap();
        assert_eq!(next.status(), ServingStatus::NotServing);
        // Watching keeps nobody from ending.
        while let Ok(Some(further)) = watch.message().await {
            assert_ne!(further.status(), ServingStatus::Serving);
        }
    }
    assert!(ended(server).await.success());
}

async fn a_draining_server_finishes_what_is_under_way(engine: Engine) {
    let world = World::new(engine).await;
    let valve = Valve::before(&world.endpoint());
    let server = world.serve_through(&valve.endpoint(), &[]).await;
    server.process.create_cells(&["cell-a"]).await;
    server.resolve("known").await;
    valve.shut();
    let mut directory = server.directory.clone();
    let waiting = tokio::spawn(async move { directory.resolve(resolve("tenant")).await });
    // The same connection carries both, in order, and this one needs no table: when it is answered, the other has arrived.
    tokio::task::yield_now().await;
    while server.resolve("known").await.decision.unwrap().source() != v1::DecisionSource::Memory {}
    assert!(!waiting.is_finished());

    let request = HealthCheckRequest { service: String::new() };
    let watch = HealthClient::new(server.channel.clone()).watch(request).await.unwrap();
    let mut watch = watch.into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    terminate(server.process.id());
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    // Now draining: flagged, and still answering those who have not turned away yet.
    assert_eq!(health(&server.channel, "").await.unwrap(), ServingStatus::NotServing);
    server.resolve("known").await;
    // The watch ends when new calls are taken no more.
    while let Ok(Some(_)) = watch.message().await {}
    let address: std::net::SocketAddr = server.process.address.parse().unwrap();
    let refused =
        until(async || tokio::net::TcpStream::connect(address).await.is_err(), |refused| *refused);
    refused.await;
    assert!(!waiting.is_finished());
    valve.open();
    let answer = waiting.await.unwrap().unwrap().into_inner();
    assert_eq!(answer.decision.unwrap().source(), v1::DecisionSource::Assigned);
    assert!(ended(server).await.success());
    assert!(world.item("tenant").await.unwrap().contains_key("CellId"));
}

async fn reflection_lists_the_services(engine: Engine) {
    let (_world, server) = World::with_cells(engine, &[]).await;
    macro_rules! check {
        ($version:ident) => {{
            use tonic_reflection::pb::$version::ServerReflectionRequest;
            use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
            let ask = |message| ServerReflectionRequest {
                host: String::new(),
                message_request: Some(message),
            };
            let mut client = ServerReflectionClient::new(server.channel.clone());
            let requests = [
                ask(MessageRequest::ListServices(String::new())),
                ask(MessageRequest::FileContainingSymbol("cells.v1.CellDirectory.Resolve".into())),
                ask(MessageRequest::FileContainingSymbol("cells.v1.CellAdmin".into())),
            ];
            let answers =
                client.server_reflection_info(tokio_stream::iter(requests)).await.unwrap();
            let mut answers = answers.into_inner();
            let Some(MessageResponse::ListServicesResponse(list)) =
                answers.message().await.unwrap().unwrap().message_response
            else {
                panic!("no list of services");
            };
            let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
            for due in ["cells.v1.CellDirectory", "cells.v1.CellAdmin", "grpc.health.v1.Health"] {
                assert!(names.iter().any(|name| name == due), "{names:?}");
            }
            for file in ["cells/v1/directory.proto", "cells/v1/admin.proto"] {
                let answer = answers.message().await.unwrap().unwrap().message_response;
                let Some(MessageResponse::FileDescriptorResponse(files)) = answer else {
                    panic!("no file: {answer:?}");
                };
                let found: prost_types::FileDescriptorProto =
                    prost::Message::decode(&files.file_descriptor_proto[0][..]).unwrap();
                assert_eq!(found.name(), file);
            }
        }};
    }
    check!(v1);
    check!(v1alpha);
}

/// A server whose table cannot be reached says so, and does not end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_table_a_server_is_not_ready_and_says_so() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut serve = command(&["serve", "--listen=127.0.0.1:0", "--log-filter=off"]);
    serve.arg(format!("--dynamodb-endpoint=http://{nobody}"));
    let process = Celld::start(serve);
    let channel = process.channel().await;
    for service in SERVICES {
        assert_eq!(health(&channel, service).await.unwrap(), ServingStatus::NotServing);
    }
    let mut directory = process.directory().await;
    let mut admin = process.admin().await;
    let answers = [
        directory.resolve(look_up("tenant")).await.map(|_| ()),
        directory.resolve(resolve("tenant")).await.map(|_| ()),
        admin.list_cells(v1::ListCellsRequest::default()).await.map(|_| ()),
        admin
            .delete_cell(v1::DeleteCellRequest { cell_id: "cell-a".into(), ..def() })
            .await
            .map(|_| ()),
    ];
    for answer in answers {
        let reason = answer.as_ref().unwrap_err().get_details_error_info().unwrap().reason;
        assert!(["STORE_UNAVAILABLE", "NOT_READY"].contains(&reason.as_str()), "{reason}");
        let details = refused(answer, Code::Unavailable, &reason);
        assert!(details.retry_info().is_some(), "waiting helps");
    }
    let ended = tokio::task::spawn_blocking(|| process.terminate()).await.unwrap();
    assert!(ended.success());
}

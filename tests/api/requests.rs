//! `request_id`: a repeat gets the first answer, whatever has become of the state since.

use cell_directory::proto::v1;
use futures::future::join_all;
use tonic::{Code, Status};

use crate::celld::cell;
use crate::checks::{invalid, refused};
use crate::world::{Engine, Server, World, def, mask, pin};

on_both_engines!(
    a_repeat_gets_the_first_answer,
    a_repeat_of_what_changed_nothing_gets_the_first_answer,
    an_id_is_good_for_one_request,
    repeats_may_come_at_the_same_time,
    a_refusal_is_not_remembered,
    ids_are_checked,
);

/// One of each mutation. What the answers say is compared as text.
#[derive(Debug, Clone)]
enum Mutation {
    Pin(v1::PinPlacementRequest),
    Delete(v1::DeletePlacementRequest),
    CreateCell(v1::CreateCellRequest),
    UpdateCell(v1::UpdateCellRequest),
    DeleteCell(v1::DeleteCellRequest),
}

impl Mutation {
    async fn send(&self, server: &Server) -> Result<String, Status> {
        let (mut directory, mut admin) = (server.directory.clone(), server.admin.clone());
        match self.clone() {
            Mutation::Pin(request) => text(directory.pin_placement(request).await),
            Mutation::Delete(request) => text(directory.delete_placement(request).await),
            Mutation::CreateCell(request) => text(admin.create_cell(request).await),
            Mutation::UpdateCell(request) => text(admin.update_cell(request).await),
            Mutation::DeleteCell(request) => text(admin.delete_cell(request).await),
        }
    }

    fn with_id(mut self, id: &str) -> Self {
        let own = match &mut self {
            Mutation::Pin(request) => &mut request.request_id,
            Mutation::Delete(request) => &mut request.request_id,
            Mutation::CreateCell(request) => &mut request.request_id,
            Mutation::UpdateCell(request) => &mut request.request_id,
            Mutation::DeleteCell(request) => &mut request.request_id,
        };
        *own = id.to_owned();
        self
    }
}

fn text<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, Status>) -> Result<String, Status> {
    answer.map(|answer| format!("{:?}", answer.into_inner()))
}

fn pinning(key: &str, cell: &str) -> Mutation {
    Mutation::Pin(pin(key, cell))
}

fn deleting(key: &str, epoch: u64) -> Mutation {
    Mutation::Delete(v1::DeletePlacementRequest { partition_key: key.into(), epoch, ..def() })
}

fn creating(id: &str) -> Mutation {
    Mutation::CreateCell(v1::CreateCellRequest { cell: Some(cell(id)), ..def() })
}

fn weighing(id: &str, weight: u32, etag: &str) -> Mutation {
    let cell = v1::Cell { weight: Some(weight), etag: etag.into(), ..cell(id) };
    Mutation::UpdateCell(v1::UpdateCellRequest {
        cell: Some(cell),
        update_mask: mask(&["weight"]),
        ..def()
    })
}

fn removing(id: &str) -> Mutation {
    Mutation::DeleteCell(v1::DeleteCellRequest { cell_id: id.into(), ..def() })
}

/// The mutations of a life, each with its own id: done in this order, each succeeds, and changes what those before it left.
async fn life(server: &Server) -> Vec<Mutation> {
    let etag = server.cell("cell-a").await.unwrap().etag;
    let life = [
        creating("cell-x"),
        pinning("tenant", "cell-x"),
        deleting("tenant", 1),
        weighing("cell-a", 5, &etag),
        removing("cell-x"),
        creating("cell-x"),
        pinning("tenant", "cell-a"),
        deleting("tenant", 0),
    ];
    life.into_iter().enumerate().map(|(n, one)| one.with_id(&format!("request-{n}"))).collect()
}

async fn a_repeat_gets_the_first_answer(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let life = life(&server).await;
    let mut answers = Vec::new();
    for mutation in &life {
        answers.push(mutation.send(&server).await.unwrap());
    }
    let before = world.dump().await;
    let other = world.serve(&[]).await;
    for server in [&server, &other] {
        for (mutation, answer) in life.iter().zip(&answers) {
            assert_eq!(mutation.send(server).await.as_ref().unwrap(), answer, "{mutation:?}");
        }
    }
    assert_eq!(world.dump().await, before);
    // The premise: without the id they mean something else now.
    let answer = life[2].clone().with_id("another").send(&server).await;
    refused(answer, Code::NotFound, "PLACEMENT_NOT_FOUND");
}

/// A pin that finds the tenant in place has its answer, too; its repeat must not place a tenant that has left since.
async fn a_repeat_of_what_changed_nothing_gets_the_first_answer(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    server.pin(pin("tenant", "cell-a")).await.unwrap();
    let request = pinning("tenant", "cell-a").with_id("late");
    let first = request.send(&server).await.unwrap();
    server.delete("tenant").await.unwrap();
    let before = world.dump().await;
    assert_eq!(request.send(&server).await.unwrap(), first);
    let other = pinning("somebody", "cell-a").with_id("late").send(&server).await;
    invalid(other, "REQUEST_ID_REUSED", "request_id");
    assert_eq!(world.dump().await, before);
    world.journal().await;
}

async fn an_id_is_good_for_one_request(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    pinning("tenant", "cell-a").with_id("used").send(&server).await.unwrap();
    creating("cell-c").with_id("used-too").send(&server).await.unwrap();
    let before = world.dump().await;
    for (id, other) in [
        ("used", pinning("tenant", "cell-b")),
        ("used", pinning("another", "cell-a")),
        ("used", deleting("tenant", 0)),
        ("used", creating("cell-d")),
        ("used-too", weighing("cell-c", 1, "")),
        ("used-too", removing("cell-c")),
        (
            "used-too",
            Mutation::CreateCell(v1::CreateCellRequest {
                cell: Some(v1::Cell { weight: Some(100), ..cell("cell-c") }),
                ..def()
            }),
        ),
    ] {
        let answer = other.with_id(id).send(&server).await;
        invalid(answer, "REQUEST_ID_REUSED", "request_id");
    }
    assert_eq!(world.dump().await, before);
}

async fn repeats_may_come_at_the_same_time(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let other = world.serve(&[]).await;
    for (done, mutation) in life(&server).await.into_iter().enumerate() {
        let callers = (0..16).map(|n| mutation.send([&server, &other][n % 2]));
        let answers = join_all(callers).await;
        let first = answers[0].as_ref().unwrap();
        for answer in &answers {
            assert_eq!(answer.as_ref().unwrap(), first, "{mutation:?}");
        }
        // One entry for the first cell, and one for each mutation.
        assert_eq!(world.journal().await.into_iter().flatten().count(), done + 2);
    }
}

async fn a_refusal_is_not_remembered(engine: Engine) {
    let (_world, server) = World::with_cells(engine, &["cell-a"]).await;
    let request = deleting("tenant", 0).with_id("again");
    refused(request.send(&server).await, Code::NotFound, "PLACEMENT_NOT_FOUND");
    server.resolve("tenant").await;
    request.send(&server).await.unwrap();
}

async fn ids_are_checked(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let before = world.dump().await;
    for ill in ["a b", "é", "a/b", "\u{0}", &"x".repeat(65)] {
        for mutation in [
            pinning("tenant", "cell-a"),
            deleting("tenant", 0),
            creating("x"),
            weighing("cell-a", 1, ""),
            removing("cell-a"),
        ] {
            let answer = mutation.with_id(ill).send(&server).await;
            invalid(answer, "INVALID_REQUEST_ID", "request_id");
        }
    }
    assert_eq!(world.dump().await, before);
}

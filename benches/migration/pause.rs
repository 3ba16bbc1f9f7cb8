//! How long writers wait while a tenant moves, for a small tenant and a large one in turns.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::config::{BehaviorVersion, Config, Credentials, Region};
use cells_client::data::{Data, DataError};
use cells_client::{Directory, Mode};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::dynamodb_local::DynamoDbLocal;
use crate::scene::Scene;
use crate::world::Engine;
use crate::{Options, item, moved, other, percentile};

const WRITERS: usize = 4;

/// Between two writes of a writer.
const PACE: Duration = Duration::from_millis(25);

/// Items of the small tenant.
const FEW: usize = 100;

/// Pauses of one tenant, in milliseconds.
#[derive(Default)]
struct Pauses {
    /// As the service tells.
    told: Vec<f64>,
    /// The longest write of each writer in each move, less the middle one.
    waited: Vec<f64>,
}

pub async fn run(options: &Options) {
    let engine = Engine::DynamoDbLocal(DynamoDbLocal::shared());
    let mut scene = Scene::new(engine).await;
    let tenants = [("small", FEW), ("large", options.items)];
    for (tenant, items) in tenants {
        scene.pin(tenant, "cell-a").await;
        let scene = &scene;
        let writes = (0..items)
            .map(|number| scene.write("CustomerData", "cell-a", item(tenant, "cell-a", number)));
        stream::iter(writes).buffer_unordered(8).collect::<Vec<_>>().await;
    }
    let data = connect(&scene).await;
    let mut pauses = [Pauses::default(), Pauses::default()];
    let mut live = "cell-a";
    for _ in 0..options.rounds {
        let to = other(live);
        for ((tenant, items), pauses) in tenants.iter().zip(&mut pauses) {
            one(&mut scene, &data, tenant, *items, to, pauses).await;
        }
        live = to;
    }
    let [small, large] = &mut pauses;
    for (what, small, large) in [
        ("as the service tells", &mut small.told, &mut large.told),
        ("as writers wait", &mut small.waited, &mut large.waited),
    ] {
        println!("pause {what}, of {FEW} items and of {}:", options.items);
        for of in [50, 99] {
            let (small, large) = (percentile(small, of), percentile(large, of));
            println!("  p{of} {small:.0} ms and {large:.0} ms, ratio {:.2}", large / small);
        }
    }
}

/// Moves a tenant while writers write to it.
async fn one(
    scene: &mut Scene,
    data: &Data,
    tenant: &'static str,
    items: usize,
    to: &str,
    pauses: &mut Pauses,
) {
    let (stop, latencies) = (CancellationToken::new(), Arc::new(Mutex::new(Vec::new())));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let latencies = Arc::clone(&latencies);
            tokio::spawn(write(data.clone(), tenant, items, writer, stop.clone(), latencies))
        })
        .collect();
    let (migration, _) = moved(scene, tenant, to).await;
    stop.cancel();
    for writer in writers {
        writer.await.unwrap();
    }
    let told = migration.progress.unwrap().last_pause.expect("a fence");
    let told = Duration::try_from(told).unwrap();
    pauses.told.push(told.as_secs_f64() * 1000.0);
    for mut latencies in latencies.lock().drain(..) {
        let usual = percentile(&mut latencies, 50);
        pauses.waited.push(percentile(&mut latencies, 100) - usual);
    }
}

async fn write(
    data: Data,
    tenant: &'static str,
    items: usize,
    writer: usize,
    stop: CancellationToken,
    all: Arc<Mutex<Vec<Vec<f64>>>>,
) {
    let (mut latencies, mut number) = (Vec::new(), writer);
    while !stop.is_cancelled() {
        number = (number + WRITERS) % items;
        let mut item = item(tenant, "", number);
        item.remove("CellId");
        let began = Instant::now();
        match data.put(tenant, "CustomerData", item).await {
            Ok(_) | Err(DataError::Unknown) => {}
            Err(error) => panic!("{error:?}"),
        }
        latencies.push(began.elapsed().as_secs_f64() * 1000.0);
        tokio::time::sleep(PACE).await;
    }
    all.lock().push(latencies);
}

async fn connect(scene: &Scene) -> Data {
    let endpoint = format!("http://{}", scene.world.server.address);
    let directory = Directory::builder([endpoint]).mode(Mode::Whole).connect().await.unwrap();
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .region(Region::new("eu-west-1"))
        .credentials_provider(Credentials::new("local", "local", None, None, "benchmarks"))
        .endpoint_url(scene.world.engine.endpoint())
        .build();
    directory.data(config).unwrap()
}

//! How long writers wait while a tenant moves, for a small tenant and a large one in turns.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::config::{BehaviorVersion, Config, Credentials, Region};
use cells_client::data::{Data, DataError};
use cells_client::{Directory, Mode};
use futures::{StreamExt, stream};
use tokio_util::sync::CancellationToken;

use crate::dynamodb_local::DynamoDbLocal;
use crate::embedded::Embedded;
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
    /// What the writes took that came to the fence and were made in the new cell, or found the tenant gone there.
    waited: Vec<f64>,
}

pub async fn run(options: &Options) {
    let engine = match options.embedded {
        true => Engine::Embedded(Arc::new(Embedded::temporary())),
        false => Engine::DynamoDbLocal(DynamoDbLocal::shared()),
    };
    // An engine that is slow with indexes and streams would be measured with them.
    let mut scene = Scene::plain(engine).await;
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
    for round in 1..=options.rounds {
        let to = other(live);
        for ((tenant, items), pauses) in tenants.iter().zip(&mut pauses) {
            one(&mut scene, &data, tenant, *items, to, pauses).await;
        }
        live = to;
        let last = pauses.each_ref().map(|pauses| pauses.told.last().copied().unwrap_or(f64::NAN));
        println!("{round}: {:.0} ms and {:.0} ms", last[0], last[1]);
    }
    let [small, large] = &mut pauses;
    for (what, small, large) in [
        ("as the service tells", &mut small.told, &mut large.told),
        ("as writers wait", &mut small.waited, &mut large.waited),
    ] {
        println!(
            "pause {what} ({} and {} times), of {FEW} items and of {}:",
            small.len(),
            large.len(),
            options.items
        );
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
    let stop = CancellationToken::new();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(write(data.clone(), tenant, items, writer, stop.clone())))
        .collect();
    let (migration, _) = moved(scene, tenant, to).await;
    stop.cancel();
    for writer in writers {
        pauses.waited.extend(writer.await.unwrap());
    }
    let told = migration.progress.unwrap().last_pause.expect("a fence");
    let told = Duration::try_from(told).unwrap();
    pauses.told.push(told.as_secs_f64() * 1000.0);
}

/// Writes until it is stopped; what those writes took, in milliseconds, that had to follow the tenant.
async fn write(
    data: Data,
    tenant: &'static str,
    items: usize,
    writer: usize,
    stop: CancellationToken,
) -> Vec<f64> {
    let (mut followed, mut number) = (Vec::new(), writer);
    while !stop.is_cancelled() {
        number = (number + WRITERS) % items;
        let mut item = item(tenant, "", number);
        item.remove("CellId");
        let began = Instant::now();
        match data.put(tenant, "CustomerData", item).await {
            Ok(written) if written.redirects > 0 => {
                followed.push(began.elapsed().as_secs_f64() * 1000.0);
            }
            Ok(_) | Err(DataError::Unknown) => {}
            Err(error) => panic!("{error:?}"),
        }
        tokio::time::sleep(PACE).await;
    }
    followed
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

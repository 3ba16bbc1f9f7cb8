//! Items copied a second, by a migration and by a bare loop that writes the same batches to the same table: 99 items and a check of a
//! guard, four side by side, through the same kind of client. Who begins a round alternates.

use std::time::{Duration, Instant};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{ConditionCheck, Put, ReturnConsumedCapacity, TransactWriteItem};
use cell_directory::proto::v1::MigrationState;
use cell_directory::store::dynamodb::{DynamoDbOptions, connect};
use cells_guard::{GuardTable, guard};
use futures::{StreamExt, stream};

use crate::dynamodb_local::DynamoDbLocal;
use crate::scene::Scene;
use crate::world::Engine;
use crate::{Options, item, moved, other, percentile};

const BATCH: usize = 99;
const SIDE_BY_SIDE: usize = 4;

/// The bare loop's tenant in a cell: placed there, so that it has a guard to check.
fn bare(cell: &str) -> String {
    format!("bare-{cell}")
}

pub async fn run(options: &Options) {
    let engine = Engine::DynamoDbLocal(DynamoDbLocal::shared());
    let client = connect(&DynamoDbOptions {
        endpoint: Some(engine.endpoint()),
        read_timeout: Duration::from_secs(10),
        ..DynamoDbOptions::default()
    })
    .await;
    let mut scene = Scene::new(engine).await;
    for (tenant, cell) in
        [("tenant", "cell-a"), ("bare-cell-a", "cell-a"), ("bare-cell-b", "cell-b")]
    {
        scene.pin(tenant, cell).await;
    }
    write(&scene, &client, ("tenant", "bare-cell-a"), "cell-a", options.items).await;
    let (mut live, mut ratios) = ("cell-a", Vec::new());
    for round in 1..=options.rounds {
        let to = other(live);
        let mut loops = None;
        if round % 2 == 1 {
            loops = Some(bare_loop(&scene, &client, to, options.items).await);
        }
        let (_, states) = moved(&mut scene, "tenant", to).await;
        let copied = copying(&states);
        let loops = match loops {
            Some(loops) => loops,
            None => bare_loop(&scene, &client, to, options.items).await,
        };
        live = to;
        let rate = |took: Duration| options.items as f64 / took.as_secs_f64();
        ratios.push(rate(copied) / rate(loops));
        println!(
            "{round}: {} items; copied in {copied:.2?} ({:.0}/s), bare in {loops:.2?} ({:.0}/s), ratio {:.2}",
            options.items,
            rate(copied),
            rate(loops),
            rate(copied) / rate(loops)
        );
    }
    println!("ratio, the middle of {}: {:.2}", ratios.len(), percentile(&mut ratios, 50));
}

/// From when the copy began until what came next did.
fn copying(states: &[(MigrationState, Duration)]) -> Duration {
    let at = states.iter().position(|(state, _)| *state == MigrationState::Copying);
    let at = at.expect("the copy takes long enough to be seen");
    states[at + 1].1 - states[at].1
}

/// How long the bare loop takes to write as many items to a cell. They are removed again, so that it writes new ones each time, as a
/// migration does.
async fn bare_loop(scene: &Scene, client: &Client, cell: &str, items: usize) -> Duration {
    let tenant = bare(cell);
    let began = Instant::now();
    write(scene, client, (&tenant, &tenant), cell, items).await;
    let took = began.elapsed();
    let table = scene.world.table("CustomerData", cell);
    let deletes = (0..items).map(|number| {
        let mut item = item(&tenant, cell, number);
        let delete = client.delete_item().table_name(&table);
        let delete = delete.key("PK", item.remove("PK").unwrap());
        let delete = delete.key("SK", item.remove("SK").unwrap());
        async move { delete.send().await.unwrap() }
    });
    stream::iter(deletes).buffer_unordered(2 * SIDE_BY_SIDE).collect::<Vec<_>>().await;
    took
}

/// Writes a tenant's items in the migrations' own batches, each with a check of a guard that is there.
async fn write(
    scene: &Scene,
    client: &Client,
    (tenant, guarded): (&str, &str),
    cell: &str,
    items: usize,
) {
    let table = scene.world.table("CustomerData", cell);
    let guards = GuardTable {
        table_name: table.clone(),
        partition_key: "PK".to_owned(),
        sort_key: "SK".to_owned(),
    };
    let numbers: Vec<usize> = (0..items).collect();
    let batches = numbers.chunks(BATCH).map(|batch| {
        let puts = batch.iter().map(|number| {
            let put = Put::builder().table_name(&table);
            let put = put.set_item(Some(item(tenant, cell, *number))).build().unwrap();
            TransactWriteItem::builder().put(put).build()
        });
        let check = ConditionCheck::builder()
            .table_name(&table)
            .set_key(Some(guard::key(&guards, guarded, 0)))
            .condition_expression("attribute_exists(PK)");
        let check = TransactWriteItem::builder().condition_check(check.build().unwrap()).build();
        let parts: Vec<_> = std::iter::once(check).chain(puts).collect();
        let request = client.transact_write_items().set_transact_items(Some(parts));
        let request = request.return_consumed_capacity(ReturnConsumedCapacity::Total);
        async move { request.send().await.unwrap() }
    });
    stream::iter(batches).buffer_unordered(SIDE_BY_SIDE).collect::<Vec<_>>().await;
}

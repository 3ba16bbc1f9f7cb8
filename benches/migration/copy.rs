//! Items copied a second, by a migration and by a bare loop that writes the same batches: 99 items and a check of an item, four side by
//! side.

use std::time::{Duration, Instant};

use aws_sdk_dynamodb::types::{ConditionCheck, Put, TransactWriteItem};
use cell_directory::proto::v1::MigrationState;
use futures::{StreamExt, stream};

use crate::dynamodb_local::DynamoDbLocal;
use crate::scene::{Scene, partition, text};
use crate::world::Engine;
use crate::{Options, item, moved, other, percentile};

const BATCH: usize = 99;
const SIDE_BY_SIDE: usize = 4;

/// Where the bare loop writes.
const BARE: &str = "cell-longer";

pub async fn run(options: &Options) {
    let engine = Engine::DynamoDbLocal(DynamoDbLocal::shared());
    let mut scene = Scene::new(engine).await;
    scene.pin("tenant", "cell-a").await;
    scene.pin("bare", BARE).await;
    write(&scene, "tenant", "cell-a", options.items).await;
    let (mut live, mut ratios) = ("cell-a", Vec::new());
    for round in 1..=options.rounds {
        let began = Instant::now();
        write(&scene, "bare", BARE, options.items).await;
        let bare = options.items as f64 / began.elapsed().as_secs_f64();
        clear(&scene, options.items).await;
        let to = other(live);
        let (_, states) = moved(&mut scene, "tenant", to).await;
        live = to;
        let copied = options.items as f64 / copying(&states).as_secs_f64();
        ratios.push(copied / bare);
        println!(
            "{round}: copied {copied:.0} items/s, bare {bare:.0} items/s, ratio {:.2}",
            copied / bare
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

/// Writes a tenant's items in the migrations' own batches, each with a check of the tenant's first item in its partition.
async fn write(scene: &Scene, tenant: &str, cell: &str, items: usize) {
    let table = scene.world.table("CustomerData", cell);
    let numbers: Vec<usize> = (0..items).collect();
    let batches = numbers.chunks(BATCH).map(|batch| {
        let (table, client) = (&table, &scene.tables);
        let puts = batch.iter().map(|number| {
            let put = Put::builder().table_name(table);
            let put = put.set_item(Some(item(tenant, cell, *number))).build().unwrap();
            TransactWriteItem::builder().put(put).build()
        });
        // Another one each time, as the items of a guard are.
        let check = ConditionCheck::builder()
            .table_name(table)
            .key("PK", text(&partition("nobody")))
            .key("SK", text(&batch[0].to_string()))
            .condition_expression("attribute_not_exists(PK)");
        let check = TransactWriteItem::builder().condition_check(check.build().unwrap()).build();
        let parts: Vec<_> = std::iter::once(check).chain(puts).collect();
        async move {
            client.transact_write_items().set_transact_items(Some(parts)).send().await.unwrap();
        }
    });
    stream::iter(batches).buffer_unordered(SIDE_BY_SIDE).collect::<Vec<_>>().await;
}

/// Deletes what the bare loop wrote, so that it writes new items each time, as a migration does.
async fn clear(scene: &Scene, items: usize) {
    let table = scene.world.table("CustomerData", BARE);
    let deletes = (0..items).map(|number| {
        let mut item = item("bare", BARE, number);
        let delete = scene.tables.delete_item().table_name(&table);
        let delete = delete.key("PK", item.remove("PK").unwrap());
        let delete = delete.key("SK", item.remove("SK").unwrap());
        async move { delete.send().await.unwrap() }
    });
    stream::iter(deletes).buffer_unordered(2 * SIDE_BY_SIDE).collect::<Vec<_>>().await;
}

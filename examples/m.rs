use aws_sdk_dynamodb::types::*;
use cell_directory::store::dynamodb::*;
use std::sync::Arc;
use std::sync::atomic::*;
use std::time::*;
fn s(x: impl Into<String>) -> AttributeValue {
    AttributeValue::S(x.into())
}
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
#[tokio::main]
async fn main() {
    let dir = tempfile::tempdir().unwrap();
    let emb;
    let url = match std::env::args().nth(1) {
        Some(u) => u,
        None => {
            let p = dir.path().to_owned();
            emb = std::thread::spawn(move || {
                cell_directory::embedded::Embedded::start(&p, "127.0.0.1:0".parse().unwrap())
                    .unwrap()
            })
            .join()
            .unwrap();
            emb.endpoint()
        }
    };
    let c = connect(&DynamoDbOptions {
        endpoint: Some(url),
        read_timeout: Duration::from_secs(10),
        commit_timeout: Duration::from_secs(10),
        ..Default::default()
    })
    .await;
    let tag: String =
        format!("{}-", SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis());
    let names = TableNames::with_prefix(&tag).unwrap();
    tables::create(&c, &names).await.unwrap();
    let m = names.mappings().to_owned();
    let k = names.control().to_owned();
    for round in 0..3 {
        let n = Arc::new(AtomicU64::new(0));
        let t = Instant::now();
        let hs: Vec<_> = (0..64)
            .map(|w| {
                let (c, m, n) = (c.clone(), m.clone(), n.clone());
                tokio::spawn(async move {
                    let mut i = 0;
                    while t.elapsed() < Duration::from_secs(3) {
                        i += 1;
                        c.put_item()
                            .table_name(&m)
                            .item("PartitionKey", s(format!("a{round}-{w}-{i}")))
                            .item("CellId", s("cell-a"))
                            .item("CreatedAt", s("2026-11-23T00:00:00Z"))
                            .item("LastUpdated", s("2026-11-23T00:00:00Z"))
                            .condition_expression("attribute_not_exists(PartitionKey)")
                            .send()
                            .await
                            .unwrap();
                        n.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for h in hs {
            h.await.unwrap();
        }
        println!("bare puts/s {:.0}", n.load(Ordering::Relaxed) as f64 / t.elapsed().as_secs_f64());
        let n = Arc::new(AtomicU64::new(0));
        let t = Instant::now();
        let hs: Vec<_> = (0..64)
            .map(|w| {
                let (c, m, n) = (c.clone(), m.clone(), n.clone());
                tokio::spawn(async move {
                    let mut i = 0;
                    while t.elapsed() < Duration::from_secs(2) {
                        i += 1;
                        c.get_item()
                            .table_name(&m)
                            .key("PartitionKey", s(format!("x{round}-{w}-{i}")))
                            .consistent_read(true)
                            .send()
                            .await
                            .unwrap();
                        n.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for h in hs {
            h.await.unwrap();
        }
        println!("gets/s {:.0}", n.load(Ordering::Relaxed) as f64 / t.elapsed().as_secs_f64());
        for a in [31, 62, 98] {
            let t = Instant::now();
            let mut done = 0;
            let mut r = 0;
            while t.elapsed() < Duration::from_secs(2) {
                r += 1;
                let mut ka = KeysAndAttributes::builder().consistent_read(true);
                for j in 0..a {
                    ka = ka.keys(std::collections::HashMap::from([(
                        "PartitionKey".to_string(),
                        s(format!("z{round}-{a}-{r}-{j}")),
                    )]));
                }
                c.batch_get_item().request_items(&m, ka.build().unwrap()).send().await.unwrap();
                done += a;
            }
            println!(
                "  batchget {a}: {:.0}/s  {:.1} ms",
                done as f64 / t.elapsed().as_secs_f64(),
                t.elapsed().as_secs_f64() * 1000.0 / r as f64
            );
            let t = Instant::now();
            let mut done = 0;
            let mut r = 0;
            while t.elapsed() < Duration::from_secs(2) {
                r += 1;
                let mut q =
                    c.transact_write_items().client_request_token(format!("{tag}-{round}-{a}-{r}"));
                for j in 0..a {
                    q = q.transact_items(
                        TransactWriteItem::builder()
                            .put(
                                Put::builder()
                                    .table_name(&m)
                                    .item("PartitionKey", s(format!("b{round}-{a}-{r}-{j}")))
                                    .item("CellId", s("cell-a"))
                                    .item("CreatedAt", s("2026-11-23T00:00:00Z"))
                                    .item("LastUpdated", s("2026-11-23T00:00:00Z"))
                                    .condition_expression("attribute_not_exists(PartitionKey)")
                                    .build()
                                    .unwrap(),
                            )
                            .build(),
                    );
                }
                q = q.transact_items(
                    TransactWriteItem::builder()
                        .put(
                            Put::builder()
                                .table_name(&k)
                                .item("PK", s("J"))
                                .item("SK", s(format!("{round}-{a}-{r}")))
                                .item("X", s("y".repeat(a * 200)))
                                .build()
                                .unwrap(),
                        )
                        .build(),
                );
                q = q.transact_items(
                    TransactWriteItem::builder()
                        .update(
                            Update::builder()
                                .table_name(&k)
                                .key("PK", s("H"))
                                .key("SK", s("H"))
                                .update_expression("SET S=:a")
                                .expression_attribute_values(":a", AttributeValue::N(r.to_string()))
                                .build()
                                .unwrap(),
                        )
                        .build(),
                );
                q.send().await.unwrap();
                done += a;
            }
            println!(
                "  txn {a}: {:.0}/s  {:.1} ms",
                done as f64 / t.elapsed().as_secs_f64(),
                t.elapsed().as_secs_f64() * 1000.0 / r as f64
            );
        }
    }
    std::process::exit(0);
}

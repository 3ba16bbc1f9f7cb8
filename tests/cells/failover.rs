//! Step 5 of the failover in `docs/recovery.md`: a journal whose last entries came in part is moved on by hand. Replication itself no
//! engine has; what it may leave behind is made here.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use cell_directory::proto::v1;

use crate::celld::Celld;
use crate::embedded::Embedded;
use crate::world::{Engine, World, fault};

const FLAGS: [&str; 3] =
    ["--journal-poll-interval=50ms", "--max-queue-delay=1m", "--log-filter=off"];

fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

fn number(value: u64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

/// `CellControl`, past the server.
struct Control {
    client: Client,
    table: String,
}

impl Control {
    async fn item(&self, pk: &str, sk: &str) -> std::collections::HashMap<String, AttributeValue> {
        let get = self.client.get_item().table_name(&self.table).consistent_read(true);
        let got = get.key("PK", text(pk)).key("SK", text(sk)).send().await.unwrap();
        got.item.unwrap_or_default()
    }

    async fn head(&self) -> u64 {
        self.item("JOURNAL", "HEAD").await["Sequence"].as_n().unwrap().parse().unwrap()
    }

    async fn set(&self, sk: &str, expression: &str, values: Vec<(&str, AttributeValue)>) {
        let update =
            self.client.update_item().table_name(&self.table).update_expression(expression);
        // A reserved word.
        let update = update.expression_attribute_names("#s", "Sequence");
        let mut update = update.key("PK", text("JOURNAL")).key("SK", text(sk));
        for (name, value) in values {
            update = update.expression_attribute_values(name, value);
        }
        update.send().await.unwrap();
    }

    /// The last entry is lost, and two that were never to be are there: their placements are not.
    async fn as_after_a_lost_region(&self) {
        let head = self.head().await;
        let bucket = "JOURNAL#000000000000";
        let last = self.item(bucket, &format!("{head:020}")).await;
        for stray in [head + 1, head + 2] {
            let mut item = last.clone();
            item.insert("SK".to_owned(), text(format!("{stray:020}")));
            let put = self.client.put_item().table_name(&self.table);
            put.set_item(Some(item)).send().await.unwrap();
        }
        let delete = self.client.delete_item().table_name(&self.table);
        let delete = delete.key("PK", text(bucket)).key("SK", text(format!("{head:020}")));
        delete.send().await.unwrap();
    }

    /// What the runbook says.
    async fn move_on(&self) -> u64 {
        let values = vec![(":far", number(1_000_000)), (":id", text("9f86d081884c7d65"))];
        self.set("HEAD", "SET #s = #s + :far, JournalId = :id", values).await;
        let head = self.head().await;
        self.set("TRIMMED", "SET #s = :head, Deleted = :head", vec![(":head", number(head))]).await;
        head
    }
}

async fn placements(server: &Celld) -> BTreeMap<String, (String, u64)> {
    let mut directory = server.directory().await;
    let listed = directory.list_placements(v1::ListPlacementsRequest::default()).await.unwrap();
    let listed = listed.into_inner().placements.into_iter();
    listed.map(|one| (one.partition_key, (one.cell_id, one.epoch))).collect()
}

async fn assign(server: &Celld, tenant: &str) -> Result<v1::Placement, tonic::Status> {
    let request = v1::ResolveRequest { partition_key: tenant.to_owned(), ..Default::default() };
    let answer = server.directory().await.resolve(request).await?.into_inner();
    Ok(answer.placement.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_came_in_part_is_moved_on_and_written_again() {
    let world =
        World::new(Engine::Embedded(Arc::new(Embedded::temporary())), &["cell-a", "cell-b"]).await;
    for tenant in ["a", "b", "c", "d"] {
        assign(&world.server, tenant).await.unwrap();
    }
    let before = placements(&world.server).await;
    let journal = async |server: &Celld| {
        let cluster = server.admin().await.get_cluster(v1::GetClusterRequest {}).await.unwrap();
        cluster.into_inner().cluster.unwrap().journal_id
    };
    let old = journal(&world.server).await;
    let control = Control {
        client: Client::new(&world.sdk().await),
        table: format!("{}CellControl", world.prefix),
    };
    let World { engine, prefix, server, .. } = world;
    server.kill();
    control.as_after_a_lost_region().await;

    // As it is, nothing can be committed: that is seen, and nothing is placed twice.
    let stuck = Celld::serve(&engine.endpoint(), &prefix, &FLAGS);
    stuck.ready().await;
    let refused = assign(&stuck, "e").await.unwrap_err();
    // Whichever comes first: its attempts are used up, or its time.
    assert!(["CONTENDED", "OUTCOME_UNKNOWN"].contains(&&*fault(&refused).1), "{refused:?}");
    stuck.kill();

    let head = control.move_on().await;
    let server = Celld::serve(&engine.endpoint(), &prefix, &FLAGS);
    server.ready().await;
    assert_eq!(placements(&server).await, before, "who was replicated is where he was");
    assert_ne!(journal(&server).await, old);
    for tenant in ["e", "f"] {
        assert_eq!(assign(&server, tenant).await.unwrap().epoch, 1);
    }
    assert!(control.head().await > head);
    // Another replica follows the entries that were written since.
    let other = Celld::serve(&engine.endpoint(), &prefix, &FLAGS);
    other.ready().await;
    assert_eq!(placements(&other).await, placements(&server).await);
    let placed = assign(&server, "g").await.unwrap();
    assert_eq!(assign(&other, "g").await.unwrap().cell_id, placed.cell_id);
}

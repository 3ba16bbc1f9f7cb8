//! What a tenant left behind in former cells, and exports of all there is. On both engines.

use std::collections::BTreeSet;

use cell_directory::proto::v1;
use serde_json::json;
use tonic::Code;

use crate::data::{Data, export_text, item, item_key, message, on_both_engines, text};
use crate::world::{fault, table};

on_both_engines!(
    former_cells_are_asked_and_the_newest_wins,
    former_cells_may_have_other_key_templates,
    a_former_cell_with_other_keys_is_said,
    a_former_cell_that_is_gone_is_said,
    an_export_has_everything_and_can_be_resumed,
    an_export_says_what_it_lacks,
    a_table_without_a_sort_key_has_pages,
    pages_make_the_whole,
);

/// A tenant who has moved twice, with items left behind.
async fn moved(data: &mut Data) {
    data.pin("t", "cell-a").await;
    for sort in ["1", "2", "3", "gone"] {
        data.put("t", item("t", sort, "a")).await.unwrap();
    }
    data.send("t", "cell-b").await;
    for sort in ["2", "4"] {
        data.put("t", item("t", sort, "b")).await.unwrap();
    }
    data.send("t", "cell-c").await;
    let mut other = item_key("t", "3");
    other["Value"] = json!({ "S": "c" });
    other["EntityType"] = json!({ "S": "Other" });
    data.put("t", message(other)).await.unwrap();
    // Expired, and perhaps not deleted yet: not there, whatever an older cell says.
    let mut expired = item_key("t", "gone");
    expired["TTL"] = json!({ "N": "1" });
    data.put("t", message(expired)).await.unwrap();
}

fn everywhere() -> v1::QueryRequest {
    v1::QueryRequest { scope: v1::QueryScope::AllCells.into(), ..Data::question("t") }
}

fn told(found: &v1::QueryResponse) -> Vec<(String, String, bool)> {
    let one = |item: &v1::CellItem| (text(item, "SK"), item.cell_id.clone(), item.previous);
    found.items.iter().map(one).collect()
}

async fn former_cells_are_asked_and_the_newest_wins(mut data: Data) {
    moved(&mut data).await;
    let found = data.query(everywhere()).await.unwrap();
    let expected = [
        ("1", "cell-a", true),
        ("2", "cell-b", true),
        ("3", "cell-c", false),
        ("4", "cell-b", true),
    ];
    let expected =
        expected.map(|(sort, cell, previous)| (sort.to_owned(), cell.to_owned(), previous));
    assert_eq!(told(&found), expected);
    assert_eq!((found.failures.len(), found.next_page_token.as_str()), (0, ""));
    let here = data.query(Data::question("t")).await.unwrap();
    assert_eq!(told(&here), [("3".to_owned(), "cell-c".to_owned(), false)]);
    // An older copy that would fit does not show where the newest one does not.
    let notes = v1::QueryRequest { entity_type: "Note".to_owned(), ..everywhere() };
    let notes = data.query(notes).await.unwrap();
    let sorts: BTreeSet<_> = notes.items.iter().map(|item| text(item, "SK")).collect();
    assert_eq!(sorts, ["1", "2", "4"].map(str::to_owned).into());
}

/// Every table and every partition, each item once and labelled, wherever the export is taken up again.
async fn an_export_has_everything_and_can_be_resumed(mut data: Data) {
    data.pin("t", "cell-a").await;
    for number in 0..25 {
        data.put_raw("CustomerData", "CUSTOMER#t", Some(&format!("{number:02}")), "x").await;
    }
    data.put_raw("Carts", "CUSTOMER#t", None, "x").await;
    for (key, sort) in [("CUSTOMER#t", "1"), ("TRAVELLER#t", "1"), ("TRAVELLER#t", "2")] {
        data.put_raw("Journeys", key, Some(sort), "x").await;
    }
    let parts = data.export("t", false, "").await;
    let label = |item: &v1::ExportedItem| {
        assert_eq!((item.cell_id.as_str(), item.previous), ("cell-a", false));
        let sort = if item.table == "Carts" { String::new() } else { export_text(item, "SK") };
        (item.table.clone(), export_text(item, "PK"), sort)
    };
    let all: Vec<_> = parts.iter().flat_map(|part| part.items.iter().map(label)).collect();
    assert_eq!(all.len(), 29);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 29, "{all:?}");
    let counted = |summary: &v1::ExportSummary| {
        summary.tables.iter().map(|table| (table.table.clone(), table.items)).collect::<Vec<_>>()
    };
    let (last, before) = parts.split_last().unwrap();
    let summary = last.summary.as_ref().unwrap();
    let tables = [("Carts", 1), ("CustomerData", 25), ("Journeys", 3)];
    assert_eq!(counted(summary), tables.map(|(table, items)| (table.to_owned(), items)));
    assert_eq!((summary.items, summary.complete, summary.resumed), (29, true, false));
    assert!(last.resume_token.is_empty() && before.iter().all(|part| part.summary.is_none()));
    assert!(before.len() >= 4, "{} parts", parts.len());

    let mut had = 0;
    for part in before {
        had += part.items.len();
        let rest = data.export("t", false, &part.resume_token).await;
        let items: Vec<_> = rest.iter().flat_map(|part| part.items.iter().map(label)).collect();
        assert_eq!(items, all[had..]);
        let summary = rest.last().unwrap().summary.as_ref().unwrap();
        assert_eq!((summary.items as usize, summary.resumed), (29 - had, true));
    }
    let request = v1::ExportTenantRequest {
        partition_key: "other".to_owned(),
        resume_token: before[0].resume_token.clone(),
        ..Default::default()
    };
    let status = data.data.export_tenant(request).await.unwrap_err();
    assert_eq!(
        (fault(&status).1, fault(&status).2),
        ("INVALID_PAGE_TOKEN".to_owned(), vec!["resume_token".to_owned()])
    );
    let nobody =
        v1::ExportTenantRequest { partition_key: "nobody".to_owned(), ..Default::default() };
    let status = data.data.export_tenant(nobody).await.unwrap_err();
    assert_eq!(fault(&status).1, "PLACEMENT_NOT_FOUND");
}

/// Former cells are exported, too, and a table of one that cannot be read is named.
async fn an_export_says_what_it_lacks(mut data: Data) {
    moved(&mut data).await;
    let told = |parts: &[v1::ExportTenantResponse]| {
        let items = parts.iter().flat_map(|part| &part.items);
        items
            .map(|item| (export_text(item, "SK"), item.cell_id.clone(), item.previous))
            .collect::<Vec<_>>()
    };
    let parts = data.export("t", true, "").await;
    let expected = [
        ("1", "cell-a", true),
        ("2", "cell-b", true),
        ("3", "cell-c", false),
        ("4", "cell-b", true),
    ];
    assert_eq!(
        told(&parts),
        expected.map(|(sort, cell, previous)| (sort.to_owned(), cell.to_owned(), previous))
    );
    assert!(parts.last().unwrap().summary.as_ref().unwrap().complete);

    let dynamodb = aws_sdk_dynamodb::Client::new(&data.world.sdk().await);
    let gone = data.world.table("CustomerData", "cell-a");
    dynamodb.delete_table().table_name(gone).send().await.unwrap();
    let parts = data.export("t", true, "").await;
    assert_eq!(told(&parts).len(), 3);
    let failures: BTreeSet<_> = parts
        .iter()
        .flat_map(|part| &part.failures)
        .collect::<Vec<_>>()
        .into_iter()
        .map(|failure| (failure.table.as_str(), failure.cell_id.as_str(), failure.reason.as_str()))
        .collect();
    assert_eq!(failures, [("CustomerData", "cell-a", "TABLE_NOT_FOUND")].into());
    let summary = parts.last().unwrap().summary.clone().unwrap();
    assert_eq!((summary.items, summary.complete), (3, false));
    // It takes no former cell to be complete where none is asked.
    let parts = data.export("t", false, "").await;
    assert!(parts.last().unwrap().summary.as_ref().unwrap().complete);
}

async fn a_former_cell_that_is_gone_is_said(mut data: Data) {
    moved(&mut data).await;
    let dynamodb = aws_sdk_dynamodb::Client::new(&data.world.sdk().await);
    let gone = data.world.table("CustomerData", "cell-a");
    dynamodb.delete_table().table_name(gone).send().await.unwrap();
    let found = data.query(everywhere()).await.unwrap();
    let sorts: Vec<_> = found.items.iter().map(|item| text(item, "SK")).collect();
    assert_eq!(sorts, ["2", "3", "4"]);
    let failures: Vec<_> =
        found.failures.iter().map(|f| (f.cell_id.as_str(), f.reason.as_str())).collect();
    assert_eq!(failures, [("cell-a", "TABLE_NOT_FOUND")]);
    // The current cell's is the call's own.
    let gone = data.world.table("CustomerData", "cell-c");
    dynamodb.delete_table().table_name(gone).send().await.unwrap();
    let status = data.query(everywhere()).await.unwrap_err();
    assert_eq!((status.code(), fault(&status).1.as_str()), (Code::NotFound, "TABLE_NOT_FOUND"));
}

/// `cell-b` gets another version of the table set, and the tenant, who left items in `cell-a`, goes there.
async fn moved_to_other_tables(data: &mut Data, journeys: v1::TableSpec) {
    data.pin("t", "cell-a").await;
    for key in ["CUSTOMER#t", "TRAVELLER#t"] {
        data.put_raw("Journeys", key, Some("1"), "a").await;
    }
    data.world.put_set(vec![journeys]).await;
    let operation = data.world.provision("cell-b").await;
    assert_eq!(operation.state(), v1::OperationState::Succeeded, "{operation:?}");
    data.send("t", "cell-b").await;
}

/// Items of a template that only the former cell has are found, and a template's place in the list means nothing.
async fn former_cells_may_have_other_key_templates(mut data: Data) {
    let tenant_key_templates =
        ["TRAVELLER#{partition_key}", "AGENT#{partition_key}"].map(str::to_owned).into();
    let journeys = v1::TableSpec { tenant_key_templates, ..table("Journeys") };
    moved_to_other_tables(&mut data, journeys).await;
    for key in ["TRAVELLER#t", "AGENT#t"] {
        data.put_raw_in("cell-b", "Journeys", key, Some("1"), "b").await;
    }
    let mut pages = Vec::new();
    let mut page_token = String::new();
    loop {
        let page = v1::QueryRequest {
            table: "Journeys".to_owned(),
            page_size: 1,
            page_token,
            ..everywhere()
        };
        let found = data.query(page).await.unwrap();
        assert_eq!(found.failures, []);
        pages.extend(found.items.iter().map(|item| (text(item, "PK"), text(item, "Value"))));
        page_token = found.next_page_token;
        if page_token.is_empty() {
            break;
        }
        assert!(pages.len() < 10, "{pages:?}");
    }
    let all = [("TRAVELLER#t", "b"), ("AGENT#t", "b"), ("CUSTOMER#t", "a")];
    let all = all.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(pages, all);
    let parts = data.export("t", true, "").await;
    let items = parts.iter().flat_map(|part| &part.items);
    let items = items.map(|item| (export_text(item, "PK"), export_text(item, "Value")));
    assert_eq!(items.collect::<Vec<_>>(), all);
}

/// Where sort keys differ nothing can be laid over anything: it is said, and what is here is answered.
async fn a_former_cell_with_other_keys_is_said(mut data: Data) {
    // The table is there with its keys; what a set says of it later is not looked at until the cell is provisioned.
    let dynamodb = aws_sdk_dynamodb::Client::new(&data.world.sdk().await);
    let there = data.world.table("Journeys", "cell-b");
    dynamodb.delete_table().table_name(there).send().await.unwrap();
    let sort_key = Some(v1::KeyAttribute { name: "When".to_owned(), r#type: 0 });
    let journeys = v1::TableSpec { sort_key, indexes: vec![], ..table("Journeys") };
    moved_to_other_tables(&mut data, journeys).await;
    let found = data
        .query(v1::QueryRequest { table: "Journeys".to_owned(), ..everywhere() })
        .await
        .unwrap();
    let failures: Vec<_> =
        found.failures.iter().map(|f| (f.cell_id.as_str(), f.reason.as_str())).collect();
    assert_eq!((found.items.len(), failures), (0, vec![("cell-a", "KEYS_DIFFER")]));
}

/// One item a partition, and a page that it fills is the last but for other partitions.
async fn a_table_without_a_sort_key_has_pages(mut data: Data) {
    data.pin("t", "cell-a").await;
    data.put_raw("Carts", "CUSTOMER#t", None, "x").await;
    let page = v1::QueryRequest { table: "Carts".to_owned(), page_size: 1, ..Data::question("t") };
    let found = data.query(page).await.unwrap();
    assert_eq!((found.items.len(), found.next_page_token.as_str()), (1, ""));
}

/// However small the pages, the same items in the same order, none twice.
async fn pages_make_the_whole(mut data: Data) {
    data.pin("t", "cell-a").await;
    let write = |partition: &str, number: usize| {
        let key = json!({ "PK": { "S": format!("{partition}#t") }, "SK": { "S": format!("{number:03}") } });
        v1::DataWrite {
            table: "Journeys".to_owned(),
            write: Some(v1::data_write::Write::Put(message(key))),
            ..Default::default()
        }
    };
    for partition in ["CUSTOMER", "TRAVELLER"] {
        for cell in ["cell-a", "cell-b"] {
            let numbers: Vec<_> =
                if cell == "cell-a" { (0..25).collect() } else { (20..40).collect() };
            let writes = numbers.into_iter().map(|number| write(partition, number)).collect();
            let request = v1::TransactRequest {
                partition_key: "t".to_owned(),
                writes,
                request_id: String::new(),
            };
            data.data.transact(request).await.unwrap();
            data.send("t", if cell == "cell-a" { "cell-b" } else { "cell-a" }).await;
        }
    }
    let question = || v1::QueryRequest { table: "Journeys".to_owned(), ..everywhere() };
    let whole = told(&data.query(question()).await.unwrap());
    assert_eq!(whole.len(), 80);
    for page_size in [1, 7, 10, 33, 79, 80] {
        let (mut pages, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = v1::QueryRequest { page_size, page_token, ..question() };
            let page = data.query(request).await.unwrap();
            assert!(page.items.len() <= page_size as usize);
            pages.extend(told(&page));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(pages, whole, "by {page_size}");
    }
    let first = data.query(v1::QueryRequest { page_size: 1, ..question() }).await.unwrap();
    let other = v1::QueryRequest { page_token: first.next_page_token, ..everywhere() };
    assert_eq!(fault(&data.query(other).await.unwrap_err()).1, "INVALID_PAGE_TOKEN");
}

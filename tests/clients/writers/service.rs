//! A writer with a running `celld`: what the service answers, and the guards that it writes, are what the examples take them for.

use std::time::Instant;

use cell_directory::proto::v1;

use crate::celld::{Celld, unique};
use crate::dynamodb_local::DynamoDbLocal;
use crate::world::{Build, CELLS, PATIENCE, World};
use crate::{AMPLE, cases};

/// Budgets are wide: what is tested is what is answered on a busy machine, not when.
const FLAGS: [&str; 6] = [
    "--read-timeout=20s",
    "--commit-timeout=20s",
    "--commit-budget=50s",
    "--operations-interval=50ms",
    "--max-queue-delay=1m",
    "--log-filter=error",
];

pub async fn a_writer_and_the_service_agree(build: &Build) {
    let prefix = unique("writers");
    let server = Celld::serve(&DynamoDbLocal::shared().endpoint(), &prefix, &FLAGS);
    server.create_cells(&CELLS).await;
    provision(&server).await;
    let world = World::at(build, &server.address, &prefix).await;
    let case = world.case("served");

    case.write(&[case.put("a", "1")], "done").await;
    // What cannot be repeated is checked, by the guard that came with the placement.
    case.write(&[case.count(), case.put("b", "1")], "done").await;
    let at = usize::from(case.value(0, "a").await.is_none());
    assert_eq!(case.value(at, "b").await.as_deref(), Some("1"));
    assert_eq!(case.counted(at).await.as_deref(), Some("1"));
    assert_eq!(case.calls(cases::TRANSACTION), 1);

    // Without the directory it goes on with what it knows, checked.
    server.kill();
    let deadline = Instant::now() + AMPLE;
    while case.calls(cases::TRANSACTION) == 1 {
        assert!(Instant::now() < deadline, "the lease does not end");
        case.write(&[case.put("a", "2")], "done").await;
    }
    assert_eq!(case.value(at, "a").await.as_deref(), Some("2"));
}

async fn provision(server: &Celld) {
    let mut admin = server.admin().await;
    let tables = vec![table("Profiles", None), table("Orders", key("SK"))];
    let table_set_id = "default".to_owned();
    let set = v1::TableSet { table_set_id, tables, ..Default::default() };
    let request = v1::PutTableSetRequest { table_set: Some(set), validate_only: false };
    admin.put_table_set(request).await.unwrap();
    for cell in CELLS {
        let cell_id = cell.to_owned();
        let request = v1::ProvisionCellRequest { cell_id: cell_id.clone(), ..Default::default() };
        admin.provision_cell(request).await.unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let request = v1::GetCellRequest { cell_id: cell_id.clone() };
            let answer = admin.get_cell(request).await.unwrap().into_inner();
            if answer.cell.unwrap().tables.is_some() {
                break;
            }
            assert!(Instant::now() < deadline, "{cell} gets no tables");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

fn key(name: &str) -> Option<v1::KeyAttribute> {
    Some(v1::KeyAttribute { name: name.to_owned(), r#type: 0 })
}

fn table(name: &str, sort_key: Option<v1::KeyAttribute>) -> v1::TableSpec {
    v1::TableSpec {
        name: name.to_owned(),
        partition_key: key("PK"),
        sort_key,
        tenant_key_templates: vec!["CUSTOMER#{partition_key}".to_owned()],
        ..Default::default()
    }
}

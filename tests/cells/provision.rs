//! Table sets, plans, provisioning and its opposite.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_applicationautoscaling::types::{ScalableDimension, ServiceNamespace};
use aws_sdk_dynamodb::types::{AttributeValue, PointInTimeRecoverySpecification};
use cell_directory::proto::v1;
use tonic::Code;

use crate::dynamodb_local::DynamoDbLocal;
use crate::embedded::Embedded;
use crate::world::{Engine, World, fault, table};

fn provision(units: i64) -> Option<v1::Provision> {
    let autoscaling =
        Some(v1::Autoscaling { min_units: units, max_units: units * 10, target_percent: 60 });
    Some(v1::Provision { units, autoscaling })
}

fn throughput(units: i64) -> Option<v1::Throughput> {
    Some(v1::Throughput { read: provision(units), write: provision(units) })
}

/// Everything that moto knows.
fn full() -> Vec<v1::TableSpec> {
    let mut provisioned = table("Orders");
    provisioned.provisioned = throughput(5);
    provisioned.indexes[0].throughput = throughput(5);
    let on_demand = v1::TableSpec {
        point_in_time_recovery_days: 14,
        deletion_protection: true,
        kms_key: "AWS_MANAGED".to_owned(),
        ..table("CustomerData")
    };
    vec![on_demand, provisioned]
}

/// From nothing to tables as declared, as others see them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_come_to_be_as_declared() {
    let mut world = World::new(Engine::moto(), &["cell-a", "cell-b"]).await;
    let set = world.put_set(full()).await;
    assert_eq!((set.version, set.etag.as_str()), (1, "v1"));
    assert_eq!(world.changes("cell-a").await, ["create the table", "create the table"]);
    let operation = world.provision("cell-a").await;
    assert_eq!(operation.state(), v1::OperationState::Succeeded, "{operation:?}");
    assert_eq!((operation.steps_left, operation.notes.len()), (0, 0), "{operation:?}");
    assert!(world.plan("cell-a").await.iter().all(|table| table.conflicts.is_empty()));
    assert_eq!(world.changes("cell-a").await, Vec::<String>::new());
    assert_eq!(world.changes("cell-b").await.len(), 2, "another cell's are its own");

    let sdk = world.sdk().await;
    let dynamodb = aws_sdk_dynamodb::Client::new(&sdk);
    let (data, orders) = (world.table("CustomerData", "cell-a"), world.table("Orders", "cell-a"));
    let is = dynamodb.describe_table().table_name(&data).send().await.unwrap().table.unwrap();
    assert_eq!(is.deletion_protection_enabled, Some(true));
    assert_eq!(
        is.billing_mode_summary().unwrap().billing_mode().unwrap().as_str(),
        "PAY_PER_REQUEST"
    );
    assert_eq!(
        is.stream_specification().unwrap().stream_view_type().unwrap().as_str(),
        "NEW_AND_OLD_IMAGES"
    );
    assert_eq!(is.sse_description().unwrap().sse_type().unwrap().as_str(), "KMS");
    assert_eq!(is.global_secondary_indexes()[0].index_name(), Some("CellIdIndex"));
    let ttl = dynamodb.describe_time_to_live().table_name(&data).send().await.unwrap();
    assert_eq!(ttl.time_to_live_description().unwrap().attribute_name(), Some("TTL"));
    let backups = dynamodb.describe_continuous_backups().table_name(&data).send().await.unwrap();
    let recovery = backups.continuous_backups_description.unwrap();
    let recovery = recovery.point_in_time_recovery_description.unwrap();
    assert_eq!(recovery.point_in_time_recovery_status.unwrap().as_str(), "ENABLED");
    assert_eq!(recovery.recovery_period_in_days, Some(14));
    let tags = dynamodb.list_tags_of_resource().resource_arn(is.table_arn().unwrap()).send().await;
    let tags: BTreeMap<_, _> =
        tags.unwrap().tags.unwrap().into_iter().map(|tag| (tag.key, tag.value)).collect();
    let tag = |name: &str| tags.get(name).map(String::as_str);
    assert_eq!((tag("cell"), tag("environment")), (Some("cell-a"), Some("test")));
    assert_eq!((tag("managed-by"), tag("table-set")), (Some("cell-directory"), Some("default")));

    let scaling = aws_sdk_applicationautoscaling::Client::new(&sdk);
    let targets = scaling.describe_scalable_targets().service_namespace(ServiceNamespace::Dynamodb);
    let targets = targets.send().await.unwrap().scalable_targets.unwrap();
    assert_eq!(targets.len(), 4, "reads and writes of a table and of its index: {targets:?}");
    let writes = targets.iter().find(|target| {
        *target.scalable_dimension() == ScalableDimension::DynamoDbTableWriteCapacityUnits
    });
    let writes = writes.unwrap();
    assert_eq!(writes.resource_id(), format!("table/{orders}"));
    assert_eq!((writes.min_capacity(), writes.max_capacity()), (5, 50));
}

/// Somebody switches things off: the plan says so, and provisioning mends it. What was changed on purpose makes a new version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drift_is_found_and_mended() {
    let mut world = World::new(Engine::moto(), &["cell-a"]).await;
    world.put_set(full()).await;
    world.provision("cell-a").await;
    let dynamodb = aws_sdk_dynamodb::Client::new(&world.sdk().await);
    let data = world.table("CustomerData", "cell-a");
    let off = PointInTimeRecoverySpecification::builder().point_in_time_recovery_enabled(false);
    let update = dynamodb.update_continuous_backups().table_name(&data);
    update.point_in_time_recovery_specification(off.build().unwrap()).send().await.unwrap();
    let update = dynamodb.update_table().table_name(&data).deletion_protection_enabled(false);
    update.send().await.unwrap();
    let drift = ["enable point-in-time recovery for 14 days", "protect from deletion"];
    assert_eq!(world.changes("cell-a").await, drift);
    let operation = world.provision("cell-a").await;
    let done: Vec<_> = operation.steps.iter().map(|step| step.done.as_str()).collect();
    assert_eq!(done, drift);
    assert_eq!(world.changes("cell-a").await, Vec::<String>::new());

    let mut tables = full();
    tables[0].point_in_time_recovery_days = 35;
    assert_eq!(world.put_set(tables.clone()).await.version, 2);
    assert_eq!(world.put_set(tables).await.version, 2, "the same again is no new version");
    assert_eq!(world.changes("cell-a").await, ["enable point-in-time recovery for 35 days"]);
    let operation = world.provision("cell-a").await;
    assert_eq!(
        (operation.state(), operation.table_set_version),
        (v1::OperationState::Succeeded, 2)
    );
}

/// `kill -9` again and again while it is at work: another process goes on, and each table is made once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_is_gone_on_for() {
    let mut world = World::new(Engine::moto(), &["cell-a"]).await;
    world.put_set(full()).await;
    let begun = world.begin("cell-a").await;
    for pause in [0, 120, 300] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        world.restart().await;
    }
    let operation = world.ended(&begun.operation_id).await;
    assert_eq!(operation.state(), v1::OperationState::Succeeded, "{operation:?}");
    assert_eq!(world.changes("cell-a").await, Vec::<String>::new());
    // Free for the next one.
    assert_eq!(world.provision("cell-a").await.steps_done, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_refuses_what_would_be_lost_and_backs_up_what_goes() {
    let mut world = World::new(Engine::moto(), &["cell-a"]).await;
    world.put_set(full()).await;
    world.provision("cell-a").await;
    let dynamodb = aws_sdk_dynamodb::Client::new(&world.sdk().await);
    let data = world.table("CustomerData", "cell-a");
    let text = |value: &str| AttributeValue::S(value.to_owned());
    let put = dynamodb.put_item().table_name(&data);
    put.item("PK", text("CUSTOMER#a")).item("SK", text("x")).send().await.unwrap();

    let ask = |delete_data| v1::DeprovisionCellRequest {
        cell_id: "cell-a".to_owned(),
        delete_data,
        ..Default::default()
    };
    let in_use = (Code::FailedPrecondition, "CELL_IN_USE".to_owned(), vec![]);
    let active = world.admin.deprovision_cell(ask(true)).await.unwrap_err();
    assert_eq!(fault(&active), in_use);
    world.cordon("cell-a").await;
    let full = world.admin.deprovision_cell(ask(false)).await.unwrap_err();
    assert_eq!(fault(&full), in_use);
    assert_eq!(world.changes("cell-a").await, Vec::<String>::new(), "nothing was changed");

    let delete = v1::DeleteCellRequest { cell_id: "cell-a".to_owned(), ..Default::default() };
    let orphans = world.admin.delete_cell(delete.clone()).await.unwrap_err();
    assert_eq!(fault(&orphans), in_use);

    let request = v1::DeprovisionCellRequest { request_id: "once".to_owned(), ..ask(true) };
    let begun = world.admin.deprovision_cell(request.clone()).await.unwrap().into_inner();
    let begun = begun.operation.unwrap();
    let again = world.admin.deprovision_cell(request.clone()).await.unwrap().into_inner();
    assert_eq!(again.operation.unwrap().operation_id, begun.operation_id);
    let other = v1::DeprovisionCellRequest { skip_final_backup: true, ..request };
    let reused = world.admin.deprovision_cell(other).await.unwrap_err();
    assert_eq!(fault(&reused).1, "REQUEST_ID_REUSED");
    let operation = world.ended(&begun.operation_id).await;
    assert_eq!(operation.state(), v1::OperationState::Succeeded, "{operation:?}");
    let left = dynamodb.list_tables().send().await.unwrap().table_names.unwrap_or_default();
    assert_eq!(left, Vec::<String>::new());
    let backups = dynamodb.list_backups().send().await.unwrap().backup_summaries.unwrap();
    let backups: Vec<_> = backups
        .iter()
        .map(|backup| (backup.table_name().unwrap(), backup.backup_name().unwrap()))
        .collect();
    assert_eq!(backups, [(data.as_str(), format!("final-{}", begun.operation_id).as_str())]);
    let gone = world.admin.deprovision_cell(ask(true)).await.unwrap_err();
    assert_eq!(fault(&gone).1, "CELL_NOT_PROVISIONED");
    world.admin.delete_cell(delete).await.unwrap();
}

/// What an emulator does not know is said, and the rest is done.
async fn what_an_engine_lacks_is_said(engine: Engine) {
    let mut world = World::new(engine, &["cell-a"]).await;
    let lacking = v1::TableSpec { point_in_time_recovery_days: 35, ..table("CustomerData") };
    world.put_set(vec![lacking]).await;
    let operation = world.provision("cell-a").await;
    assert_eq!(operation.state(), v1::OperationState::Succeeded, "{operation:?}");
    assert!(
        operation.notes.iter().any(|note| note.contains("no point-in-time recovery")),
        "{operation:?}"
    );
    let plan = world.plan("cell-a").await;
    assert_eq!(plan[0].changes, Vec::<String>::new());
    assert!(!plan[0].notes.is_empty());
    world.cordon("cell-a").await;
    let request = v1::DeprovisionCellRequest { cell_id: "cell-a".to_owned(), ..Default::default() };
    let begun = world.admin.deprovision_cell(request).await.unwrap().into_inner().operation;
    let ended = world.ended(&begun.unwrap().operation_id).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    assert_eq!(world.changes("cell-a").await, ["create the table"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_engine_lacks_is_said_embedded() {
    what_an_engine_lacks_is_said(Engine::Embedded(Arc::new(Embedded::temporary()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_engine_lacks_is_said_dynamodb_local() {
    what_an_engine_lacks_is_said(Engine::DynamoDbLocal(DynamoDbLocal::shared())).await;
}

/// What AWS would refuse is refused before the first call, field by field.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_aws_would_refuse_is_refused_with_its_field() {
    let engine = Engine::Embedded(Arc::new(Embedded::temporary()));
    let mut world = World::new(engine, &["cell-a"]).await;
    type Spoil = fn(&mut v1::TableSpec);
    let cases: [(&str, Spoil); 15] = [
        ("name", |table| table.name = "a b".to_owned()),
        ("name", |table| table.name = "CellControl".to_owned()),
        ("partition_key.type", |table| {
            table.partition_key.as_mut().unwrap().r#type = v1::KeyType::Number.into();
        }),
        ("sort_key.name", |table| table.sort_key = table.partition_key.clone()),
        ("tenant_key_templates", |table| table.tenant_key_templates.clear()),
        ("tenant_key_templates[0]", |table| {
            table.tenant_key_templates = vec!["CUSTOMER#".to_owned()];
        }),
        ("tenant_key_templates[1]", |table| {
            table.tenant_key_templates.push("CUSTOMER#{partition_key}#x".to_owned());
        }),
        ("ttl_attribute", |table| table.ttl_attribute = "PK".to_owned()),
        ("point_in_time_recovery_days", |table| table.point_in_time_recovery_days = 36),
        ("kms_key", |table| table.kms_key = "my-key".to_owned()),
        ("indexes[0].throughput", |table| table.provisioned = throughput(5)),
        ("indexes[0].name", |table| table.indexes[0].name = "x".to_owned()),
        ("provisioned.read.autoscaling.target_percent", |table| {
            table.indexes.clear();
            let mut units = throughput(5).unwrap();
            units.read.as_mut().unwrap().autoscaling.as_mut().unwrap().target_percent = 95;
            table.provisioned = Some(units);
        }),
        ("replica_regions", |table| {
            table.stream = 0;
            table.replica_regions = vec!["us-east-1".to_owned()];
        }),
        ("provisioned.write.units", |table| {
            table.indexes.clear();
            let mut units = throughput(5).unwrap();
            units.write.as_mut().unwrap().units = 51;
            table.provisioned = Some(units);
        }),
    ];
    for (field, spoil) in cases {
        let mut spoilt = table("CustomerData");
        spoil(&mut spoilt);
        let table_set_id = "default".to_owned();
        let set = v1::TableSet { table_set_id, tables: vec![spoilt], ..Default::default() };
        let request = v1::PutTableSetRequest { table_set: Some(set), validate_only: false };
        let status = world.admin.put_table_set(request).await.unwrap_err();
        let (code, reason, fields) = fault(&status);
        assert_eq!(
            (code, reason.as_str()),
            (Code::InvalidArgument, "INVALID_TABLE_SET"),
            "{field}"
        );
        assert_eq!(fields[0], format!("table_set.tables[0].{field}"));
    }
    let listed = world.admin.list_table_sets(v1::ListTableSetsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().table_sets.len(), 0, "nothing was kept");
    // Replicas that one cell cannot have are refused for that cell.
    let replicated = v1::TableSpec { replica_regions: vec!["eu-west-1".to_owned()], ..table("D") };
    world.put_set(vec![replicated]).await;
    let request = v1::ProvisionCellRequest { cell_id: "cell-a".to_owned(), ..Default::default() };
    let status = world.admin.provision_cell(request).await.unwrap_err();
    assert_eq!(fault(&status).2, ["table_set.tables[0].replica_regions"]);
}

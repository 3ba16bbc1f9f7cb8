//! What a table is, gathered from the calls that each tell a part of it.

use std::collections::BTreeMap;

use aws_sdk_applicationautoscaling::types::{ScalableDimension, ServiceNamespace};
use aws_sdk_dynamodb::types::{
    BillingMode, GlobalSecondaryIndexDescription, IndexStatus, KeySchemaElement,
    KeyType as AwsKeyType, PointInTimeRecoveryStatus, ProjectionType, ReplicaStatus,
    TableDescription, TimeToLiveStatus,
};

use super::{Clients, cloud_error, policy_name, resource_id};
use crate::cells::cloud::CloudError;
use crate::cells::plan::{Dimension, Feature, Observed, ObservedIndex, Resource};
use crate::cells::table_set::{
    Autoscaling, Encryption, IndexSpec, KeyAttribute, KeyType, Projection, StreamView, TableClass,
};
use crate::domain::Region;

/// Days of recovery where the answer does not say: what DynamoDB gives by default.
pub const DEFAULT_RECOVERY_DAYS: u8 = 35;

/// Most pages of anything that are read of one table.
const MAX_PAGES: usize = 20;

type Scaling = BTreeMap<(Resource, Dimension), Autoscaling>;

/// `None`: there is no such table.
pub async fn observe(clients: &Clients, table: &str) -> Result<Option<Observed>, CloudError> {
    let Some(description) = describe(clients, table).await? else { return Ok(None) };
    let (ttl_attribute, recovery_days, tags, scaling) = tokio::try_join!(
        feature(ttl(clients, table)),
        feature(recovery(clients, table)),
        feature(tags(clients, description.table_arn())),
        self::scaling(clients, &description),
    )?;
    let (partition_key, sort_key) = key(&description, description.key_schema())?;
    let mut indexes = Vec::new();
    for index in description.global_secondary_indexes() {
        indexes.push(self::index(&description, index)?);
    }
    Ok(Some(Observed {
        status: description.table_status().map_or("?", |status| status.as_str()).to_owned(),
        partition_key,
        sort_key,
        indexes,
        stream: description
            .stream_specification()
            .filter(|stream| stream.stream_enabled())
            .and_then(|stream| stream.stream_view_type())
            .and_then(|view| StreamView::parse(view.as_str())),
        units: units(&description),
        class: description
            .table_class_summary()
            .and_then(|summary| summary.table_class())
            .and_then(|class| TableClass::parse(class.as_str()))
            .unwrap_or(TableClass::Standard),
        encryption: description
            .sse_description()
            .and_then(|sse| sse.kms_master_key_arn())
            .map_or(Encryption::AwsOwned, |arn| Encryption::Customer(arn.to_owned())),
        deletion_protection: description.deletion_protection_enabled().unwrap_or(false),
        replicas: replicas(&description),
        ttl_attribute,
        recovery_days,
        tags,
        scaling,
        items: counted(description.item_count()),
        bytes: counted(description.table_size_bytes()),
        created: description.creation_date_time().map(|time| time.secs()),
        restored_from: description
            .restore_summary()
            .and_then(|summary| summary.source_table_arn())
            .and_then(|arn| arn.rsplit('/').next())
            .map(str::to_owned),
    }))
}

/// What Application Auto Scaling does for the table and its indexes: targets with a policy of ours, or without any.
pub async fn scaling(
    clients: &Clients,
    description: &TableDescription,
) -> Result<Feature<Scaling>, CloudError> {
    feature(scaling_of(clients, description)).await
}

async fn feature<T>(
    value: impl Future<Output = Result<T, CloudError>>,
) -> Result<Feature<T>, CloudError> {
    match value.await {
        Ok(value) => Ok(Feature::Known(value)),
        Err(CloudError::Unsupported) => Ok(Feature::Unsupported),
        Err(error) => Err(error),
    }
}

fn counted(count: Option<i64>) -> u64 {
    count.and_then(|count| u64::try_from(count).ok()).unwrap_or(0)
}

pub async fn describe(
    clients: &Clients,
    table: &str,
) -> Result<Option<TableDescription>, CloudError> {
    match clients.dynamodb.describe_table().table_name(table).send().await {
        Ok(output) => Ok(output.table),
        Err(error) => match error.as_service_error() {
            Some(service) if service.is_resource_not_found_exception() => Ok(None),
            _ => Err(cloud_error(&error)),
        },
    }
}

async fn ttl(clients: &Clients, table: &str) -> Result<Option<String>, CloudError> {
    let answer = clients.dynamodb.describe_time_to_live().table_name(table).send().await;
    let answer = answer.map_err(|error| cloud_error(&error))?;
    let on = [TimeToLiveStatus::Enabled, TimeToLiveStatus::Enabling];
    let description = answer.time_to_live_description();
    let enabled = description
        .filter(|ttl| ttl.time_to_live_status().is_some_and(|status| on.contains(status)));
    Ok(enabled.and_then(|ttl| ttl.attribute_name()).map(str::to_owned))
}

async fn recovery(clients: &Clients, table: &str) -> Result<Option<u8>, CloudError> {
    let answer = clients.dynamodb.describe_continuous_backups().table_name(table).send().await;
    let answer = answer.map_err(|error| cloud_error(&error))?;
    let recovery = answer
        .continuous_backups_description()
        .and_then(|backups| backups.point_in_time_recovery_description());
    let enabled = recovery.filter(|recovery| {
        recovery.point_in_time_recovery_status() == Some(&PointInTimeRecoveryStatus::Enabled)
    });
    Ok(enabled.map(|recovery| {
        let days = recovery.recovery_period_in_days().and_then(|days| u8::try_from(days).ok());
        days.unwrap_or(DEFAULT_RECOVERY_DAYS)
    }))
}

async fn tags(
    clients: &Clients,
    arn: Option<&str>,
) -> Result<BTreeMap<String, String>, CloudError> {
    let Some(arn) = arn else { return Err(CloudError::Unsupported) };
    let (mut tags, mut from) = (BTreeMap::new(), None);
    for _ in 0..MAX_PAGES {
        let list = clients.dynamodb.list_tags_of_resource().resource_arn(arn);
        let page = list.set_next_token(from).send().await.map_err(|error| cloud_error(&error))?;
        tags.extend(page.tags().iter().map(|tag| (tag.key().to_owned(), tag.value().to_owned())));
        from = page.next_token;
        if from.is_none() {
            break;
        }
    }
    Ok(tags)
}

async fn scaling_of(
    clients: &Clients,
    description: &TableDescription,
) -> Result<Scaling, CloudError> {
    let table = description.table_name().unwrap_or_default();
    let indexes = description.global_secondary_indexes();
    let indexes = indexes.iter().filter_map(|index| index.index_name());
    let resources: Vec<_> = [""].into_iter().chain(indexes).collect();
    let ids: Vec<_> = resources.iter().map(|resource| resource_id(table, resource)).collect();
    let (mut targets, mut from) = (Vec::new(), None);
    for _ in 0..MAX_PAGES {
        let list = clients
            .scaling
            .describe_scalable_targets()
            .service_namespace(ServiceNamespace::Dynamodb)
            .set_resource_ids(Some(ids.clone()))
            .set_next_token(from);
        let page = list.send().await.map_err(|error| cloud_error(&error))?;
        targets.extend(page.scalable_targets().iter().filter_map(|target| {
            let at = ids.iter().position(|id| id == target.resource_id())?;
            Some((resources[at].to_owned(), target.clone()))
        }));
        from = page.next_token;
        if from.is_none() {
            break;
        }
    }
    let mut scaling = Scaling::new();
    for (resource, target) in targets {
        let dimension = match target.scalable_dimension() {
            ScalableDimension::DynamoDbTableReadCapacityUnits
            | ScalableDimension::DynamoDbIndexReadCapacityUnits => Dimension::Read,
            ScalableDimension::DynamoDbTableWriteCapacityUnits
            | ScalableDimension::DynamoDbIndexWriteCapacityUnits => Dimension::Write,
            _ => continue,
        };
        let units = |units: i32| u64::try_from(units).unwrap_or(0);
        scaling.insert(
            (resource.clone(), dimension),
            Autoscaling {
                min: units(target.min_capacity()),
                max: units(target.max_capacity()),
                target_percent: target_percent(clients, table, &resource, dimension).await?,
            },
        );
    }
    Ok(scaling)
}

/// By our policy; 0: there is none.
async fn target_percent(
    clients: &Clients,
    table: &str,
    resource: &str,
    dimension: Dimension,
) -> Result<u8, CloudError> {
    let policies = clients
        .scaling
        .describe_scaling_policies()
        .service_namespace(ServiceNamespace::Dynamodb)
        .resource_id(resource_id(table, resource))
        .policy_names(policy_name(dimension))
        .send()
        .await
        .map_err(|error| cloud_error(&error))?;
    let ours = |policy: &&aws_sdk_applicationautoscaling::types::ScalingPolicy| {
        policy.policy_name() == policy_name(dimension)
    };
    let policy = policies.scaling_policies().iter().find(ours);
    let tracking = policy.and_then(|policy| policy.target_tracking_scaling_policy_configuration());
    // A fraction would not be ours, and 0 is what is set anew.
    Ok(tracking.map_or(0, |tracking| {
        let target = tracking.target_value();
        let whole = (1..=100_u8).find(|percent| (f64::from(*percent) - target).abs() < 1e-6);
        whole.unwrap_or(0)
    }))
}

fn key(
    description: &TableDescription,
    schema: &[KeySchemaElement],
) -> Result<(KeyAttribute, Option<KeyAttribute>), CloudError> {
    let attribute = |kind: AwsKeyType| {
        let name = schema.iter().find(|part| *part.key_type() == kind)?.attribute_name();
        let definitions = description.attribute_definitions();
        let definition = definitions.iter().find(|known| known.attribute_name() == name)?;
        let key_type = KeyType::parse(definition.attribute_type().as_str())?;
        Some(KeyAttribute { name: name.to_owned(), key_type })
    };
    let unreadable = || CloudError::Refused {
        code: "Unreadable".to_owned(),
        detail: "a table's description has no key".to_owned(),
    };
    Ok((attribute(AwsKeyType::Hash).ok_or_else(unreadable)?, attribute(AwsKeyType::Range)))
}

fn index(
    description: &TableDescription,
    index: &GlobalSecondaryIndexDescription,
) -> Result<ObservedIndex, CloudError> {
    let (partition_key, sort_key) = key(description, index.key_schema())?;
    let projection = index.projection();
    let projection = match projection.and_then(|projection| projection.projection_type()) {
        Some(ProjectionType::KeysOnly) => Projection::KeysOnly,
        Some(ProjectionType::Include) => {
            let names = projection.map(|projection| projection.non_key_attributes().to_vec());
            Projection::Include(names.unwrap_or_default())
        }
        _ => Projection::All,
    };
    Ok(ObservedIndex {
        spec: IndexSpec {
            name: index.index_name().unwrap_or_default().to_owned(),
            partition_key,
            sort_key,
            projection,
            throughput: None,
        },
        active: index.index_status().is_none_or(|status| *status == IndexStatus::Active),
        items: counted(index.item_count()),
        bytes: counted(index.index_size_bytes()),
    })
}

fn units(description: &TableDescription) -> Option<BTreeMap<Resource, (u64, u64)>> {
    let billing = description.billing_mode_summary().and_then(|summary| summary.billing_mode());
    if billing == Some(&BillingMode::PayPerRequest) {
        return None;
    }
    let table = description.provisioned_throughput().map(|units| (String::new(), units));
    let indexes = description.global_secondary_indexes().iter().filter_map(|index| {
        Some((index.index_name()?.to_owned(), index.provisioned_throughput()?))
    });
    let unsigned = |units: Option<i64>| units.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    let all = table.into_iter().chain(indexes).map(|(resource, units)| {
        (resource, (unsigned(units.read_capacity_units()), unsigned(units.write_capacity_units())))
    });
    Some(all.collect())
}

fn replicas(description: &TableDescription) -> BTreeMap<Region, bool> {
    let replicas = description.replicas().iter().filter_map(|replica| {
        let region = Region::new(replica.region_name()?).ok()?;
        let status = replica.replica_status();
        Some((region, status.is_none_or(|status| *status == ReplicaStatus::Active)))
    });
    // Some emulators count the table itself.
    let own = description.table_arn().and_then(|arn| arn.split(':').nth(3));
    replicas.filter(|(region, _)| Some(region.as_str()) != own).collect()
}

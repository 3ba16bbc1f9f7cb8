//! Requests that make and change tables.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::operation::create_table::builders::CreateTableFluentBuilder;
use aws_sdk_dynamodb::operation::update_table::builders::UpdateTableFluentBuilder;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, CreateGlobalSecondaryIndexAction, GlobalSecondaryIndex,
    GlobalSecondaryIndexUpdate, KeySchemaElement, KeyType, Projection as AwsProjection,
    ProjectionType, ProvisionedThroughput, SseSpecification, SseType, StreamSpecification, Tag,
    UpdateGlobalSecondaryIndexAction,
};

use super::incomplete;
use crate::cells::cloud::CloudError;
use crate::cells::plan::Wanted;
use crate::cells::table_set::{
    Billing, Encryption, IndexSpec, KeyAttribute, Projection, TableSpec, Throughput,
};

/// With all that can be given at once. Not protected from deletion yet: that comes last.
pub fn create(client: &Client, wanted: &Wanted) -> Result<CreateTableFluentBuilder, CloudError> {
    let spec = &wanted.spec;
    let mut request = client
        .create_table()
        .table_name(&wanted.name)
        .set_key_schema(Some(key_schema(&spec.partition_key, spec.sort_key.as_ref())?))
        .set_attribute_definitions(Some(definitions(spec, &spec.indexes)?))
        .table_class(spec.class.as_str().into())
        .set_tags(Some(tags(&wanted.tags)?));
    if spec.encryption != Encryption::AwsOwned {
        request = request.sse_specification(encryption(&spec.encryption));
    }
    for index in &spec.indexes {
        let index = GlobalSecondaryIndex::builder()
            .index_name(&index.name)
            .set_key_schema(Some(key_schema(&index.partition_key, index.sort_key.as_ref())?))
            .projection(projection(&index.projection))
            .set_provisioned_throughput(index.throughput.as_ref().map(throughput).transpose()?);
        request = request.global_secondary_indexes(index.build().map_err(incomplete)?);
    }
    if let Some(view) = spec.stream {
        let stream = StreamSpecification::builder().stream_enabled(true);
        let stream = stream.stream_view_type(view.as_str().into()).build().map_err(incomplete)?;
        request = request.stream_specification(stream);
    }
    Ok(match &spec.billing {
        Billing::OnDemand => request.billing_mode(BillingMode::PayPerRequest),
        Billing::Provisioned(units) => request
            .billing_mode(BillingMode::Provisioned)
            .provisioned_throughput(throughput(units)?),
    })
}

pub fn set_provisioned(
    request: UpdateTableFluentBuilder,
    units: &Throughput,
    indexes: &[IndexSpec],
) -> Result<UpdateTableFluentBuilder, CloudError> {
    let mut request =
        request.billing_mode(BillingMode::Provisioned).provisioned_throughput(throughput(units)?);
    for index in indexes {
        if let Some(units) = &index.throughput {
            request = request
                .global_secondary_index_updates(index_units(&index.name, throughput(units)?)?);
        }
    }
    Ok(request)
}

pub fn set_units(
    request: UpdateTableFluentBuilder,
    resource: &str,
    read: u64,
    write: u64,
) -> Result<UpdateTableFluentBuilder, CloudError> {
    let units = provisioned(read, write)?;
    Ok(match resource {
        "" => request.provisioned_throughput(units),
        index => request.global_secondary_index_updates(index_units(index, units)?),
    })
}

pub fn add_index(
    request: UpdateTableFluentBuilder,
    index: &IndexSpec,
    spec: &TableSpec,
) -> Result<UpdateTableFluentBuilder, CloudError> {
    let create = CreateGlobalSecondaryIndexAction::builder()
        .index_name(&index.name)
        .set_key_schema(Some(key_schema(&index.partition_key, index.sort_key.as_ref())?))
        .projection(projection(&index.projection))
        .set_provisioned_throughput(index.throughput.as_ref().map(throughput).transpose()?);
    let create = create.build().map_err(incomplete)?;
    Ok(request
        .set_attribute_definitions(Some(definitions(spec, std::slice::from_ref(index))?))
        .global_secondary_index_updates(
            GlobalSecondaryIndexUpdate::builder().create(create).build(),
        ))
}

pub fn encryption(encryption: &Encryption) -> SseSpecification {
    let kms = SseSpecification::builder().enabled(true).sse_type(SseType::Kms);
    match encryption {
        Encryption::AwsOwned => SseSpecification::builder().enabled(false).build(),
        Encryption::AwsManaged => kms.build(),
        Encryption::Customer(arn) => kms.kms_master_key_id(arn).build(),
    }
}

pub fn tags(tags: &BTreeMap<String, String>) -> Result<Vec<Tag>, CloudError> {
    let tag = |(key, value)| Tag::builder().key(key).value(value).build().map_err(incomplete);
    tags.iter().map(tag).collect()
}

fn index_units(
    index: &str,
    units: ProvisionedThroughput,
) -> Result<GlobalSecondaryIndexUpdate, CloudError> {
    let update = UpdateGlobalSecondaryIndexAction::builder().index_name(index);
    let update = update.provisioned_throughput(units).build().map_err(incomplete)?;
    Ok(GlobalSecondaryIndexUpdate::builder().update(update).build())
}

fn throughput(units: &Throughput) -> Result<ProvisionedThroughput, CloudError> {
    provisioned(units.read.units, units.write.units)
}

fn provisioned(read: u64, write: u64) -> Result<ProvisionedThroughput, CloudError> {
    let units = |units: u64| i64::try_from(units).unwrap_or(i64::MAX);
    ProvisionedThroughput::builder()
        .read_capacity_units(units(read))
        .write_capacity_units(units(write))
        .build()
        .map_err(incomplete)
}

fn key_schema(
    partition: &KeyAttribute,
    sort: Option<&KeyAttribute>,
) -> Result<Vec<KeySchemaElement>, CloudError> {
    let parts = [(Some(partition), KeyType::Hash), (sort, KeyType::Range)];
    let parts = parts.into_iter().filter_map(|(key, kind)| key.map(|key| (key, kind)));
    parts
        .map(|(key, kind)| {
            let element = KeySchemaElement::builder().attribute_name(&key.name).key_type(kind);
            element.build().map_err(incomplete)
        })
        .collect()
}

/// Of every key attribute of the table and of these indexes, each once.
fn definitions(
    spec: &TableSpec,
    indexes: &[IndexSpec],
) -> Result<Vec<AttributeDefinition>, CloudError> {
    let of = |partition, sort| [Some(partition), sort].into_iter().flatten();
    let table = of(&spec.partition_key, spec.sort_key.as_ref());
    let indexes =
        indexes.iter().flat_map(|index| of(&index.partition_key, index.sort_key.as_ref()));
    let attributes: BTreeSet<_> = table.chain(indexes).collect();
    attributes
        .into_iter()
        .map(|key| {
            let definition = AttributeDefinition::builder().attribute_name(&key.name);
            definition.attribute_type(key.key_type.as_str().into()).build().map_err(incomplete)
        })
        .collect()
}

fn projection(projection: &Projection) -> AwsProjection {
    let builder = AwsProjection::builder();
    match projection {
        Projection::KeysOnly => builder.projection_type(ProjectionType::KeysOnly),
        Projection::All => builder.projection_type(ProjectionType::All),
        Projection::Include(names) => builder
            .projection_type(ProjectionType::Include)
            .set_non_key_attributes(Some(names.clone())),
    }
    .build()
}

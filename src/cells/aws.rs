//! Provisioning on AWS: DynamoDB and Application Auto Scaling, in each cell's own Region.
//!
//! An emulator that does not know a call says so, and the feature counts as unsupported there.

mod billed;
mod board;
mod build;
mod meters;
mod observe;
mod recovery;
mod stored;

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::{Region as AwsRegion, SdkConfig};
use aws_sdk_applicationautoscaling::types::{
    MetricType, PolicyType, PredefinedMetricSpecification, ScalableDimension, ServiceNamespace,
    TargetTrackingScalingPolicyConfiguration,
};
use aws_sdk_dynamodb::config::http::HttpResponse;
use aws_sdk_dynamodb::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::types::{
    CreateReplicationGroupMemberAction, DeleteReplicationGroupMemberAction,
    PointInTimeRecoverySpecification, ReplicationGroupUpdate, StreamSpecification,
    TimeToLiveSpecification,
};
use parking_lot::Mutex;

pub use board::AwsBoard;

use super::cloud::{Backup, Cloud, CloudError, Page, Restorable, Restoration, TableRef};
use super::data::Item;
use super::plan::{Change, Dimension, Observed, Wanted};
use super::table_set::{Autoscaling, Billing};
use crate::domain::Region;
use crate::metering::Consumption;
use crate::store::dynamodb::client::{call_timeouts, counting, of_aws};

/// Longest wait for the answer of one call. Calls that change tables take longer than reads.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// Where Cost Explorer is.
const COST_EXPLORER_REGION: &str = "us-east-1";

/// Longest text of the SDK that a `detail` takes over.
const MAX_DETAIL: usize = 400;

/// Codes of answers that pass by themselves.
const BUSY: [&str; 12] = [
    "LimitExceededException",
    "ResourceInUseException",
    "TableInUseException",
    "BackupInUseException",
    "ContinuousBackupsUnavailableException",
    "ReplicatedWriteConflictException",
    "ConcurrentUpdateException",
    "ThrottlingException",
    "Throttling",
    "RequestLimitExceeded",
    "ProvisionedThroughputExceededException",
    "InternalServerError",
];

const UNSUPPORTED: [&str; 5] = [
    "UnknownOperationException",
    "UnknownOperation",
    "NotYetImplemented",
    "NotImplemented",
    "InvalidAction",
];

/// AWS, or an emulator in its place.
pub struct AwsCloud(Regions);

/// Clients for every Region that is asked for.
pub struct Regions {
    config: SdkConfig,
    endpoint: Option<String>,
    consumption: Consumption,
    clients: Mutex<HashMap<Region, Clients>>,
}

#[derive(Clone)]
struct Clients {
    dynamodb: aws_sdk_dynamodb::Client,
    scaling: aws_sdk_applicationautoscaling::Client,
    streams: aws_sdk_dynamodbstreams::Client,
    cloudwatch: aws_sdk_cloudwatch::Client,
}

impl AwsCloud {
    /// Arguments as of [`Regions::new`]; calls get the time that such calls take.
    pub fn new(config: SdkConfig, endpoint: Option<String>, consumption: Consumption) -> Self {
        let timeouts = config.timeout_config().map(|timeouts| {
            let connect = timeouts.connect_timeout().unwrap_or(CALL_TIMEOUT);
            call_timeouts(CALL_TIMEOUT).to_builder().connect_timeout(connect).build()
        });
        let mut builder = config.into_builder();
        builder.set_timeout_config(timeouts);
        Self(Regions::new(builder.build(), endpoint, consumption))
    }
}

impl AwsCloud {
    /// CloudWatch, in the Region of the control tables.
    pub fn board(&self) -> AwsBoard {
        let mut cloudwatch = aws_sdk_cloudwatch::config::Builder::from(&self.0.config);
        cloudwatch.set_endpoint_url(self.0.elsewhere());
        AwsBoard(aws_sdk_cloudwatch::Client::from_conf(cloudwatch.build()))
    }
}

impl Regions {
    /// `endpoint`: DynamoDB's. One that is not AWS's own is asked for everything: an emulator has all its services behind one.
    pub fn new(config: SdkConfig, endpoint: Option<String>, consumption: Consumption) -> Self {
        Self { config, endpoint, consumption, clients: Mutex::default() }
    }

    /// DynamoDB in a Region.
    pub fn dynamodb(&self, region: &Region) -> aws_sdk_dynamodb::Client {
        self.clients(region).dynamodb
    }

    /// DynamoDB Streams in a Region.
    pub fn streams(&self, region: &Region) -> aws_sdk_dynamodbstreams::Client {
        self.clients(region).streams
    }

    /// Where services other than DynamoDB are, if not where AWS has them: an interface endpoint of DynamoDB's serves no others.
    fn elsewhere(&self) -> Option<String> {
        self.endpoint.clone().filter(|endpoint| !of_aws(endpoint))
    }

    /// Cost Explorer, of which there is one for all Regions.
    fn cost_explorer(&self) -> aws_sdk_costexplorer::Client {
        let config = self.config.to_builder().region(AwsRegion::new(COST_EXPLORER_REGION)).build();
        let mut config = aws_sdk_costexplorer::config::Builder::from(&config);
        config.set_endpoint_url(self.elsewhere());
        aws_sdk_costexplorer::Client::from_conf(config.build())
    }

    fn clients(&self, region: &Region) -> Clients {
        let mut clients = self.clients.lock();
        let made = clients.entry(region.clone()).or_insert_with(|| {
            let region = AwsRegion::new(region.as_str().to_owned());
            let config = self.config.to_builder().region(region).build();
            let mut dynamodb = counting(&config, self.consumption.clone());
            let mut scaling = aws_sdk_applicationautoscaling::config::Builder::from(&config);
            let mut streams = aws_sdk_dynamodbstreams::config::Builder::from(&config);
            let mut cloudwatch = aws_sdk_cloudwatch::config::Builder::from(&config);
            dynamodb.set_endpoint_url(self.endpoint.clone());
            let elsewhere = self.elsewhere();
            streams.set_endpoint_url(elsewhere.clone());
            cloudwatch.set_endpoint_url(elsewhere);
            scaling.set_endpoint_url(self.elsewhere());
            Clients {
                dynamodb: aws_sdk_dynamodb::Client::from_conf(dynamodb.build()),
                scaling: aws_sdk_applicationautoscaling::Client::from_conf(scaling.build()),
                streams: aws_sdk_dynamodbstreams::Client::from_conf(streams.build()),
                cloudwatch: aws_sdk_cloudwatch::Client::from_conf(cloudwatch.build()),
            }
        });
        made.clone()
    }
}

#[async_trait]
impl Cloud for AwsCloud {
    async fn observe(&self, table: &TableRef) -> Result<Option<Observed>, CloudError> {
        observe::observe(&self.0.clients(&table.region), &table.name).await
    }

    async fn apply(&self, wanted: &Wanted, change: &Change) -> Result<(), CloudError> {
        let clients = self.0.clients(&wanted.region);
        match change {
            Change::CreateTable => {
                match build::create(&clients.dynamodb, wanted)?.send().await {
                    Ok(_) => Ok(()),
                    // Somebody else is making it at this moment.
                    Err(error) => match error.as_service_error() {
                        Some(service) if service.is_resource_in_use_exception() => Ok(()),
                        _ => Err(cloud_error(&error)),
                    },
                }
            }
            Change::SetTtl(attribute) => {
                let ttl =
                    TimeToLiveSpecification::builder().enabled(true).attribute_name(attribute);
                let ttl = ttl.build().map_err(incomplete)?;
                let request = clients.dynamodb.update_time_to_live().table_name(&wanted.name);
                done(request.time_to_live_specification(ttl).send().await)
            }
            Change::SetRecovery(days) => {
                let recovery = PointInTimeRecoverySpecification::builder()
                    .point_in_time_recovery_enabled(days.is_some())
                    .set_recovery_period_in_days(days.map(i32::from))
                    .build()
                    .map_err(incomplete)?;
                let request = clients.dynamodb.update_continuous_backups().table_name(&wanted.name);
                done(request.point_in_time_recovery_specification(recovery).send().await)
            }
            Change::SetTags(tags) => {
                let description = observe::describe(&clients, &wanted.name).await?;
                let Some(arn) = description.and_then(|description| description.table_arn) else {
                    return Err(CloudError::Busy { code: "the table is gone".to_owned() });
                };
                let request = clients.dynamodb.tag_resource().resource_arn(arn);
                done(request.set_tags(Some(build::tags(tags)?)).send().await)
            }
            Change::SetScaling(resource, dimension, scaling) => {
                set_scaling(&clients, &wanted.name, resource, *dimension, *scaling).await
            }
            Change::RemoveScaling(resource, dimension) => {
                remove_scaling(&clients, &wanted.name, resource, *dimension).await
            }
            _ => update(&clients, wanted, change).await,
        }
    }

    async fn holds_data(&self, table: &TableRef) -> Result<bool, CloudError> {
        let clients = self.0.clients(&table.region);
        let scan = clients.dynamodb.scan().table_name(&table.name).limit(1).consistent_read(true);
        let page = scan.send().await.map_err(|error| cloud_error(&error))?;
        Ok(page.count > 0 || page.last_evaluated_key.is_some())
    }

    async fn backups(&self, table: &TableRef) -> Result<Vec<Backup>, CloudError> {
        recovery::backups(&self.0.clients(&table.region), table).await
    }

    async fn create_backup(&self, table: &TableRef, name: &str) -> Result<(), CloudError> {
        recovery::create_backup(&self.0.clients(&table.region), table, name).await
    }

    async fn delete_backup(&self, table: &TableRef, backup: &Backup) -> Result<(), CloudError> {
        recovery::delete_backup(&self.0.clients(&table.region), backup).await
    }

    async fn restorable(&self, table: &TableRef) -> Result<Restorable, CloudError> {
        recovery::restorable(&self.0.clients(&table.region), table).await
    }

    async fn restore(&self, restoration: &Restoration) -> Result<(), CloudError> {
        recovery::restore(&self.0.clients(&restoration.source.region), restoration).await
    }

    async fn page(&self, table: &TableRef, from: Option<&Item>) -> Result<Page, CloudError> {
        recovery::page(&self.0.clients(&table.region), table, from).await
    }

    async fn delete(&self, table: &TableRef) -> Result<(), CloudError> {
        let clients = self.0.clients(&table.region);
        let Some(description) = observe::describe(&clients, &table.name).await? else {
            return Ok(());
        };
        let scaled = observe::scaling(&clients, &description).await?;
        for (resource, dimension) in scaled.known().into_iter().flat_map(|scaled| scaled.keys()) {
            remove_scaling(&clients, &table.name, resource, *dimension).await?;
        }
        let deleted = clients.dynamodb.delete_table().table_name(&table.name).send().await;
        match deleted {
            Ok(_) => Ok(()),
            Err(error) => match error.as_service_error() {
                Some(service) if service.is_resource_not_found_exception() => Ok(()),
                _ => Err(cloud_error(&error)),
            },
        }
    }
}

/// The changes that are UpdateTable's.
async fn update(clients: &Clients, wanted: &Wanted, change: &Change) -> Result<(), CloudError> {
    let request = clients.dynamodb.update_table().table_name(&wanted.name);
    let request = match change {
        Change::SetBilling(Billing::OnDemand) => {
            request.billing_mode(aws_sdk_dynamodb::types::BillingMode::PayPerRequest)
        }
        Change::SetBilling(Billing::Provisioned(throughput)) => {
            build::set_provisioned(request, throughput, &wanted.spec.indexes)?
        }
        Change::SetUnits(resource, read, write) => {
            build::set_units(request, resource, *read, *write)?
        }
        Change::AddIndex(index) => build::add_index(request, index, &wanted.spec)?,
        Change::SetStream(view) => {
            let stream = StreamSpecification::builder()
                .stream_enabled(view.is_some())
                .set_stream_view_type(view.map(|view| view.as_str().into()));
            request.stream_specification(stream.build().map_err(incomplete)?)
        }
        Change::SetClass(class) => request.table_class(class.as_str().into()),
        Change::SetEncryption(encryption) => {
            request.sse_specification(build::encryption(encryption))
        }
        Change::AddReplica(region) => {
            let create = CreateReplicationGroupMemberAction::builder().region_name(region.as_str());
            let create = create.build().map_err(incomplete)?;
            request.replica_updates(ReplicationGroupUpdate::builder().create(create).build())
        }
        Change::RemoveReplica(region) => {
            let delete = DeleteReplicationGroupMemberAction::builder().region_name(region.as_str());
            let delete = delete.build().map_err(incomplete)?;
            request.replica_updates(ReplicationGroupUpdate::builder().delete(delete).build())
        }
        Change::SetDeletionProtection(on) => request.deletion_protection_enabled(*on),
        // Those of other calls.
        Change::CreateTable
        | Change::SetTtl(_)
        | Change::SetRecovery(_)
        | Change::SetTags(_)
        | Change::SetScaling(..)
        | Change::RemoveScaling(..) => return Ok(()),
    };
    done(request.send().await)
}

/// How Application Auto Scaling names a table or an index of it.
fn resource_id(table: &str, resource: &str) -> String {
    match resource {
        "" => format!("table/{table}"),
        index => format!("table/{table}/index/{index}"),
    }
}

fn scalable(resource: &str, dimension: Dimension) -> ScalableDimension {
    match (resource, dimension) {
        ("", Dimension::Read) => ScalableDimension::DynamoDbTableReadCapacityUnits,
        ("", Dimension::Write) => ScalableDimension::DynamoDbTableWriteCapacityUnits,
        (_, Dimension::Read) => ScalableDimension::DynamoDbIndexReadCapacityUnits,
        (_, Dimension::Write) => ScalableDimension::DynamoDbIndexWriteCapacityUnits,
    }
}

/// The name of our policy of a dimension.
fn policy_name(dimension: Dimension) -> String {
    format!("cell-directory-{}", dimension.as_str())
}

async fn set_scaling(
    clients: &Clients,
    table: &str,
    resource: &str,
    dimension: Dimension,
    scaling: Autoscaling,
) -> Result<(), CloudError> {
    let id = resource_id(table, resource);
    let units = |units: u64| i32::try_from(units).unwrap_or(i32::MAX);
    let register = clients
        .scaling
        .register_scalable_target()
        .service_namespace(ServiceNamespace::Dynamodb)
        .resource_id(&id)
        .scalable_dimension(scalable(resource, dimension))
        .min_capacity(units(scaling.min))
        .max_capacity(units(scaling.max));
    done(register.send().await)?;
    let metric = match dimension {
        Dimension::Read => MetricType::DynamoDbReadCapacityUtilization,
        Dimension::Write => MetricType::DynamoDbWriteCapacityUtilization,
    };
    let metric = PredefinedMetricSpecification::builder().predefined_metric_type(metric);
    let policy = TargetTrackingScalingPolicyConfiguration::builder()
        .target_value(f64::from(scaling.target_percent))
        .predefined_metric_specification(metric.build().map_err(incomplete)?);
    let put = clients
        .scaling
        .put_scaling_policy()
        .policy_name(policy_name(dimension))
        .service_namespace(ServiceNamespace::Dynamodb)
        .resource_id(id)
        .scalable_dimension(scalable(resource, dimension))
        .policy_type(PolicyType::TargetTrackingScaling)
        .target_tracking_scaling_policy_configuration(policy.build().map_err(incomplete)?);
    done(put.send().await)
}

async fn remove_scaling(
    clients: &Clients,
    table: &str,
    resource: &str,
    dimension: Dimension,
) -> Result<(), CloudError> {
    let removed = clients
        .scaling
        .deregister_scalable_target()
        .service_namespace(ServiceNamespace::Dynamodb)
        .resource_id(resource_id(table, resource))
        .scalable_dimension(scalable(resource, dimension))
        .send()
        .await;
    match removed {
        Ok(_) => Ok(()),
        Err(error) => match error.as_service_error() {
            Some(service) if service.is_object_not_found_exception() => Ok(()),
            _ => Err(cloud_error(&error)),
        },
    }
}

fn done<T, E>(answer: Result<T, SdkError<E, HttpResponse>>) -> Result<(), CloudError>
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    answer.map(|_| ()).map_err(|error| cloud_error(&error))
}

fn incomplete(error: impl std::fmt::Display) -> CloudError {
    CloudError::Refused { code: "IncompleteRequest".to_owned(), detail: error.to_string() }
}

fn cloud_error<E>(error: &SdkError<E, HttpResponse>) -> CloudError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let SdkError::ServiceError(failure) = error else {
        return CloudError::Busy { code: "no answer".to_owned() };
    };
    let status = failure.raw().status().as_u16();
    // An emulator of DynamoDB alone may not even read another service's call.
    let unread = status == 404 && failure.err().code().is_none();
    let code = failure.err().code().unwrap_or("no code").to_owned();
    if UNSUPPORTED.contains(&code.as_str()) || status == 501 || unread {
        CloudError::Unsupported
    } else if BUSY.contains(&code.as_str()) || status >= 500 || status == 429 {
        CloudError::Busy { code }
    } else {
        let detail = DisplayErrorContext(error).to_string().chars().take(MAX_DETAIL).collect();
        CloudError::Refused { code, detail }
    }
}

//! Backups, restores and reads of whole tables.

use aws_sdk_dynamodb::primitives::DateTime;
use aws_sdk_dynamodb::types::{
    BackupStatus, BillingMode, PointInTimeRecoveryDescription, PointInTimeRecoveryStatus,
};

use super::observe::DEFAULT_RECOVERY_DAYS;
use super::{Clients, cloud_error, done};
use crate::cells::cloud::{
    Backup, CloudError, Page, Restorable, Restoration, RestoreFrom, TableRef,
};
use crate::cells::data::Item;
use crate::domain::Timestamp;

/// Most pages of a table's backups, of up to 100 each.
const MAX_PAGES: usize = 100;

/// Codes of a table that is not there.
const NO_TABLE: [&str; 2] = ["TableNotFoundException", "ResourceNotFoundException"];

pub async fn backups(clients: &Clients, table: &TableRef) -> Result<Vec<Backup>, CloudError> {
    let (mut backups, mut from) = (Vec::new(), None);
    for _ in 0..MAX_PAGES {
        let list = clients.dynamodb.list_backups().table_name(&table.name);
        let page = list.set_exclusive_start_backup_arn(from).send().await;
        let page = page.map_err(|error| cloud_error(&error))?;
        backups.extend(page.backup_summaries().iter().filter_map(|summary| {
            let status = summary.backup_status().filter(|is| **is != BackupStatus::Deleted)?;
            Some(Backup {
                name: summary.backup_name()?.to_owned(),
                arn: summary.backup_arn()?.to_owned(),
                available: *status == BackupStatus::Available,
                created: summary.backup_creation_date_time().and_then(timestamp)?,
                bytes: summary.backup_size_bytes().and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
            })
        }));
        from = page.last_evaluated_backup_arn;
        if from.is_none() {
            return Ok(backups);
        }
    }
    // One that is not seen would be made again.
    Err(CloudError::Refused {
        code: "TooManyBackups".to_owned(),
        detail: format!("table {} has more backups than are read", table.name),
    })
}

pub async fn create_backup(
    clients: &Clients,
    table: &TableRef,
    name: &str,
) -> Result<(), CloudError> {
    let create = clients.dynamodb.create_backup().table_name(&table.name).backup_name(name);
    done(create.send().await)
}

pub async fn delete_backup(clients: &Clients, backup: &Backup) -> Result<(), CloudError> {
    let deleted = clients.dynamodb.delete_backup().backup_arn(&backup.arn).send().await;
    match deleted {
        Ok(_) => Ok(()),
        Err(error) => match error.as_service_error() {
            Some(service) if service.is_backup_not_found_exception() => Ok(()),
            _ => Err(cloud_error(&error)),
        },
    }
}

pub async fn restorable(clients: &Clients, table: &TableRef) -> Result<Restorable, CloudError> {
    let request = clients.dynamodb.describe_continuous_backups().table_name(&table.name);
    let answer = match request.send().await.map_err(|error| cloud_error(&error)) {
        Err(CloudError::Refused { code, .. }) if NO_TABLE.contains(&code.as_str()) => {
            return Ok(Restorable::NoTable);
        }
        answer => answer?,
    };
    let description = answer.continuous_backups_description();
    let recovery = description.and_then(|backups| backups.point_in_time_recovery_description());
    Ok(recovery.and_then(between).unwrap_or(Restorable::Off))
}

fn between(recovery: &PointInTimeRecoveryDescription) -> Option<Restorable> {
    let status = recovery.point_in_time_recovery_status()?;
    let days = recovery.recovery_period_in_days().and_then(|days| u8::try_from(days).ok());
    (*status == PointInTimeRecoveryStatus::Enabled).then_some(())?;
    Some(Restorable::Between {
        earliest: recovery.earliest_restorable_date_time().and_then(timestamp)?,
        latest: recovery.latest_restorable_date_time().and_then(timestamp)?,
        days: days.unwrap_or(DEFAULT_RECOVERY_DAYS),
    })
}

pub async fn restore(clients: &Clients, restoration: &Restoration) -> Result<(), CloudError> {
    let Restoration { source, target, from, on_demand } = restoration;
    let billing = on_demand.then_some(BillingMode::PayPerRequest);
    let restored = match from {
        RestoreFrom::Backup(arn) => {
            let request = clients.dynamodb.restore_table_from_backup().backup_arn(arn);
            done(request.target_table_name(target).set_billing_mode_override(billing).send().await)
        }
        RestoreFrom::PointInTime(point) => {
            let request =
                clients.dynamodb.restore_table_to_point_in_time().target_table_name(target);
            let request = request.source_table_name(&source.name);
            let request = request.restore_date_time(DateTime::from_millis(point.millis()));
            done(request.set_billing_mode_override(billing).send().await)
        }
    };
    match restored {
        // It was begun already, and does not show yet.
        Err(CloudError::Refused { code, .. }) if code == "TableAlreadyExistsException" => {
            Err(CloudError::Busy { code })
        }
        restored => restored,
    }
}

pub async fn page(
    clients: &Clients,
    table: &TableRef,
    from: Option<&Item>,
) -> Result<Page, CloudError> {
    let scan = clients.dynamodb.scan().table_name(&table.name).consistent_read(true);
    let page = scan.set_exclusive_start_key(from.cloned()).send().await;
    let page = page.map_err(|error| cloud_error(&error))?;
    Ok(Page { items: page.items.unwrap_or_default(), next: page.last_evaluated_key })
}

fn timestamp(time: &DateTime) -> Option<Timestamp> {
    time.to_millis().ok().and_then(Timestamp::from_millis)
}

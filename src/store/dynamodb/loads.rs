//! Loads of cells, and whose turn it is to measure them.

use async_trait::async_trait;

use super::DynamoDbStore;
use super::attributes::{Reader, json, number, seconds_rounded_up};
use super::call::Call;
use super::records::key;
use super::schema::control::{MEASURED_AT, PK, RECORD, TURN};
use super::schema::{ControlKey, LOADS_PK, TTL};
use crate::domain::Timestamp;
use crate::metering::{LoadRecord, LoadRecords};
use crate::store::StoreError;

/// How long a record is kept that nobody renews: its cell is gone, or nothing is measured any more.
const KEPT: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

#[async_trait]
impl LoadRecords for DynamoDbStore {
    async fn loads(&self) -> Result<Vec<LoadRecord>, StoreError> {
        let table = self.names.control();
        let items = self.control_partition(LOADS_PK).await?;
        // The turn is kept in the same partition.
        let loads = items.iter().filter(|item| item.contains_key(RECORD));
        loads.map(|item| Reader { table, item }.json(RECORD)).collect()
    }

    async fn put_load(
        &self,
        record: &LoadRecord,
        replaces: Option<Timestamp>,
    ) -> Result<bool, StoreError> {
        let table = self.names.control();
        let mut item = key(&ControlKey::Load(record.cell.clone()));
        item.insert(RECORD.to_owned(), json(record)?);
        item.insert(MEASURED_AT.to_owned(), number(record.at.millis()));
        item.insert(TTL.to_owned(), number(seconds_rounded_up(record.at.plus(KEPT))));
        let put = self.client.put_item().table_name(table).set_item(Some(item));
        let put = match replaces {
            None => put.condition_expression(format!("attribute_not_exists({PK})")),
            Some(at) => put
                .condition_expression("#at = :at")
                .expression_attribute_names("#at", MEASURED_AT)
                .expression_attribute_values(":at", number(at.millis())),
        };
        Ok(Call::new("PutItem", &[table]).unless_refused(put.send()).await?.is_some())
    }

    async fn take_turn(&self, turn: i64, ahead: i64) -> Result<bool, StoreError> {
        let table = self.names.control();
        let update = self
            .client
            .update_item()
            .table_name(table)
            .set_key(Some(key(&ControlKey::LoadTurn)))
            .update_expression("SET #turn = :turn")
            .condition_expression("attribute_not_exists(#turn) OR #turn < :turn OR #turn > :ahead")
            .expression_attribute_names("#turn", TURN)
            .expression_attribute_values(":turn", number(turn))
            .expression_attribute_values(":ahead", number(turn.saturating_add(ahead)));
        Ok(Call::new("UpdateItem", &[table]).unless_refused(update.send()).await?.is_some())
    }
}

//! Tenants' items, read and written in the cells where the tenants live.
//!
//! A write is a plain call of DynamoDB's for as long as this process holds a lease on the tenant's placement. Otherwise, and while a
//! tenant moves, it is a transaction with a check of the tenant's guard, at double the price; it needs no replica of the directory, and
//! follows the tenant to its new cell. [`cells_guard::writer`] has the contract in full, and what is repeated after an answer was lost.
//!
//! ```no_run
//! # async fn example(config: aws_sdk_dynamodb::Config) -> Result<(), Box<dyn std::error::Error>> {
//! use aws_sdk_dynamodb::types::AttributeValue;
//! use cells_client::Directory;
//! use cells_client::data::{Expression, Reads, Write};
//!
//! let directory = Directory::connect(["http://127.0.0.1:7070"]).await?;
//! let data = directory.data(config)?;
//! let text = |text: &str| AttributeValue::S(text.to_owned());
//! let key = || [("PK".to_owned(), text("CUSTOMER#a")), ("SK".to_owned(), text("ORDER#1"))].into();
//!
//! data.put("a", "Orders", key()).await?;
//! let paid = Expression::new("SET Paid = :yes").value(":yes", AttributeValue::Bool(true));
//! data.write("a", Write::update("Orders", key(), paid).only_if(Expression::new("attribute_exists(PK)"))).await?;
//! let order = data.get("a", "Orders", key(), Reads::Strict).await?;
//! # Ok(())
//! # }
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::{Config, Region};
use cells_guard::writer::{Home, KnownGuards, Route, Routes, Writer};
use cells_guard::{CellTable, CellTables, KeyType, MarkingClient};
use parking_lot::Mutex;

use crate::answer::Answer;
use crate::clock::Moment;
use crate::directory::Directory;
use crate::error::{Error, Failure};
use crate::fetch::Question;
use crate::held::WriteMode;
use crate::proto;

pub use cells_guard::Item;
pub use cells_guard::writer::{
    Action, Busy, Call, Expression, Found, How, MAX_WRITES, Options, Query, Reads, Write, Written,
};

/// Why a read or a write was not done. Only after `Unknown` may a write have been done.
pub type DataError = cells_guard::writer::Error<Error>;

/// Reads and writes tenants' items. Cheap to clone.
#[derive(Clone)]
pub struct Data {
    writer: Arc<Writer<Homes>>,
}

impl Directory {
    /// Tenants' items, by calls of DynamoDB with this configuration: credentials, timeouts, HTTP client and endpoint are taken from it,
    /// the Region is the cell's. The SDK's own retries are switched off: one that finds what it wrote itself would make a success a
    /// failed condition.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`] if the configuration has no HTTP client of its own.
    pub fn data(&self, dynamodb: Config) -> Result<Data, Error> {
        self.data_with(dynamodb, Options::default())
    }

    /// The same, with another patience.
    ///
    /// # Errors
    ///
    /// As of [`Directory::data`].
    pub fn data_with(&self, dynamodb: Config, options: Options) -> Result<Data, Error> {
        let Some(http) = dynamodb.http_client() else {
            return Err(Error::InvalidOption {
                option: "dynamodb",
                problem: "has no HTTP client; set one with `http_client`".to_owned(),
            });
        };
        // It tells what was never sent from what may have been done.
        let config = dynamodb
            .to_builder()
            .http_client(MarkingClient(http))
            .retry_config(RetryConfig::disabled())
            .build();
        let (directory, made) = (self.clone(), Mutex::default());
        let homes = Homes { directory, config, made };
        let writer = Writer::new(homes, options, Arc::new(KnownGuards::default()));
        Ok(Data { writer: Arc::new(writer) })
    }
}

impl Data {
    /// Writes an item in place of what is there.
    ///
    /// # Errors
    ///
    /// Only after `Unknown` may it have been done.
    pub async fn put(&self, tenant: &str, table: &str, item: Item) -> Result<Written, DataError> {
        self.write(tenant, Write::put(table, item)).await
    }

    /// Changes an item, or makes it.
    ///
    /// # Errors
    ///
    /// As of [`Data::put`].
    pub async fn update(
        &self,
        tenant: &str,
        table: &str,
        key: Item,
        update: Expression,
    ) -> Result<Written, DataError> {
        self.write(tenant, Write::update(table, key, update)).await
    }

    /// Removes an item.
    ///
    /// # Errors
    ///
    /// As of [`Data::put`].
    pub async fn delete(&self, tenant: &str, table: &str, key: Item) -> Result<Written, DataError> {
        self.write(tenant, Write::delete(table, key)).await
    }

    /// Does one write, if its condition holds.
    ///
    /// # Errors
    ///
    /// As of [`Data::put`].
    pub async fn write(&self, tenant: &str, write: Write) -> Result<Written, DataError> {
        self.write_with(tenant, write, Call::default()).await
    }

    /// The same, with a deadline.
    ///
    /// # Errors
    ///
    /// As of [`Data::put`].
    pub async fn write_with(
        &self,
        tenant: &str,
        write: Write,
        call: Call,
    ) -> Result<Written, DataError> {
        self.writer.write(tenant, write, call).await
    }

    /// Does all writes of a tenant, in any of its tables, or none: 1 to [`MAX_WRITES`], each of another item.
    ///
    /// # Errors
    ///
    /// As of [`Data::put`].
    pub async fn transact(
        &self,
        tenant: &str,
        writes: &[Write],
        call: Call,
    ) -> Result<Written, DataError> {
        self.writer.transact(tenant, writes, call).await
    }

    /// Reads one item.
    ///
    /// # Errors
    ///
    /// Never `Unknown`.
    pub async fn get(
        &self,
        tenant: &str,
        table: &str,
        key: Item,
        reads: Reads,
    ) -> Result<Option<Item>, DataError> {
        self.writer.get(tenant, table, key, reads, Call::default()).await
    }

    /// Reads a page of items of one of the tenant's partitions.
    ///
    /// # Errors
    ///
    /// Never `Unknown`.
    pub async fn query(&self, tenant: &str, query: &Query) -> Result<Found, DataError> {
        self.writer.query(tenant, query, Call::default()).await
    }
}

/// Where tenants live, by this process's own directory.
struct Homes {
    directory: Directory,
    config: Config,
    /// By cell.
    made: Mutex<HashMap<Box<str>, Made>>,
}

/// A home, and what it was made of.
struct Made {
    tables: Arc<proto::CellTables>,
    region: Box<str>,
    home: Home,
}

impl Homes {
    fn of(&self, cell: &crate::Cell) -> Result<Home, Error> {
        let no_tables = || Error::NoTables { cell: cell.id.to_string() };
        let tables = cell.tables.as_ref().ok_or_else(no_tables)?;
        let mut made = self.made.lock();
        if let Some(known) = made.get(&cell.id)
            && Arc::ptr_eq(&known.tables, tables)
            && known.region == cell.region
        {
            return Ok(known.home.clone());
        }
        let mut config = self.config.to_builder();
        if !cell.region.is_empty() {
            config = config.region(Region::new(cell.region.to_string()));
        }
        let client = aws_sdk_dynamodb::Client::from_conf(config.build());
        let of = Arc::new(cell_tables(tables).ok_or_else(no_tables)?);
        let home = Home { cell: cell.id.as_ref().into(), tables: of, client };
        let (tables, region) = (tables.clone(), cell.region.clone());
        made.insert(cell.id.clone(), Made { tables, region, home: home.clone() });
        Ok(home)
    }

    /// Asks the replicas, one after the other, which tables a tenant's cell has.
    async fn ask_for_tables(&self, tenant: &str) -> Result<(), Error> {
        let core = &self.directory.handle.core;
        let request = proto::BatchResolveRequest {
            partition_keys: vec![tenant.to_owned()],
            mode: proto::ResolveMode::LookupOnly.into(),
            constraints: None,
            fallback: proto::FallbackPolicy::Refuse.into(),
            cell_tables: true,
        };
        let mut failure = Failure::passing("no endpoint answered");
        for endpoint in 0..core.transport.endpoints() {
            let asked = core.transport.batch_resolve(endpoint, request.clone());
            match tokio::time::timeout(core.options.attempt_timeout, asked).await {
                Ok(Ok(answer)) => {
                    for (id, address) in answer.cells {
                        if let Some(tables) = address.tables {
                            core.shared.cells.tables(&id, tables, answer.sequence);
                        }
                    }
                    return Ok(());
                }
                Ok(Err(failed)) => failure = failed,
                Err(_elapsed) => {}
            }
        }
        Err(failure.into_error())
    }

    fn route_of(&self, answer: &Answer<'_>) -> Result<Route<Moment>, Error> {
        let mode = match answer.write_mode() {
            WriteMode::Logged => cells_migration::WriteMode::Logged,
            WriteMode::Direct | WriteMode::Unknown => cells_migration::WriteMode::Direct,
        };
        Ok(Route {
            home: self.of(answer.cell())?,
            // A guess has none, and the guard tells.
            epoch: answer.is_authoritative().then(|| answer.epoch()).filter(|epoch| *epoch > 0),
            mode,
            lease: answer.may_write_directly().then_some(answer.resolved.lease_until),
        })
    }
}

impl Routes for Homes {
    type Error = Error;
    type Lease = Moment;

    async fn route(&self, tenant: &str, least: Option<u64>) -> Result<Route<Moment>, Error> {
        let answer = match least {
            None => self.directory.locate(tenant).await?,
            Some(epoch) => {
                let question = Question::new().min_epoch(epoch).refuse_fallback();
                self.directory.locate_with(tenant, &question).await?
            }
        };
        match self.route_of(&answer) {
            // A bounded memory's Watch says nothing of cells until they change.
            Err(Error::NoTables { .. }) => {
                self.ask_for_tables(tenant).await?;
                self.route_of(&answer)
            }
            route => route,
        }
    }

    async fn home(&self, cell: &str) -> Option<Home> {
        let cells = &self.directory.handle.core.shared.cells;
        self.of(cells.get(cells.find(cell)?)).ok()
    }

    /// By this directory's clock, which counted from when it asked.
    fn left(&self, lease: &Moment) -> Duration {
        lease.since(self.directory.handle.core.shared.now())
    }
}

/// `None`: it is of a newer directory, and says what is not understood here.
fn cell_tables(tables: &proto::CellTables) -> Option<CellTables> {
    let table = |table: &proto::CellTable| {
        let of = match table.sort_key_type.as_str() {
            "" => None,
            "S" => Some(KeyType::String),
            "N" => Some(KeyType::Number),
            "B" => Some(KeyType::Binary),
            _ => return None,
        };
        Some(CellTable {
            name: table.name.clone(),
            table_name: table.table_name.clone(),
            partition_key: table.partition_key.clone(),
            sort_key: of.map(|of| (table.sort_key.clone(), of)),
            tenant_keys: table.tenant_keys.clone(),
            ttl_attribute: Some(table.ttl_attribute.clone()).filter(|name| !name.is_empty()),
        })
    };
    Some(CellTables {
        set: tables.table_set_id.clone(),
        version: tables.version,
        tables: tables.tables.iter().map(table).collect::<Option<_>>()?,
        guards: Some(tables.guards.clone()).filter(|name| !name.is_empty()),
        together: tables.together,
        guarded: false,
    })
}

//! Writes an item of a tenant in the cell where it lives, and reads it back.
//!
//! `cargo run -p cells-client --features data --example write -- http://127.0.0.1:7070 http://127.0.0.1:8000 CustomerData customer-1`
//!
//! The second argument is DynamoDB's endpoint. The table must have the keys `PK` and `SK` and the tenant key template
//! `CUSTOMER#{partition_key}`.

use aws_sdk_dynamodb::config::{BehaviorVersion, Config, Credentials, Region};
use aws_sdk_dynamodb::types::AttributeValue;
use cells_client::Directory;
use cells_client::data::{Expression, Item, Reads, Write};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [endpoint, dynamodb, table, tenant] = arguments.as_slice() else {
        return Err("usage: write <directory> <dynamodb> <table> <tenant>".into());
    };
    let directory = Directory::connect([endpoint]).await?;
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("local", "local", None, None, "example"))
        .endpoint_url(dynamodb);
    let data = directory.data(config.build())?;

    let text = |text: &str| AttributeValue::S(text.to_owned());
    let key = |sort: &str| -> Item {
        [("PK".to_owned(), text(&format!("CUSTOMER#{tenant}"))), ("SK".to_owned(), text(sort))]
            .into()
    };
    let written = data.put(tenant, table, key("ORDER#1")).await?;
    println!("put: {:?} in {} at epoch {}", written.how, written.cell, written.epoch);

    let count = Expression::new("SET Visits = if_not_exists(Visits, :zero) + :one")
        .value(":zero", AttributeValue::N("0".to_owned()))
        .value(":one", AttributeValue::N("1".to_owned()));
    let update = Write::update(table, key("ORDER#1"), count);
    let written =
        data.write(tenant, update.only_if(Expression::new("attribute_exists(PK)"))).await?;
    println!("update: {:?}", written.how);

    let item = data.get(tenant, table, key("ORDER#1"), Reads::Strict).await?;
    println!("read: {item:?}");
    directory.close().await;
    Ok(())
}

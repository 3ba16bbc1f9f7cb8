//! Answers where tenants live, from memory.
//!
//! `cargo run -p cells-client --example resolve -- http://127.0.0.1:7070 customer-1 customer-2`

use cells_client::{Directory, Error};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let endpoint = arguments.next().unwrap_or_else(|| "http://127.0.0.1:7070".to_owned());
    let directory = Directory::connect([endpoint]).await?;
    println!("{:?}", directory.status());
    for tenant in arguments {
        // Memory first; a tenant that has no cell is placed.
        let answer = directory.locate(&tenant).await?;
        println!(
            "{tenant}: {} at {} ({}), epoch {}, {:?}, age {:?}, lease {:?}",
            answer.cell_id(),
            answer.endpoint(),
            answer.region(),
            answer.epoch(),
            answer.source(),
            answer.age(),
            answer.lease()
        );
    }
    directory.close().await;
    Ok(())
}

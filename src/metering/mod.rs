//! What cells' tables are used for: counted, published, and handed to the assignment of new tenants.

pub mod consumption;
mod intercept;

pub use consumption::{Consumption, Direction};
pub use intercept::Counting;

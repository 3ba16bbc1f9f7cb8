//! Plans and bulks against what they promise.

mod bounds;
mod bulk;
mod bulk_run;
mod drain;
mod rebalance;
mod rebalance_properties;
mod world;

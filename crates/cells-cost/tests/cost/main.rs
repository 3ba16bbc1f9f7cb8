//! What a cell costs, by golden cases, by what holds for all of them, and by what is refused.

mod common;
mod golden;
mod prices;
mod properties;
mod usage;

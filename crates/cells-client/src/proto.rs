//! The generated API. Its comments are those of `proto/`.
#![allow(missing_docs, clippy::all, clippy::pedantic)]

tonic::include_proto!("cells.v1");

// Names, numbers and flags: each equals itself.
impl Eq for CellTables {}

//! Generates the client half of the API from the repository's `proto/`, without a `protoc` on the machine.

const PROTOS: [&str; 2] = ["cells/v1/types.proto", "cells/v1/directory.proto"];
const ROOT: &str = "../../proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed={ROOT}");
    let descriptors = protox::compile(PROTOS, [ROOT])?;
    // The server half is for the tests' own servers.
    let server = std::env::var_os("CARGO_FEATURE_TESTING").is_some();
    tonic_prost_build::configure().btree_map(".").build_server(server).compile_fds(descriptors)?;
    Ok(())
}

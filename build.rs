//! Generates the gRPC code from `proto/`, without a `protoc` on the machine.

use std::path::PathBuf;

const PROTOS: [&str; 8] = [
    "cells/v1/types.proto",
    "cells/v1/directory.proto",
    "cells/v1/admin.proto",
    "cells/v1/tables.proto",
    "cells/v1/data.proto",
    "cells/v1/events.proto",
    "cells/v1/recovery.proto",
    "cells/v1/migration.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // Served by reflection.
    std::fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure()
        // Maps in a fixed order: a request's bytes are its digest.
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}

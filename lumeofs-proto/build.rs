//! Compiles the .proto files with protox, so that no protoc is needed on the machine.

use protox::prost::Message as _;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/data.proto",
        "proto/meta.proto",
        "proto/hello.proto",
        "proto/control.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    // What gRPC's reflection tells of the public face.
    let public = protox::compile(["proto/control.proto"], ["proto"])?;
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(Path::new(&out).join("control.bin"), public.encode_to_vec())?;
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}

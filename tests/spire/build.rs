//! Compiles the schemas without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors =
        protox::compile(["proto/delegated.proto", "proto/workload.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_transport(false)
        .build_client(false)
        .compile_fds(descriptors)?;
    Ok(())
}

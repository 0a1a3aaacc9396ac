//! Compiles the schemas without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/workload.proto",
        "proto/authorization.proto",
        "proto/zds.proto",
        "proto/ca.proto",
        "proto/discovery.proto",
        "proto/listeners.proto",
        "proto/handover.proto",
        "proto/extensions.proto",
        "proto/waypoint.proto",
        "proto/authentication.proto",
        "proto/external_auth.proto",
    ];
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .build_transport(false)
        // It has a key.
        .skip_debug(["seine.waypoint.v1.Certificate"])
        .compile_fds(descriptors)?;
    Ok(())
}

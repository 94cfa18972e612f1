//! Generates the messages and the client from the protos. protox compiles protos in Rust, so no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = "../../protos";
    println!("cargo:rerun-if-changed={protos}");
    let files = protox::compile(
        ["ollmbridge/v1/chat_completion_service.proto", "ollmbridge/v1/error_details.proto"],
        [protos],
    )?;
    tonic_prost_build::configure().build_server(false).compile_fds(files)?;
    Ok(())
}

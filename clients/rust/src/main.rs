//! Runs the named cases, or all, and prints a line for each. The environment has the bridge's address.

mod accumulate;
mod bridge;
mod cases;
mod kit;

/// The code that build.rs generates from the protos.
pub mod proto {
    tonic::include_proto!("ollmbridge.v1");
}

use std::env;
use std::error::Error;

use kit::{connect, open_channel};

const CASES: [&str; 16] = [
    "unary",
    "stream",
    "tools",
    "ollm_options",
    "extra_json",
    "error",
    "large_error",
    "deadline",
    "cancel",
    "retry",
    "tls",
    "mtls",
    "health",
    "large_answer",
    "accumulate",
    "failure",
];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = env::var("BRIDGE_ADDRESS").unwrap_or("127.0.0.1:50051".into());
    let tls_address = env::var("BRIDGE_TLS_ADDRESS").ok();
    let mtls_address = env::var("BRIDGE_MTLS_ADDRESS").ok();
    let client = connect(&address, None)?;
    let named: Vec<String> = env::args().skip(1).collect();
    for name in CASES {
        if !named.is_empty() && !named.iter().any(|each| each == name) {
            continue;
        }
        let mut line = match (name, &tls_address, &mtls_address) {
            ("unary", ..) => cases::unary(&client).await?,
            ("stream", ..) => cases::stream(&client).await?,
            ("tools", ..) => cases::tools(&client).await?,
            ("ollm_options", ..) => cases::ollm_options(&client).await?,
            ("extra_json", ..) => cases::extra_json(&client).await?,
            ("error", ..) => cases::error(&client).await?,
            ("large_error", ..) => cases::large_error(&client).await?,
            ("deadline", ..) => cases::deadline(&client).await?,
            ("cancel", ..) => cases::cancel(&client).await?,
            ("retry", ..) => cases::retry(&client).await?,
            ("tls", Some(address), _) => cases::tls(address).await?,
            ("mtls", _, Some(address)) => cases::mtls(address).await?,
            ("health", ..) => cases::health(&open_channel(&address, None)?).await?,
            ("large_answer", ..) => cases::large_answer(&client).await?,
            ("accumulate", ..) => cases::accumulate_vectors()?,
            ("failure", ..) => cases::read_failures()?,
            _ => continue,
        };
        line["case"] = name.into();
        println!("{line}");
    }
    Ok(())
}

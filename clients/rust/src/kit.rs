//! Connects to a bridge, retries what is safe to retry, and reads a failed call. ../../CASES.md has the rules.

#![allow(dead_code)] // a program that copies the kit uses what it needs

use std::collections::HashMap;
use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use prost::Message;
use tokio::time::{Instant, sleep};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};
use tonic_types::pb;

use crate::proto::UpstreamError;
use crate::proto::chat_completion_service_client::ChatCompletionServiceClient;

pub type Client = ChatCompletionServiceClient<Channel>;

const ANSWER_BYTES_MAX: usize = 32 << 20; // an answer may have 16 MiB; tonic's own limit is 4 MiB
const ATTEMPTS_MAX: u32 = 4;
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// PEM files: of the authorities to trust (None: the system's), and of the client's certificate and its key.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    pub ca: Option<PathBuf>,
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Returns a client of a bridge; without `tls`, not over TLS. It connects with the first call.
pub fn connect(address: &str, tls: Option<&Tls>) -> Result<Client, Box<dyn Error>> {
    Ok(Client::new(open_channel(address, tls)?).max_decoding_message_size(ANSWER_BYTES_MAX))
}

/// Returns the channel of such a client.
pub fn open_channel(address: &str, tls: Option<&Tls>) -> Result<Channel, Box<dyn Error>> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))?
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_while_idle(true);
    if let Some(files) = tls {
        let mut config = match &files.ca {
            Some(ca) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(std::fs::read(ca)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some((cert, key)) = &files.identity {
            config = config.identity(Identity::from_pem(std::fs::read(cert)?, std::fs::read(key)?));
        }
        endpoint = endpoint.tls_config(config)?;
    }
    Ok(endpoint.connect_lazy())
}

/// Makes a call, and makes it again if that is safe, after the wait that the bridge asks for, within the timeout: tonic has no
/// retry policy. `call` gets what is left of the timeout.
pub async fn retry<T, F>(timeout: Duration, mut call: impl FnMut(Duration) -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    let deadline = Instant::now() + timeout;
    let mut attempt = 1;
    loop {
        let status = match call(deadline.saturating_duration_since(Instant::now())).await {
            Ok(reply) => return Ok(reply),
            Err(status) => status,
        };
        match choose_pause(&status, attempt) {
            Some(pause) if Instant::now() + pause < deadline => sleep(pause).await,
            _ => return Err(status),
        }
        attempt += 1;
    }
}

/// Returns the pause before the next attempt, or None if there must be no other.
fn choose_pause(status: &Status, attempt: u32) -> Option<Duration> {
    if attempt >= ATTEMPTS_MAX || !matches!(status.code(), Code::Unavailable | Code::ResourceExhausted) {
        return None;
    }
    match status.metadata().get("grpc-retry-pushback-ms") {
        Some(pushback) => Some(Duration::from_millis(pushback.to_str().ok()?.parse().ok()?)), // -1 is none
        None => Some((BACKOFF_FIRST * 2_u32.pow(attempt - 1)).min(BACKOFF_MAX)),
    }
}

/// What a failed call says. Without the bridge's details, as from a proxy, all but code and message is empty.
#[derive(Clone, Debug)]
pub struct Failure {
    pub code: Code,
    pub message: String,
    pub reason: String,
    pub domain: String,
    pub metadata: HashMap<String, String>,
    pub retry_after: Option<Duration>,
    pub violations: Vec<pb::bad_request::FieldViolation>,
    pub request_id: String,
    pub upstream: UpstreamError,
}

impl Failure {
    /// The upstream's message, else the start of what it sent.
    pub fn upstream_words(&self) -> &str {
        let mut words = [&self.upstream.message, &self.upstream.body_excerpt].into_iter().flatten();
        words.find(|text| !text.is_empty()).map_or("", |text| text)
    }
}

/// Reads the status of a call.
pub fn read_failure(status: &Status) -> Failure {
    let details = pb::Status::decode(status.details()).unwrap_or_default();
    let info: pb::ErrorInfo = find(&details, "google.rpc.ErrorInfo");
    let delay = find::<pb::RetryInfo>(&details, "google.rpc.RetryInfo").retry_delay;
    Failure {
        code: status.code(),
        message: status.message().into(),
        reason: info.reason,
        domain: info.domain,
        metadata: info.metadata,
        retry_after: delay.and_then(|delay| delay.try_into().ok()),
        violations: find::<pb::BadRequest>(&details, "google.rpc.BadRequest").field_violations,
        request_id: find::<pb::RequestInfo>(&details, "google.rpc.RequestInfo").request_id,
        upstream: find(&details, "ollmbridge.v1.UpstreamError"),
    }
}

/// Returns the detail of a type, or the empty message if there is none, or if its bytes are broken.
fn find<M: Message + Default>(status: &pb::Status, name: &str) -> M {
    let mut named = status.details.iter().filter(|any| any.type_url.rsplit('/').next() == Some(name));
    M::decode(named.next().map_or(&[][..], |any| &any.value)).unwrap_or_default()
}

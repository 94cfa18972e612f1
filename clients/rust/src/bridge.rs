//! The bridge as the cases call it: requests, calls with their retries, and what a failed call says.

use std::time::Duration;

use prost::Message;
use tokio::time::{Instant, sleep};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Extensions, Request, Response, Status};
use tonic_types::StatusExt;

/// What build.rs makes of the protos.
pub mod proto {
    tonic::include_proto!("ollmbridge.v1");
}

use proto::chat_completion_service_client::ChatCompletionServiceClient;
use proto::{ChatMessage, CreateChatCompletionRequest, CreateChatCompletionResponse, UpstreamError, chat_message};

pub type Client = ChatCompletionServiceClient<Channel>;

pub const MODEL: &str = "near_qwen3_30b";
pub const CASE_TIMEOUT: Duration = Duration::from_secs(60);

const ATTEMPTS_MAX: u32 = 4;
const PAUSE_MAX: Duration = Duration::from_secs(60);
const BACKOFF_FIRST: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_millis(50);

/// A message of a role with a text.
pub fn said(role: &str, text: impl Into<String>) -> ChatMessage {
    ChatMessage {
        role: role.into(),
        content: Some(chat_message::Content::Text(text.into())),
        ..Default::default()
    }
}

/// A request with one message of the user.
pub fn asked(text: &str, model: &str) -> CreateChatCompletionRequest {
    CreateChatCompletionRequest {
        model: model.into(),
        messages: vec![said("user", text)],
        ..Default::default()
    }
}

/// Makes a unary call that may take a minute.
pub async fn create(
    client: &Client,
    message: &CreateChatCompletionRequest,
) -> Result<Response<CreateChatCompletionResponse>, Status> {
    create_with(client, message, &MetadataMap::new(), CASE_TIMEOUT).await
}

/// Makes a unary call. tonic has no retry policy, so this is one: what is safe to repeat is repeated, as late as the
/// bridge asks for it, within the call's time.
pub async fn create_with(
    client: &Client,
    message: &CreateChatCompletionRequest,
    metadata: &MetadataMap,
    timeout: Duration,
) -> Result<Response<CreateChatCompletionResponse>, Status> {
    let deadline = Instant::now() + timeout;
    let mut attempt = 1;
    loop {
        let mut request = Request::from_parts(metadata.clone(), Extensions::default(), message.clone());
        request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        let status = match client.clone().create_chat_completion(request).await {
            Ok(response) => return Ok(response),
            Err(status) => status,
        };
        match pause_after(&status, attempt) {
            Some(pause) if Instant::now() + pause < deadline => sleep(pause).await,
            _ => return Err(status),
        }
        attempt += 1;
    }
}

/// The pause before the next attempt; none where there must be no other.
fn pause_after(status: &Status, attempt: u32) -> Option<Duration> {
    if attempt >= ATTEMPTS_MAX || !matches!(status.code(), Code::Unavailable | Code::ResourceExhausted) {
        return None;
    }
    let backoff = (BACKOFF_FIRST * 2_u32.pow(attempt - 1)).min(BACKOFF_MAX);
    Some(retry_after(status).unwrap_or(backoff)).filter(|pause| *pause <= PAUSE_MAX)
}

/// The wait that a failure asks for.
pub fn retry_after(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

/// The upstream's own words: a detail that tonic-types does not know.
pub fn upstream_error(status: &Status) -> Option<UpstreamError> {
    let packed = tonic_types::pb::Status::decode(status.details()).ok()?.details;
    let detail = packed
        .iter()
        .find(|any| any.type_url.ends_with("/ollmbridge.v1.UpstreamError"))?;
    UpstreamError::decode(detail.value.as_slice()).ok()
}

/// The text of a reply's first choice.
pub fn text_of(reply: &CreateChatCompletionResponse) -> Option<&str> {
    match reply.choices.first()?.message.as_ref()?.content.as_ref()? {
        chat_message::Content::Text(text) => Some(text),
        _ => None,
    }
}

/// A code's name in the gRPC specification: RESOURCE_EXHAUSTED for ResourceExhausted.
pub fn name_of(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(letter.to_uppercase());
    }
    name
}

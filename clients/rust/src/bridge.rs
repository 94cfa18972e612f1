//! Helpers of the cases: requests, calls with retries, and the details of a failed call.

use std::time::Duration;

use prost::Message;
use tokio::time::{Instant, sleep};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Extensions, Request, Response, Status};
use tonic_types::StatusExt;

/// The code that build.rs generates from the protos.
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

/// Returns a message of a role with a text.
pub fn build_message(role: &str, text: impl Into<String>) -> ChatMessage {
    ChatMessage {
        role: role.into(),
        content: Some(chat_message::Content::Text(text.into())),
        ..Default::default()
    }
}

/// Returns a request with one message of the user.
pub fn build_request(text: &str, model: &str) -> CreateChatCompletionRequest {
    CreateChatCompletionRequest {
        model: model.into(),
        messages: vec![build_message("user", text)],
        ..Default::default()
    }
}

/// Makes a unary call with a timeout of a minute.
pub async fn create(
    client: &Client,
    message: &CreateChatCompletionRequest,
) -> Result<Response<CreateChatCompletionResponse>, Status> {
    create_with(client, message, &MetadataMap::new(), CASE_TIMEOUT).await
}

/// Makes a unary call, and retries what is safe to retry, after the wait that the bridge asks for, within the timeout:
/// tonic has no retry policy. The metadata of the response includes the trailers.
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
    let backoff = (BACKOFF_FIRST * 2_u32.pow(attempt - 1)).min(BACKOFF_MAX);
    Some(retry_after(status).unwrap_or(backoff)).filter(|pause| *pause <= PAUSE_MAX)
}

/// The wait that a failure asks for.
pub fn retry_after(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

/// The upstream's own error: a detail that tonic-types does not know.
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

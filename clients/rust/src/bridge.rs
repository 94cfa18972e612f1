//! Helpers of the cases: requests, calls with a timeout, and the vectors.

use std::env;
use std::error::Error;
use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use tonic::metadata::MetadataMap;
use tonic::{Code, Extensions, Request, Response, Status};

use crate::kit::{Client, Failure, retry};
use crate::proto::{ChatMessage, CreateChatCompletionRequest, CreateChatCompletionResponse, chat_message};

pub const MODEL: &str = "near_qwen3_30b";
pub const CASE_TIMEOUT: Duration = Duration::from_secs(60);

/// Returns a message of a role with a text.
pub fn build_message(role: &str, text: impl Into<String>) -> ChatMessage {
    ChatMessage { role: role.into(), content: Some(chat_message::Content::Text(text.into())), ..Default::default() }
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

/// Makes a unary call, and retries what is safe to retry. The metadata of the response includes the trailers.
pub async fn create_with(
    client: &Client,
    message: &CreateChatCompletionRequest,
    metadata: &MetadataMap,
    timeout: Duration,
) -> Result<Response<CreateChatCompletionResponse>, Status> {
    retry(timeout, async |left| {
        let mut request = Request::from_parts(metadata.clone(), Extensions::default(), message.clone());
        request.set_timeout(left);
        client.clone().create_chat_completion(request).await
    })
    .await
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

/// What is printed of a failure.
pub fn describe(failure: &Failure) -> Value {
    json!({
        "code": name_of(failure.code),
        "message": failure.message,
        "reason": failure.reason,
        "domain": failure.domain,
        "retry_after_s": failure.retry_after.map(|wait| wait.as_secs_f64()),
        "violations": violations(failure),
        "request_id": failure.request_id,
        "http_status": failure.upstream.http_status,
        "upstream_words": failure.upstream_words(),
    })
}

/// The violations of a failure, as they are printed.
pub fn violations(failure: &Failure) -> Value {
    let shown = failure.violations.iter();
    shown.map(|each| json!({"field": each.field, "description": each.description})).collect()
}

/// Reads one of the files of ../vectors: a JSON object a line.
pub fn read_vectors(kind: &str) -> Result<Vec<Value>, Box<dyn Error>> {
    let folder = env::var("VECTORS").unwrap_or("../vectors".into());
    let lines = fs::read_to_string(format!("{folder}/{kind}.jsonl"))?;
    Ok(lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

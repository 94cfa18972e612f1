//! The cases of ../../CASES.md, one function each.

use std::collections::{BTreeMap, HashMap};
use std::env;
use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::bridge::proto::response_format::{Format, JsonSchema};
use crate::bridge::proto::{
    CacheOptions, ChatMessage, CreateChatCompletionRequest, FunctionCall, FunctionTool, OllmOptions, ResponseFormat,
    StreamChatCompletionResponse, StreamOptions, Tool, ToolCall, ToolCallDelta, tool,
};
use crate::bridge::{
    CASE_TIMEOUT, Client, MODEL, build_message, build_request, create, create_with, name_of, retry_after, text_of,
    upstream_error,
};

pub type Line = Result<Value, Box<dyn Error>>;

const REFUSED_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);
const WEATHER_SCHEMA: &str =
    r#"{"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}"#;
const ANSWER_SCHEMA: &str = concat!(
    r#"{"type": "object", "required": ["zulu", "alpha"], "properties": "#,
    r#"{"zulu": {"type": "integer", "maximum": 9007199254740993}, "alpha": {"type": "string"}}}"#
);

/// A whole completion, and a request id that comes back. A unary call returns headers as trailers.
pub async fn unary(client: &Client) -> Line {
    let request = CreateChatCompletionRequest {
        temperature: Some(0.2),
        max_tokens: Some(64),
        ..build_request("Grüße, 世界 🌍", MODEL)
    };
    let response = create_with(client, &request, &request_id_metadata("clients-unary"), CASE_TIMEOUT).await?;
    let request_id = response
        .metadata()
        .get("x-request-id")
        .map(|value| value.to_str())
        .transpose()?;
    let reply = response.get_ref();
    let usage = reply.usage.clone().unwrap_or_default();
    Ok(json!({
        "text": text_of(reply),
        "finish_reason": reply.choices[0].finish_reason,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        },
        "system_fingerprint": reply.system_fingerprint,
        "service_tier": reply.service_tier,
        "request_id": request_id,
    }))
}

/// A streamed completion. `message` returns None only if the completion is whole.
pub async fn stream(client: &Client) -> Line {
    let request = CreateChatCompletionRequest {
        stream_options: Some(StreamOptions {
            include_usage: Some(true),
            ..Default::default()
        }),
        ..build_request("Hello", MODEL)
    };
    let mut contents = Vec::new();
    let mut finish_reason = None;
    let mut total_tokens = None;
    let mut chunks = open(client, request, CASE_TIMEOUT).await?;
    while let Some(chunk) = chunks.message().await? {
        for choice in chunk.choices {
            contents.push(choice.delta.and_then(|delta| delta.content));
            finish_reason = choice.finish_reason.or(finish_reason);
        }
        total_tokens = chunk.usage.map_or(total_tokens, |usage| usage.total_tokens);
    }
    let text: String = contents.iter().flatten().map(String::as_str).collect();
    Ok(json!({
        "contents": contents,
        "text": text,
        "finish_reason": finish_reason,
        "total_tokens": total_tokens,
    }))
}

/// A tool call: joins its fragments, and sends it back with the tool's result.
pub async fn tools(client: &Client) -> Line {
    let weather = FunctionTool {
        name: "get_weather".into(),
        description: Some("The weather at a place.".into()),
        parameters_json: Some(WEATHER_SCHEMA.into()),
        ..Default::default()
    };
    let mut request = CreateChatCompletionRequest {
        tools: vec![Tool {
            tool: Some(tool::Tool::Function(weather)),
        }],
        ..build_request("What is the weather in Paris?", MODEL)
    };
    let mut fragments = Vec::new();
    let mut finish_reason = None;
    let mut chunks = open(client, request.clone(), CASE_TIMEOUT).await?;
    while let Some(chunk) = chunks.message().await? {
        for choice in chunk.choices {
            fragments.extend(choice.delta.unwrap_or_default().tool_calls);
            finish_reason = choice.finish_reason.or(finish_reason);
        }
    }
    let count = fragments.len();
    let calls = join_fragments(fragments);

    request.messages.push(ChatMessage {
        role: "assistant".into(),
        tool_calls: calls.iter().map(|(id, function)| tool_call(id, function)).collect(),
        ..Default::default()
    });
    for (id, function) in &calls {
        let arguments: Value = serde_json::from_str(&function.arguments)?;
        let location = arguments["location"].as_str().unwrap_or_default();
        request.messages.push(ChatMessage {
            tool_call_id: Some(id.clone()),
            ..build_message("tool", format!("21 degrees in {location}"))
        });
    }
    let response = create(client, &request).await?;
    let shown = calls
        .iter()
        .map(|(id, function)| json!({"id": id, "name": function.name, "arguments": function.arguments}));
    Ok(json!({
        "fragments": count,
        "tool_calls": shown.collect::<Value>(),
        "finish_reason": finish_reason,
        "text": text_of(response.get_ref()),
    }))
}

/// Joins the fragments of each call, by index. An unset or empty id or name replaces nothing.
fn join_fragments(fragments: Vec<ToolCallDelta>) -> Vec<(String, FunctionCall)> {
    let mut calls: BTreeMap<i32, (String, FunctionCall)> = BTreeMap::new();
    for fragment in fragments {
        let (id, function) = calls.entry(fragment.index).or_default();
        let delta = fragment.function.unwrap_or_default();
        if let Some(new_id) = fragment.id.filter(|id| !id.is_empty()) {
            *id = new_id;
        }
        if let Some(name) = delta.name.filter(|name| !name.is_empty()) {
            function.name = name;
        }
        function.arguments += delta.arguments.as_deref().unwrap_or_default();
    }
    calls.into_values().collect()
}

fn tool_call(id: &str, function: &FunctionCall) -> ToolCall {
    ToolCall {
        id: id.into(),
        r#type: Some("function".into()),
        function: Some(function.clone()),
        ..Default::default()
    }
}

/// Every option of the gateway.
pub async fn ollm_options(client: &Client) -> Line {
    let ollm = OllmOptions {
        tags: HashMap::from([("team".into(), "search".into())]),
        cache_options: Some(CacheOptions {
            enabled: Some("read_only".into()),
            max_age_s: Some(60),
            extra_json: HashMap::from([("scope".into(), r#""team""#.into())]),
        }),
        dryrun: Some(true),
        variant_name: Some("v2".into()),
        episode_id: Some("01890a5d-ac96-774b-bcce-b302099a8057".into()),
        deny_unknown_fields: Some(false),
        include_raw_usage: Some(true),
        include_raw_response: Some(true),
        extra_json: HashMap::from([("note".into(), r#"{"n": 9007199254740993}"#.into())]),
    };
    let request = CreateChatCompletionRequest {
        ollm: Some(ollm),
        ..build_request("Hello", "ollm::function_name::scenario::mirror")
    };
    let reply = create(client, &request).await?.into_inner();
    Ok(json!({
        "request": text_of(&reply),
        "model": reply.model,
        "episode_id": reply.episode_id,
        "raw_usage": reply.raw_usage_json.is_some(),
        "raw_response": reply.raw_response_json.is_some(),
    }))
}

/// JSON text that crosses unchanged, both ways.
pub async fn extra_json(client: &Client) -> Line {
    let schema = JsonSchema {
        name: "answer".into(),
        strict: Some(true),
        schema_json: Some(ANSWER_SCHEMA.into()),
        ..Default::default()
    };
    let exact = r#"{"z": 9007199254740993, "price": 1.10, "exponent": 1e2, "a": null}"#;
    let mut request = CreateChatCompletionRequest {
        response_format: Some(ResponseFormat {
            format: Some(Format::JsonSchema(schema)),
        }),
        extra_json: HashMap::from([("exact".into(), exact.into())]),
        ..build_request("Hello", "scenario::mirror")
    };
    request.messages[0]
        .extra_json
        .insert("mark".into(), "[18446744073709551615]".into());
    let mirrored = create(client, &request).await?.into_inner();
    let reply = create(client, &build_request("Hello", "scenario::unknown_fields"))
        .await?
        .into_inner();
    Ok(json!({
        "request": text_of(&mirrored),
        "reply": reply.extra_json,
        "message": reply.choices[0].message.as_ref().map(|message| &message.extra_json),
    }))
}

/// A failure with all its details.
pub async fn error(client: &Client) -> Line {
    let model = concat!(
        "scenario::error?status=400&code=context_length_exceeded&param=messages[0].content",
        "&message=the+prompt+is+too+long&retry_after=2.5&raw=1"
    );
    let metadata = request_id_metadata("clients-error");
    let status = expect_failure(create_with(client, &build_request("Hello", model), &metadata, CASE_TIMEOUT).await)?;
    let details = status.get_error_details();
    let info = details.error_info().ok_or("expected ErrorInfo")?;
    let upstream = upstream_error(&status).ok_or("expected UpstreamError")?;
    let violations = details.bad_request().map(|bad_request| &bad_request.field_violations);
    let shown = violations
        .into_iter()
        .flatten()
        .map(|violation| json!({"field": violation.field, "description": violation.description}));
    Ok(json!({
        "code": name_of(status.code()),
        "message": status.message(),
        "error_info": {"reason": info.reason, "domain": info.domain, "metadata": info.metadata},
        "retry_after_s": retry_after(&status).map(|wait| wait.as_secs_f64()),
        "field_violations": shown.collect::<Value>(),
        "request_id": details.request_info().map(|info| &info.request_id),
        "upstream_error": {
            "http_status": upstream.http_status,
            "message": upstream.message,
            "type": upstream.r#type,
            "code": upstream.code,
            "param": upstream.param,
            "extra_json": upstream.extra_json,
            "truncated": upstream.truncated,
        },
    }))
}

/// A failure whose message is larger than trailers may be.
pub async fn large_error(client: &Client) -> Line {
    let status = expect_failure(create(client, &build_request("Hello", "scenario::error?status=500&size=8192")).await)?;
    let upstream = upstream_error(&status).ok_or("expected UpstreamError")?;
    let is_whole = |text: &str| !text.is_empty() && text.chars().all(|character| character == '错');
    Ok(json!({
        "code": name_of(status.code()),
        "reason": status.get_details_error_info().map(|info| info.reason),
        "truncated": upstream.truncated,
        "message_whole": is_whole(status.message()),
        "upstream_message_whole": upstream.message.as_deref().is_some_and(is_whole),
    }))
}

/// A stream that stalls, and a deadline.
pub async fn deadline(client: &Client) -> Line {
    let start = Instant::now();
    let mut text = String::new();
    let mut chunks = open(
        client,
        build_request("Hello", "scenario::stall?after=2"),
        Duration::from_secs(1),
    )
    .await?;
    let code = loop {
        match chunks.message().await {
            Ok(Some(chunk)) => text += &content_of(chunk),
            Ok(None) => break "OK".into(),
            Err(status) => break name_of(status.code()),
        }
    };
    let took = start.elapsed();
    let within = Duration::from_millis(900) <= took && took < Duration::from_secs(5);
    Ok(json!({"text": text, "code": code, "within": within}))
}

/// Cancels a stream after its third chunk, by dropping it. So there is no code to report.
pub async fn cancel(client: &Client) -> Line {
    let mut text = String::new();
    let mut chunks = open(client, build_request("Hello", "scenario::stall?after=3"), CASE_TIMEOUT).await?;
    for _ in 0..3 {
        text += &content_of(chunks.message().await?.ok_or("expected three chunks")?);
    }
    drop(chunks);
    Ok(json!({"text": text, "code": null}))
}

/// Two refusals that are retried after the gateway's wait, and one that must not be retried.
pub async fn retry(client: &Client) -> Line {
    let metadata = MetadataMap::new();
    let flaky = build_request("Hello", "scenario::flaky?times=2&status=429&retry_after_ms=400");
    let response = create_with(client, &flaky, &metadata, RETRY_TIMEOUT).await?;
    let limited = build_request("Hello", "scenario::rate_limited?retry_after=61");
    let status = expect_failure(create_with(client, &limited, &metadata, RETRY_TIMEOUT).await)?;
    Ok(json!({
        "text": text_of(response.get_ref()),
        "given_up": name_of(status.code()),
        "retry_after_s": retry_after(&status).map(|wait| wait.as_secs_f64()),
    }))
}

/// TLS, with the server's authority and without it.
pub async fn tls(address: &str) -> Line {
    let trusted = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read_file("CA_FILE")?));
    let system = ClientTlsConfig::new().with_native_roots();
    Ok(json!({
        "text": ask_over_tls(address, trusted, CASE_TIMEOUT).await?,
        "refused_untrusted": is_refused(address, system).await?,
    }))
}

/// TLS with a client certificate, and without one.
pub async fn mtls(address: &str) -> Line {
    let without_certificate = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read_file("CA_FILE")?));
    let with_certificate = without_certificate
        .clone()
        .identity(Identity::from_pem(read_file("CERT_FILE")?, read_file("KEY_FILE")?));
    Ok(json!({
        "text": ask_over_tls(address, with_certificate, CASE_TIMEOUT).await?,
        "refused_without_certificate": is_refused(address, without_certificate).await?,
    }))
}

async fn ask_over_tls(
    address: &str,
    tls: ClientTlsConfig,
    timeout: Duration,
) -> Result<Option<String>, Box<dyn Error>> {
    let channel = Endpoint::from_shared(format!("https://{address}"))?
        .tls_config(tls)?
        .connect_lazy();
    let mut request = Request::new(build_request("Hello", MODEL));
    request.set_timeout(timeout);
    let response = Client::new(channel).create_chat_completion(request).await?;
    Ok(text_of(response.get_ref()).map(String::from))
}

async fn is_refused(address: &str, tls: ClientTlsConfig) -> Result<bool, Box<dyn Error>> {
    match ask_over_tls(address, tls, REFUSED_TIMEOUT).await {
        Ok(_) => Ok(false),
        Err(error) => {
            let status = error.downcast::<Status>()?;
            eprintln!("{address}: {status}");
            Ok(true)
        }
    }
}

/// Health of the server, of the service, and of a service that does not exist.
pub async fn health(channel: &Channel) -> Line {
    Ok(json!({
        "overall": check_health(channel, "").await,
        "service": check_health(channel, "ollmbridge.v1.ChatCompletionService").await,
        "unknown": check_health(channel, "no.such.Service").await,
    }))
}

async fn check_health(channel: &Channel, service: &str) -> String {
    let mut request = Request::new(HealthCheckRequest {
        service: service.into(),
    });
    request.set_timeout(CASE_TIMEOUT);
    match HealthClient::new(channel.clone()).check(request).await {
        Ok(response) => response.get_ref().status().as_str_name().into(),
        Err(status) => name_of(status.code()),
    }
}

// Helpers of the cases

/// Starts a stream.
async fn open(
    client: &Client,
    message: CreateChatCompletionRequest,
    timeout: Duration,
) -> Result<Streaming<StreamChatCompletionResponse>, Status> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    Ok(client.clone().stream_chat_completion(request).await?.into_inner())
}

/// The text that a chunk adds.
fn content_of(chunk: StreamChatCompletionResponse) -> String {
    let deltas = chunk.choices.into_iter().filter_map(|choice| choice.delta);
    deltas.filter_map(|delta| delta.content).collect()
}

/// Returns the failure of a call that must fail.
fn expect_failure<T>(result: Result<T, Status>) -> Result<Status, &'static str> {
    result.err().ok_or("the call did not fail")
}

fn request_id_metadata(value: &'static str) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    metadata.insert("x-request-id", MetadataValue::from_static(value));
    metadata
}

/// Reads the file that an environment variable names.
fn read_file(variable: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    Ok(fs::read(env::var(variable)?)?)
}

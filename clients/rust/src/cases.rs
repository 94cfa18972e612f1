//! The cases of ../../CASES.md, one function each.

use std::collections::HashMap;
use std::env;
use std::error::Error;
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine};
use prost::Message;
use serde_json::{Value, json};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::accumulate::{Accumulator, accumulate};
use crate::bridge::{
    CASE_TIMEOUT, MODEL, build_message, build_request, create, create_with, describe, name_of, read_vectors, text_of,
    violations,
};
use crate::kit::{Client, Failure, Tls, connect, read_failure};
use crate::proto::response_format::{Format, JsonSchema};
use crate::proto::{
    CacheOptions, ChatMessage, CreateChatCompletionRequest, FunctionTool, OllmOptions, ResponseFormat,
    StreamChatCompletionResponse, StreamOptions, Tool, tool,
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
    let request_id = response.metadata().get("x-request-id").map(|value| value.to_str()).transpose()?;
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
        stream_options: Some(StreamOptions { include_usage: Some(true), ..Default::default() }),
        ..build_request("Hello", MODEL)
    };
    let mut contents = Vec::new();
    let mut accumulator = Accumulator::default();
    let mut chunks = open(client, request, CASE_TIMEOUT).await?;
    while let Some(chunk) = chunks.message().await? {
        for choice in &chunk.choices {
            contents.push(choice.delta.as_ref().and_then(|delta| delta.content.clone()));
        }
        accumulator.add(chunk);
    }
    let reply = accumulator.build();
    Ok(json!({
        "contents": contents,
        "text": text_of(&reply),
        "finish_reason": reply.choices[0].finish_reason,
        "total_tokens": reply.usage.and_then(|usage| usage.total_tokens),
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
        tools: vec![Tool { tool: Some(tool::Tool::Function(weather)), ..Default::default() }],
        ..build_request("What is the weather in Paris?", MODEL)
    };
    let mut fragments = 0;
    let mut accumulator = Accumulator::default();
    let mut chunks = open(client, request.clone(), CASE_TIMEOUT).await?;
    while let Some(chunk) = chunks.message().await? {
        let deltas = chunk.choices.iter().flat_map(|choice| &choice.delta);
        fragments += deltas.map(|delta| delta.tool_calls.len()).sum::<usize>();
        accumulator.add(chunk);
    }
    let choice = accumulator.build().choices.remove(0);
    let message = choice.message.ok_or("expected a message")?;
    let calls: Vec<_> =
        message.tool_calls.iter().cloned().map(|call| (call.id, call.function.unwrap_or_default())).collect();

    request.messages.push(message);
    for (id, function) in &calls {
        let arguments: Value = serde_json::from_str(&function.arguments)?;
        let location = arguments["location"].as_str().unwrap_or_default();
        request.messages.push(ChatMessage {
            tool_call_id: Some(id.clone()),
            ..build_message("tool", format!("21 degrees in {location}"))
        });
    }
    let response = create(client, &request).await?;
    let shown =
        calls.iter().map(|(id, function)| json!({"id": id, "name": function.name, "arguments": function.arguments}));
    Ok(json!({
        "fragments": fragments,
        "tool_calls": shown.collect::<Value>(),
        "finish_reason": choice.finish_reason,
        "text": text_of(response.get_ref()),
    }))
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
        response_format: Some(ResponseFormat { format: Some(Format::JsonSchema(schema)), ..Default::default() }),
        extra_json: HashMap::from([("exact".into(), exact.into())]),
        ..build_request("Hello", "scenario::mirror")
    };
    request.messages[0].extra_json.insert("mark".into(), "[18446744073709551615]".into());
    let mirrored = create(client, &request).await?.into_inner();
    let reply = create(client, &build_request("Hello", "scenario::unknown_fields")).await?.into_inner();
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
    let failure = expect_failure(create_with(client, &build_request("Hello", model), &metadata, CASE_TIMEOUT).await)?;
    let upstream = &failure.upstream;
    Ok(json!({
        "code": name_of(failure.code),
        "message": failure.message,
        "error_info": {"reason": failure.reason, "domain": failure.domain, "metadata": failure.metadata},
        "retry_after_s": failure.retry_after.map(|wait| wait.as_secs_f64()),
        "field_violations": violations(&failure),
        "request_id": failure.request_id,
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
    let request = build_request("Hello", "scenario::error?status=500&size=8192");
    let failure = expect_failure(create(client, &request).await)?;
    let is_whole = |text: &str| !text.is_empty() && text.chars().all(|character| character == '错');
    Ok(json!({
        "code": name_of(failure.code),
        "reason": failure.reason,
        "truncated": failure.upstream.truncated,
        "message_whole": is_whole(&failure.message),
        "upstream_message_whole": is_whole(failure.upstream_words()),
    }))
}

/// A stream that stalls, and a deadline.
pub async fn deadline(client: &Client) -> Line {
    let start = Instant::now();
    let mut text = String::new();
    let mut chunks = open(client, build_request("Hello", "scenario::stall?after=2"), Duration::from_secs(1)).await?;
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
    let large = build_request(&"x".repeat(3_000_000), "scenario::flaky?times=1&status=503");
    let large_response = create_with(client, &large, &metadata, RETRY_TIMEOUT).await?;
    let limited = build_request("Hello", "scenario::rate_limited?retry_after=61");
    let failure = expect_failure(create_with(client, &limited, &metadata, RETRY_TIMEOUT).await)?;
    Ok(json!({
        "text": text_of(response.get_ref()),
        "large": text_of(large_response.get_ref()).map(|text| text.chars().count()),
        "given_up": name_of(failure.code),
        "retry_after_s": failure.retry_after.map(|wait| wait.as_secs_f64()),
    }))
}

/// TLS, with the server's authority and without it.
pub async fn tls(address: &str) -> Line {
    let trusted = Tls { ca: Some(env::var("CA_FILE")?.into()), ..Default::default() };
    Ok(json!({
        "text": ask_over_tls(address, &trusted, CASE_TIMEOUT).await?,
        "refused_untrusted": is_refused(address, &Tls::default()).await?,
    }))
}

/// TLS with a client certificate, and without one.
pub async fn mtls(address: &str) -> Line {
    let ca = Some(env::var("CA_FILE")?.into());
    let identity = Some((env::var("CERT_FILE")?.into(), env::var("KEY_FILE")?.into()));
    let with_certificate = Tls { ca: ca.clone(), identity };
    Ok(json!({
        "text": ask_over_tls(address, &with_certificate, CASE_TIMEOUT).await?,
        "refused_without_certificate": is_refused(address, &Tls { ca, identity: None }).await?,
    }))
}

async fn ask_over_tls(address: &str, files: &Tls, timeout: Duration) -> Result<Option<String>, Box<dyn Error>> {
    let mut request = Request::new(build_request("Hello", MODEL));
    request.set_timeout(timeout);
    let response = connect(address, Some(files))?.create_chat_completion(request).await?;
    Ok(text_of(response.get_ref()).map(String::from))
}

async fn is_refused(address: &str, files: &Tls) -> Result<bool, Box<dyn Error>> {
    match ask_over_tls(address, files, REFUSED_TIMEOUT).await {
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
    let mut request = Request::new(HealthCheckRequest { service: service.into() });
    request.set_timeout(CASE_TIMEOUT);
    match HealthClient::new(channel.clone()).check(request).await {
        Ok(response) => response.get_ref().status().as_str_name().into(),
        Err(status) => name_of(status.code()),
    }
}

/// An answer above the 4 MiB that tonic receives by default.
pub async fn large_answer(client: &Client) -> Line {
    let response = create(client, &build_request("Hello", "scenario::big?size=10000000")).await?;
    let text = text_of(response.get_ref()).unwrap_or_default();
    let request = build_request("Hello", "scenario::huge_event?size=10000000");
    let streamed = accumulate(open(client, request, CASE_TIMEOUT).await?).await?;
    let streamed_text = text_of(&streamed).unwrap_or_default();
    Ok(json!({"characters": text.chars().count(), "streamed": streamed_text.chars().count()}))
}

/// The responses that the kit makes of the vectors' chunks.
pub fn accumulate_vectors() -> Line {
    let mut responses = json!({});
    for vector in read_vectors("accumulate")? {
        let mut accumulator = Accumulator::default();
        for chunk in vector["chunks"].as_array().ok_or("expected chunks")? {
            let packed = BASE64_STANDARD.decode(chunk.as_str().unwrap_or_default())?;
            accumulator.add(StreamChatCompletionResponse::decode(packed.as_slice())?);
        }
        let name = vector["name"].as_str().ok_or("expected a name")?;
        responses[name] = BASE64_STANDARD.encode(accumulator.build().encode_to_vec()).into();
    }
    Ok(json!({"responses": responses}))
}

/// What the kit reads in the vectors' statuses.
pub fn read_failures() -> Line {
    let mut failures = json!({});
    for vector in read_vectors("failure")? {
        let text = |key: &str| vector[key].as_str().unwrap_or_default();
        let code = Code::from_i32(vector["code"].as_i64().unwrap_or_default() as i32);
        let details = BASE64_STANDARD.decode(text("details"))?;
        let status = Status::with_details(code, text("message"), details.into());
        failures[text("name")] = describe(&read_failure(&status));
    }
    Ok(json!({"failures": failures}))
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
fn expect_failure<T>(result: Result<T, Status>) -> Result<Failure, &'static str> {
    result.err().map(|status| read_failure(&status)).ok_or("the call did not fail")
}

fn request_id_metadata(value: &'static str) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    metadata.insert("x-request-id", MetadataValue::from_static(value));
    metadata
}

/** The cases of ../../CASES.md, one function each. */

import * as grpc from "@grpc/grpc-js";

import { HealthCheckResponse_ServingStatus, HealthClient } from "./generated/health/v1/health.js";
import { ChatMessage, ResponseFormat, StreamOptions, Tool } from "./generated/ollmbridge/v1/chat.js";
import {
  ChatCompletionServiceClient as Client,
  CreateChatCompletionResponse,
  StreamChatCompletionResponse,
} from "./generated/ollmbridge/v1/chat_completion_service.js";
import { OllmOptions } from "./generated/ollmbridge/v1/ollm_options.js";
import {
  buildRequest,
  create,
  describe,
  expectFailure,
  iterateChunks,
  readVectors,
  textOf,
  withTimeout,
} from "./bridge.js";
import { Accumulator, accumulate, connect, readFailure, type Tls } from "./kit.js";

const REFUSED_TIMEOUT_MS = 5_000;
const WEATHER_SCHEMA = '{"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}';
const ANSWER_SCHEMA =
  '{"type": "object", "required": ["zulu", "alpha"], "properties": ' +
  '{"zulu": {"type": "integer", "maximum": 9007199254740993}, "alpha": {"type": "string"}}}';

/** A whole completion, and a request id that comes back. A unary call returns headers as trailers. */
export async function unary(client: Client) {
  const request = { ...buildRequest("Grüße, 世界 🌍"), temperature: 0.2, maxTokens: 64 };
  const metadata = new grpc.Metadata();
  metadata.set("x-request-id", "clients-unary");
  const { reply, trailers } = await create(client, request, withTimeout(), metadata);
  return {
    text: textOf(reply),
    finish_reason: reply.choices[0]?.finishReason ?? null,
    usage: {
      prompt_tokens: Number(reply.usage?.promptTokens),
      completion_tokens: Number(reply.usage?.completionTokens),
      total_tokens: Number(reply.usage?.totalTokens),
    },
    system_fingerprint: reply.systemFingerprint ?? null,
    service_tier: reply.serviceTier ?? null,
    request_id: trailers.get("x-request-id")[0],
  };
}

/** A streamed completion. The loop ends without an exception only if the completion is whole. */
export async function stream(client: Client) {
  const request = { ...buildRequest("Hello"), streamOptions: StreamOptions.fromPartial({ includeUsage: true }) };
  const contents: (string | null)[] = [];
  const accumulator = new Accumulator();
  for await (const chunk of iterateChunks(client.streamChatCompletion(request, withTimeout()))) {
    contents.push(...chunk.choices.map(({ delta }) => delta?.content ?? null));
    accumulator.add(chunk);
  }
  const reply = accumulator.build();
  return {
    contents,
    text: textOf(reply),
    finish_reason: reply.choices[0]?.finishReason ?? null,
    total_tokens: Number(reply.usage?.totalTokens),
  };
}

/** A tool call: joins its fragments, and sends it back with the tool's result. */
export async function tools(client: Client) {
  const tool = Tool.fromPartial({
    tool: {
      $case: "function",
      value: { name: "get_weather", description: "The weather at a place.", parametersJson: WEATHER_SCHEMA },
    },
  });
  const request = { ...buildRequest("What is the weather in Paris?"), tools: [tool] };
  const chunks: StreamChatCompletionResponse[] = [];
  for await (const chunk of iterateChunks(client.streamChatCompletion(request, withTimeout()))) chunks.push(chunk);
  const choice = (await accumulate(chunks)).choices[0]!;
  const calls = choice.message!.toolCalls;

  request.messages.push(choice.message!);
  for (const { id, function: call } of calls) {
    const { location } = JSON.parse(call?.arguments ?? "");
    const content = { $case: "text", value: `21 degrees in ${location}` } as const;
    request.messages.push(ChatMessage.fromPartial({ role: "tool", toolCallId: id, content }));
  }
  const { reply } = await create(client, request);
  const deltas = chunks.flatMap(({ choices }) => choices).map(({ delta }) => delta);
  return {
    fragments: deltas.reduce((count, delta) => count + (delta?.toolCalls.length ?? 0), 0),
    tool_calls: calls.map(({ id, function: call }) => ({ id, name: call?.name, arguments: call?.arguments })),
    finish_reason: choice.finishReason ?? null,
    text: textOf(reply),
  };
}

/** Every option of the gateway. */
export async function ollmOptions(client: Client) {
  const ollm = OllmOptions.fromPartial({
    tags: { team: "search" },
    cacheOptions: { enabled: "read_only", maxAgeS: 60n, extraJson: { scope: '"team"' } },
    dryrun: true,
    variantName: "v2",
    episodeId: "01890a5d-ac96-774b-bcce-b302099a8057",
    denyUnknownFields: false,
    includeRawUsage: true,
    includeRawResponse: true,
    extraJson: { note: '{"n": 9007199254740993}' },
  });
  const { reply } = await create(client, { ...buildRequest("Hello", "ollm::function_name::scenario::mirror"), ollm });
  return {
    request: textOf(reply),
    model: reply.model,
    episode_id: reply.episodeId ?? null,
    raw_usage: reply.rawUsageJson !== undefined,
    raw_response: reply.rawResponseJson !== undefined,
  };
}

/** JSON text that crosses unchanged, both ways. */
export async function extraJson(client: Client) {
  const request = buildRequest("Hello", "scenario::mirror");
  request.messages[0]!.extraJson.mark = "[18446744073709551615]";
  request.responseFormat = ResponseFormat.fromPartial({
    format: { $case: "jsonSchema", value: { name: "answer", strict: true, schemaJson: ANSWER_SCHEMA } },
  });
  request.extraJson.exact = '{"z": 9007199254740993, "price": 1.10, "exponent": 1e2, "a": null}';
  const { reply: mirrored } = await create(client, request);
  const { reply } = await create(client, buildRequest("Hello", "scenario::unknown_fields"));
  return { request: textOf(mirrored), reply: reply.extraJson, message: reply.choices[0]?.message?.extraJson };
}

/** A failure with all its details. */
export async function error(client: Client) {
  const model =
    "scenario::error?status=400&code=context_length_exceeded&param=messages[0].content" +
    "&message=the+prompt+is+too+long&retry_after=2.5&raw=1";
  const metadata = new grpc.Metadata();
  metadata.set("x-request-id", "clients-error");
  const failure = await expectFailure(create(client, buildRequest("Hello", model), withTimeout(), metadata));
  const { code, message, reason, domain, metadata: info, upstream } = failure;
  return {
    code,
    message,
    error_info: { reason, domain, metadata: info },
    retry_after_s: failure.retryAfterS,
    field_violations: failure.violations.map(({ field, description }) => ({ field, description })),
    request_id: failure.requestId,
    upstream_error: upstream && {
      http_status: upstream.httpStatus,
      message: upstream.message ?? null,
      type: upstream.type ?? null,
      code: upstream.code ?? null,
      param: upstream.param ?? null,
      extra_json: upstream.extraJson,
      truncated: upstream.truncated,
    },
  };
}

/** A failure whose message is larger than trailers may be. */
export async function largeError(client: Client) {
  const failure = await expectFailure(create(client, buildRequest("Hello", "scenario::error?status=500&size=8192")));
  return {
    code: failure.code,
    reason: failure.reason,
    truncated: failure.upstream?.truncated,
    message_whole: /^错+$/.test(failure.message),
    upstream_message_whole: /^错+$/.test(failure.upstreamWords),
  };
}

/** A stream that stalls, and a deadline. */
export async function deadline(client: Client) {
  const startMs = performance.now();
  const { text, code } = await readAll(
    client.streamChatCompletion(buildRequest("Hello", "scenario::stall?after=2"), withTimeout(1_000)),
  );
  const tookMs = performance.now() - startMs;
  return { text, code, within: 900 <= tookMs && tookMs < 5_000 };
}

/** Cancels a stream after its third chunk. */
export function cancel(client: Client) {
  const call = client.streamChatCompletion(buildRequest("Hello", "scenario::stall?after=3"), withTimeout());
  return readAll(call, (count) => count === 3 && call.cancel());
}

/** Reads a stream to its end. Returns the joined contents and the code. */
async function readAll(
  call: grpc.ClientReadableStream<StreamChatCompletionResponse>,
  onChunk: (count: number) => void = () => {},
) {
  let text = "";
  let count = 0;
  let code = grpc.status.OK;
  try {
    for await (const chunk of iterateChunks(call)) {
      text += chunk.choices.map(({ delta }) => delta?.content ?? "").join("");
      onChunk(++count);
    }
  } catch (error) {
    code = (error as grpc.ServiceError).code;
  }
  return { text, code: grpc.status[code] };
}

/** Two refusals that are retried after the gateway's wait, and one that must not be retried. */
export async function retry(client: Client) {
  const flaky = buildRequest("Hello", "scenario::flaky?times=2&status=429&retry_after_ms=400");
  const { reply } = await create(client, flaky, withTimeout(30_000));
  const large = buildRequest("x".repeat(3_000_000), "scenario::flaky?times=1&status=503");
  const { reply: largeReply } = await create(client, large, withTimeout(30_000));
  const limited = buildRequest("Hello", "scenario::rate_limited?retry_after=61");
  const failure = await expectFailure(create(client, limited, withTimeout(30_000)));
  return {
    text: textOf(reply),
    large: textOf(largeReply)?.length,
    given_up: failure.code,
    retry_after_s: failure.retryAfterS,
  };
}

/** TLS, with the server's authority and without it. */
export async function tls(address: string) {
  return {
    text: await askOverTls(address, { ca: fileOf("CA_FILE") }),
    refused_untrusted: (await askOverTls(address, {}, REFUSED_TIMEOUT_MS)) === null,
  };
}

/** TLS with a client certificate, and without one. */
export async function mtls(address: string) {
  const ca = fileOf("CA_FILE");
  return {
    text: await askOverTls(address, { ca, cert: fileOf("CERT_FILE"), key: fileOf("KEY_FILE") }),
    refused_without_certificate: (await askOverTls(address, { ca }, REFUSED_TIMEOUT_MS)) === null,
  };
}

/** The path that an environment variable has. */
function fileOf(variable: string): string {
  const path = process.env[variable];
  if (!path) throw new Error(`expected ${variable} to name a file, found it unset`);
  return path;
}

/** Makes a call over TLS. Returns null if it fails. */
async function askOverTls(address: string, files: Tls, timeoutMs?: number) {
  const client = connect(address, files);
  try {
    return textOf((await create(client, buildRequest("Hello"), withTimeout(timeoutMs))).reply);
  } catch (error) {
    console.error(`${address}: ${(error as grpc.ServiceError).message}`);
    return null;
  } finally {
    client.close();
  }
}

/** Health of the server, of the service, and of a service that does not exist. */
export async function health(client: Client) {
  const health = new HealthClient("", grpc.credentials.createInsecure(), { channelOverride: client.getChannel() });
  const check = (service: string) =>
    new Promise<string | undefined>((resolve) =>
      health.check({ service }, new grpc.Metadata(), withTimeout(), (error, reply) =>
        resolve(error ? grpc.status[error.code] : HealthCheckResponse_ServingStatus[reply.status]),
      ),
    );
  return {
    overall: await check(""),
    service: await check("ollmbridge.v1.ChatCompletionService"),
    unknown: await check("no.such.Service"),
  };
}

/** An answer above the 4 MiB that gRPC receives by default. */
export async function largeAnswer(client: Client) {
  const { reply } = await create(client, buildRequest("Hello", "scenario::big?size=10000000"));
  const request = buildRequest("Hello", "scenario::huge_event?size=10000000");
  const streamed = await accumulate(iterateChunks(client.streamChatCompletion(request, withTimeout())));
  return { characters: textOf(reply)?.length, streamed: textOf(streamed)?.length };
}

/** The responses that the kit makes of the vectors' chunks. */
export async function accumulateVectors() {
  const responses: Record<string, string> = {};
  for (const { name, chunks } of readVectors("accumulate")) {
    const decoded = chunks.map((chunk) => StreamChatCompletionResponse.decode(Buffer.from(chunk, "base64")));
    const reply = await accumulate(decoded);
    responses[name] = Buffer.from(CreateChatCompletionResponse.encode(reply).finish()).toString("base64");
  }
  return { responses };
}

/** What the kit reads in the vectors' statuses. */
export async function readFailures() {
  const failures: Record<string, object> = {};
  for (const { name, code, message, details } of readVectors("failure")) {
    const metadata = new grpc.Metadata();
    if (details) metadata.set("grpc-status-details-bin", Buffer.from(details, "base64"));
    const error = Object.assign(new Error(message), { code, details: message, metadata });
    failures[name] = describe(readFailure(error));
  }
  return { failures };
}

/** The cases of ../../CASES.md, one function each. */

import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { type Client, ConnectError } from "@connectrpc/connect";

import { Accumulator, accumulate } from "./accumulate.js";
import {
  buildMessage,
  buildRequest,
  describe,
  expectFailure,
  readVectors,
  textOf,
  withTimeout,
} from "./bridge.js";
import { StatusSchema } from "./generated/google/rpc/status_pb.js";
import { type Health, HealthCheckResponse_ServingStatus } from "./generated/health/v1/health_pb.js";
import {
  type ChatCompletionService,
  CreateChatCompletionResponseSchema,
  type StreamChatCompletionResponse,
  StreamChatCompletionResponseSchema,
} from "./generated/ollmbridge/v1/chat_completion_service_pb.js";
import { connect, readFailure, type Tls } from "./kit.js";

const REFUSED_TIMEOUT_MS = 5_000;
const WEATHER_SCHEMA = '{"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}';
const ANSWER_SCHEMA =
  '{"type": "object", "required": ["zulu", "alpha"], "properties": ' +
  '{"zulu": {"type": "integer", "maximum": 9007199254740993}, "alpha": {"type": "string"}}}';

type ChatClient = Client<typeof ChatCompletionService>;

/** A whole completion, and a request id that comes back. A unary call returns headers as trailers. */
export async function unary(client: ChatClient) {
  let requestId: string | null = null;
  const reply = await client.createChatCompletion(
    { ...buildRequest("Grüße, 世界 🌍"), temperature: 0.2, maxTokens: 64 },
    {
      ...withTimeout(),
      headers: { "x-request-id": "clients-unary" },
      onTrailer: (trailers) => (requestId = trailers.get("x-request-id")),
    },
  );
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
    request_id: requestId,
  };
}

/** A streamed completion. The loop ends without an exception only if the completion is whole. */
export async function stream(client: ChatClient) {
  const request = { ...buildRequest("Hello"), streamOptions: { includeUsage: true } };
  const contents: (string | null)[] = [];
  const accumulator = new Accumulator();
  for await (const chunk of client.streamChatCompletion(request, withTimeout())) {
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
export async function tools(client: ChatClient) {
  const weather = { name: "get_weather", description: "The weather at a place.", parametersJson: WEATHER_SCHEMA };
  const request = {
    ...buildRequest("What is the weather in Paris?"),
    tools: [{ tool: { case: "function", value: weather } as const }],
  };
  const chunks: StreamChatCompletionResponse[] = [];
  for await (const chunk of client.streamChatCompletion(request, withTimeout())) chunks.push(chunk);
  const choice = (await accumulate(chunks)).choices[0]!;
  const calls = choice.message!.toolCalls;

  const results = calls.map(({ id, function: call }) => {
    const { location } = JSON.parse(call?.arguments ?? "");
    return { ...buildMessage("tool", `21 degrees in ${location}`), toolCallId: id };
  });
  const messages = [...request.messages, choice.message!, ...results];
  const reply = await client.createChatCompletion({ ...request, messages }, withTimeout());
  const deltas = chunks.flatMap(({ choices }) => choices).map(({ delta }) => delta);
  return {
    fragments: deltas.reduce((count, delta) => count + (delta?.toolCalls.length ?? 0), 0),
    tool_calls: calls.map(({ id, function: call }) => ({ id, name: call?.name, arguments: call?.arguments })),
    finish_reason: choice.finishReason ?? null,
    text: textOf(reply),
  };
}

/** Every option of the gateway. */
export async function ollmOptions(client: ChatClient) {
  const reply = await client.createChatCompletion(
    {
      ...buildRequest("Hello", "ollm::function_name::scenario::mirror"),
      ollm: {
        tags: { team: "search" },
        cacheOptions: { enabled: "read_only", maxAgeS: 60n, extraJson: { scope: '"team"' } },
        dryrun: true,
        variantName: "v2",
        episodeId: "01890a5d-ac96-774b-bcce-b302099a8057",
        denyUnknownFields: false,
        includeRawUsage: true,
        includeRawResponse: true,
        extraJson: { note: '{"n": 9007199254740993}' },
      },
    },
    withTimeout(),
  );
  return {
    request: textOf(reply),
    model: reply.model,
    episode_id: reply.episodeId ?? null,
    raw_usage: reply.rawUsageJson !== undefined,
    raw_response: reply.rawResponseJson !== undefined,
  };
}

/** JSON text that crosses unchanged, both ways. */
export async function extraJson(client: ChatClient) {
  const mirrored = await client.createChatCompletion(
    {
      model: "scenario::mirror",
      messages: [{ ...buildMessage("user", "Hello"), extraJson: { mark: "[18446744073709551615]" } }],
      responseFormat: {
        format: { case: "jsonSchema", value: { name: "answer", strict: true, schemaJson: ANSWER_SCHEMA } },
      },
      extraJson: { exact: '{"z": 9007199254740993, "price": 1.10, "exponent": 1e2, "a": null}' },
    },
    withTimeout(),
  );
  const reply = await client.createChatCompletion(buildRequest("Hello", "scenario::unknown_fields"), withTimeout());
  return { request: textOf(mirrored), reply: reply.extraJson, message: reply.choices[0]?.message?.extraJson };
}

/** A failure with all its details. */
export async function error(client: ChatClient) {
  const model =
    "scenario::error?status=400&code=context_length_exceeded&param=messages[0].content" +
    "&message=the+prompt+is+too+long&retry_after=2.5&raw=1";
  const headers = { "x-request-id": "clients-error" };
  const call = client.createChatCompletion(buildRequest("Hello", model), { ...withTimeout(), headers });
  const failure = await expectFailure(call);
  const { code, message, reason, domain, metadata, upstream } = failure;
  return {
    code,
    message,
    error_info: { reason, domain, metadata },
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
export async function largeError(client: ChatClient) {
  const request = buildRequest("Hello", "scenario::error?status=500&size=8192");
  const failure = await expectFailure(client.createChatCompletion(request, withTimeout()));
  return {
    code: failure.code,
    reason: failure.reason,
    truncated: failure.upstream?.truncated,
    message_whole: /^错+$/.test(failure.message),
    upstream_message_whole: /^错+$/.test(failure.upstreamWords),
  };
}

/** A stream that stalls, and a deadline. */
export async function deadline(client: ChatClient) {
  const startMs = performance.now();
  const call = client.streamChatCompletion(buildRequest("Hello", "scenario::stall?after=2"), withTimeout(1_000));
  const { text, code } = await readAll(call);
  const tookMs = performance.now() - startMs;
  return { text, code, within: 900 <= tookMs && tookMs < 5_000 };
}

/** Cancels a stream after its third chunk. */
export function cancel(client: ChatClient) {
  const controller = new AbortController();
  const call = client.streamChatCompletion(buildRequest("Hello", "scenario::stall?after=3"), {
    ...withTimeout(),
    signal: controller.signal,
  });
  return readAll(call, (count) => count === 3 && controller.abort());
}

/** Reads a stream to its end. Returns the joined contents and the code. */
async function readAll(call: AsyncIterable<StreamChatCompletionResponse>, onChunk: (count: number) => void = () => {}) {
  let text = "";
  let count = 0;
  try {
    for await (const chunk of call) {
      text += chunk.choices.map(({ delta }) => delta?.content ?? "").join("");
      onChunk(++count);
    }
    return { text, code: "OK" };
  } catch (error) {
    return { text, code: readFailure(ConnectError.from(error)).code };
  }
}

/** Two refusals that are retried after the gateway's wait, and one that must not be retried. */
export async function retry(client: ChatClient) {
  const flaky = buildRequest("Hello", "scenario::flaky?times=2&status=429&retry_after_ms=400");
  const reply = await client.createChatCompletion(flaky, withTimeout(30_000));
  const large = buildRequest("x".repeat(3_000_000), "scenario::flaky?times=1&status=503");
  const largeReply = await client.createChatCompletion(large, withTimeout(30_000));
  const limited = buildRequest("Hello", "scenario::rate_limited?retry_after=61");
  const failure = await expectFailure(client.createChatCompletion(limited, withTimeout(30_000)));
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
  try {
    return textOf(await connect(address, files).createChatCompletion(buildRequest("Hello"), withTimeout(timeoutMs)));
  } catch (error) {
    console.error(`${address}: ${ConnectError.from(error).message}`);
    return null;
  }
}

/** Health of the server, of the service, and of a service that does not exist. */
export async function health(client: Client<typeof Health>) {
  const check = async (service: string) => {
    try {
      return HealthCheckResponse_ServingStatus[(await client.check({ service }, withTimeout())).status];
    } catch (error) {
      return readFailure(ConnectError.from(error)).code;
    }
  };
  return {
    overall: await check(""),
    service: await check("ollmbridge.v1.ChatCompletionService"),
    unknown: await check("no.such.Service"),
  };
}

/** An answer above the 4 MiB that gRPC libraries receive by default. */
export async function largeAnswer(client: ChatClient) {
  const reply = await client.createChatCompletion(buildRequest("Hello", "scenario::big?size=10000000"), withTimeout());
  const request = buildRequest("Hello", "scenario::huge_event?size=10000000");
  const streamed = await accumulate(client.streamChatCompletion(request, withTimeout()));
  return { characters: textOf(reply)?.length, streamed: textOf(streamed)?.length };
}

/** The responses that the kit makes of the vectors' chunks. */
export async function accumulateVectors() {
  const responses: Record<string, string> = {};
  for (const { name, chunks } of readVectors("accumulate")) {
    const decoded = chunks.map((chunk) => fromBinary(StreamChatCompletionResponseSchema, Buffer.from(chunk, "base64")));
    const packed = toBinary(CreateChatCompletionResponseSchema, await accumulate(decoded));
    responses[name] = Buffer.from(packed).toString("base64");
  }
  return { responses };
}

/** What the kit reads in the vectors' statuses. */
export async function readFailures() {
  const failures: Record<string, object> = {};
  for (const { name, code, message, details } of readVectors("failure")) {
    const error = new ConnectError(message, code);
    error.details = unpackDetails(Buffer.from(details, "base64"));
    failures[name] = describe(readFailure(error));
  }
  return { failures };
}

/** The details in a status, as the transport reads them. */
function unpackDetails(packed: Uint8Array) {
  try {
    const { details } = fromBinary(StatusSchema, packed);
    return details.map(({ typeUrl, value }) => ({ type: typeUrl.substring(typeUrl.lastIndexOf("/") + 1), value }));
  } catch {
    return [];
  }
}

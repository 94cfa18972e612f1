/** The cases of ../../CASES.md, one function each. */

import { type Client, Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport, type GrpcTransportOptions } from "@connectrpc/connect-node";

import { BadRequestSchema, ErrorInfoSchema, RequestInfoSchema } from "./generated/google/rpc/error_details_pb.js";
import { Health, HealthCheckResponse_ServingStatus } from "./generated/health/v1/health_pb.js";
import type { ChoiceDelta } from "./generated/ollmbridge/v1/chat_pb.js";
import {
  ChatCompletionService,
  type StreamChatCompletionResponse,
} from "./generated/ollmbridge/v1/chat_completion_service_pb.js";
import { UpstreamErrorSchema } from "./generated/ollmbridge/v1/error_details_pb.js";
import {
  buildMessage,
  buildRequest,
  expectFailure,
  nameOf,
  readFileOf,
  retryAfterS,
  textOf,
  withTimeout,
} from "./bridge.js";

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
  let finishReason: string | null = null;
  let totalTokens: number | null = null;
  for await (const chunk of client.streamChatCompletion(request, withTimeout())) {
    for (const choice of chunk.choices) {
      contents.push(choice.delta?.content ?? null);
      finishReason = choice.finishReason || finishReason;
    }
    if (chunk.usage) totalTokens = Number(chunk.usage.totalTokens);
  }
  return { contents, text: contents.join(""), finish_reason: finishReason, total_tokens: totalTokens };
}

/** A tool call: joins its fragments, and sends it back with the tool's result. */
export async function tools(client: ChatClient) {
  const weather = { name: "get_weather", description: "The weather at a place.", parametersJson: WEATHER_SCHEMA };
  const request = {
    ...buildRequest("What is the weather in Paris?"),
    tools: [{ tool: { case: "function", value: weather } as const }],
  };
  const choices: ChoiceDelta[] = [];
  for await (const chunk of client.streamChatCompletion(request, withTimeout())) choices.push(...chunk.choices);
  const calls = joinFragments(choices);

  const toolCalls = calls.map(({ id, ...call }) => ({ id, type: "function", function: call }));
  const results = calls.map((call) => {
    const { location } = JSON.parse(call.arguments);
    return { ...buildMessage("tool", `21 degrees in ${location}`), toolCallId: call.id };
  });
  const messages = [...request.messages, { role: "assistant", toolCalls }, ...results];
  const reply = await client.createChatCompletion({ ...request, messages }, withTimeout());
  return {
    fragments: choices.reduce((count, { delta }) => count + (delta?.toolCalls.length ?? 0), 0),
    tool_calls: calls,
    finish_reason: choices.find(({ finishReason }) => finishReason)?.finishReason ?? null,
    text: textOf(reply),
  };
}

/** Joins the fragments of each call, by index. An unset or empty id or name replaces nothing. */
function joinFragments(choices: ChoiceDelta[]) {
  const calls = new Map<number, { id: string; name: string; arguments: string }>();
  for (const fragment of choices.flatMap(({ delta }) => delta?.toolCalls ?? [])) {
    const call = calls.get(fragment.index) ?? { id: "", name: "", arguments: "" };
    calls.set(fragment.index, {
      id: fragment.id || call.id,
      name: fragment.function?.name || call.name,
      arguments: call.arguments + (fragment.function?.arguments ?? ""),
    });
  }
  return [...calls].sort(([a], [b]) => a - b).map(([, call]) => call);
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
  const [info] = failure.findDetails(ErrorInfoSchema);
  const [badRequest] = failure.findDetails(BadRequestSchema);
  const [requestInfo] = failure.findDetails(RequestInfoSchema);
  const [upstream] = failure.findDetails(UpstreamErrorSchema);
  return {
    code: nameOf(failure.code),
    message: failure.rawMessage,
    error_info: info && { reason: info.reason, domain: info.domain, metadata: info.metadata },
    retry_after_s: retryAfterS(failure),
    field_violations: badRequest?.fieldViolations.map(({ field, description }) => ({ field, description })),
    request_id: requestInfo?.requestId,
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
  const [upstream] = failure.findDetails(UpstreamErrorSchema);
  return {
    code: nameOf(failure.code),
    reason: failure.findDetails(ErrorInfoSchema)[0]?.reason,
    truncated: upstream?.truncated,
    message_whole: /^错+$/.test(failure.rawMessage),
    upstream_message_whole: /^错+$/.test(upstream?.message ?? ""),
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
    return { text, code: nameOf(ConnectError.from(error).code) };
  }
}

/** Two refusals that are retried after the gateway's wait, and one that must not be retried. */
export async function retry(client: ChatClient) {
  const flaky = buildRequest("Hello", "scenario::flaky?times=2&status=429&retry_after_ms=400");
  const reply = await client.createChatCompletion(flaky, withTimeout(30_000));
  const limited = buildRequest("Hello", "scenario::rate_limited?retry_after=61");
  const failure = await expectFailure(client.createChatCompletion(limited, withTimeout(30_000)));
  return { text: textOf(reply), given_up: nameOf(failure.code), retry_after_s: retryAfterS(failure) };
}

/** TLS, with the server's authority and without it. */
export async function tls(address: string) {
  const ca = readFileOf("CA_FILE");
  return {
    text: await askOverTls(address, { ca }),
    refused_untrusted: (await askOverTls(address, {}, REFUSED_TIMEOUT_MS)) === null,
  };
}

/** TLS with a client certificate, and without one. */
export async function mtls(address: string) {
  const ca = readFileOf("CA_FILE");
  return {
    text: await askOverTls(address, { ca, cert: readFileOf("CERT_FILE"), key: readFileOf("KEY_FILE") }),
    refused_without_certificate: (await askOverTls(address, { ca }, REFUSED_TIMEOUT_MS)) === null,
  };
}

/** Makes a call over TLS. Returns null if it fails. */
async function askOverTls(address: string, nodeOptions: GrpcTransportOptions["nodeOptions"], timeoutMs?: number) {
  const client = createClient(
    ChatCompletionService,
    createGrpcTransport({ baseUrl: `https://${address}`, nodeOptions }),
  );
  try {
    return textOf(await client.createChatCompletion(buildRequest("Hello"), withTimeout(timeoutMs)));
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
      return nameOf(ConnectError.from(error).code);
    }
  };
  return {
    overall: await check(""),
    service: await check("ollmbridge.v1.ChatCompletionService"),
    unknown: await check("no.such.Service"),
  };
}

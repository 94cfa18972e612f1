/** Connects to a bridge, joins the chunks of a stream, and reads a failed call. ../../CASES.md has the rules. */

import { readFileSync } from "node:fs";

import * as grpc from "@grpc/grpc-js";

import { BadRequest, ErrorInfo, RequestInfo, RetryInfo } from "./generated/google/rpc/error_details.js";
import { type MessageFns, Status } from "./generated/google/rpc/status.js";
import type { ChoiceDelta, ToolCallDelta } from "./generated/ollmbridge/v1/chat.js";
import {
  ChatCompletionServiceClient,
  CreateChatCompletionResponse as Reply,
  type StreamChatCompletionResponse as Chunk,
} from "./generated/ollmbridge/v1/chat_completion_service.js";
import { UpstreamError } from "./generated/ollmbridge/v1/error_details.js";

const SERVICE_CONFIG = `{"methodConfig": [{
  "name": [{"service": "ollmbridge.v1.ChatCompletionService"}],
  "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "5s", "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]}}]}`;

/** PEM files: of the authorities to trust (unset: the system's), and of the client's certificate and its key. */
export type Tls = { ca?: string; cert?: string; key?: string };

/** Returns a client of a bridge; without `tls`, not over TLS. `options` replace the kit's. */
export function connect(address: string, tls?: Tls, options: grpc.ChannelOptions = {}): ChatCompletionServiceClient {
  const [ca, key, cert] = [tls?.ca, tls?.key, tls?.cert].map((file) => (file ? readFileSync(file) : null));
  const credentials = tls ? grpc.credentials.createSsl(ca, key, cert) : grpc.credentials.createInsecure();
  return new ChatCompletionServiceClient(address, credentials, {
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.max_receive_message_length": 32 * 1024 * 1024, // an answer may have 16 MiB; gRPC's own limit is 4 MiB
    "grpc.per_rpc_retry_buffer_size": 8 * 1024 * 1024, // a request may have 4 MiB; gRPC's own limit is 1 MiB
    "grpc.service_config": SERVICE_CONFIG,
    ...options,
  });
}

/** Reads the error of a call. Without the bridge's details, as from a proxy, all but code and message is empty. */
export function readFailure(error: grpc.ServiceError) {
  const [packed] = error.metadata.get("grpc-status-details-bin") as Buffer[];
  const details = decode(Status, packed)?.details ?? [];
  const find = <T>(type: MessageFns<T, string>) =>
    decode(type, details.find(({ typeUrl }) => typeUrl.endsWith(`/${type.$type}`))?.value);
  const info = find(ErrorInfo);
  const wait = find(RetryInfo)?.retryDelay;
  const upstream = find(UpstreamError);
  return {
    code: grpc.status[error.code],
    message: error.details,
    reason: info?.reason ?? "",
    domain: info?.domain ?? "",
    metadata: info?.metadata ?? {},
    retryAfterS: wait ? Number(wait.seconds) + wait.nanos / 1e9 : null,
    violations: find(BadRequest)?.fieldViolations ?? [],
    requestId: find(RequestInfo)?.requestId ?? "",
    upstream,
    upstreamWords: upstream?.message || upstream?.bodyExcerpt || "",
  };
}
export type Failure = ReturnType<typeof readFailure>;

/** Returns a message, or undefined if its bytes are absent or broken. */
function decode<T>(type: MessageFns<T, string>, bytes?: Uint8Array): T | undefined {
  try {
    return bytes && type.decode(bytes);
  } catch {
    return undefined;
  }
}

/** Returns the response that the chunks of a stream make up. */
export async function accumulate(chunks: Iterable<Chunk> | AsyncIterable<Chunk>): Promise<Reply> {
  const accumulator = new Accumulator();
  for await (const chunk of chunks) accumulator.add(chunk);
  return accumulator.build();
}

/** The same chunk by chunk: for a program that shows text as it comes, or if the stream fails. */
export class Accumulator {
  readonly #reply: Fields = {};
  readonly #choices = new Map<number, ChoiceSoFar>();

  /** Adds the next chunk. */
  add({ choices, ...reply }: Chunk): void {
    merge(this.#reply, reply);
    for (const choice of choices) {
      if (!this.#choices.has(choice.index)) this.#choices.set(choice.index, new ChoiceSoFar());
      this.#choices.get(choice.index)!.add(choice);
    }
  }

  /** Returns the response as it is so far: a copy, with those fields that a response has. */
  build(): Reply {
    const choices: any[] = [...this.#choices].sort(([a], [b]) => a - b).map(([, choice]) => choice.build());
    return Reply.fromPartial({ ...this.#reply, object: "chat.completion", choices });
  }
}

class ChoiceSoFar {
  readonly #choice: Fields = { message: {} };
  readonly #calls: Fields[] = [];
  readonly #last = new Map<number, Fields>(); // the last call at each index
  #before?: Fields; // the call of the fragment before

  add({ delta, finishReason, ...choice }: ChoiceDelta): void {
    const { toolCalls = [], ...message } = delta ?? {};
    merge(this.#choice, { ...choice, finishReason: finishReason || undefined, message });
    for (const fragment of toolCalls) {
      this.#before = this.#find(fragment);
      merge(this.#before, fragment);
    }
  }

  /** Returns the last call at the fragment's index, or the one of the fragment before; or a new one. */
  #find({ index, id, function: named }: ToolCallDelta): Fields {
    const found = index === undefined ? this.#before : this.#last.get(index);
    const isOther = id && found?.id ? id !== found.id : index === undefined;
    if (found && !(isOther && named?.name)) return found;
    const call = { index: index ?? this.#calls.length };
    this.#calls.push(call);
    this.#last.set(call.index, call);
    return call;
  }

  build(): Fields {
    const calls = [...this.#calls].sort((a, b) => a.index - b.index);
    const toolCalls = calls.map((call) => ({ ...call, index: undefined, type: call.type || "function" }));
    const { role, content: text, ...message } = this.#choice.message;
    const content = text || (text === "" && calls.length === 0) ? { $case: "text", value: text } : undefined;
    return { ...this.#choice, message: { ...message, role: role || "assistant", content, toolCalls } };
  }
}

type Fields = Record<string, any>;
const JOINED = ["content", "refusal", "reasoningContent", "reasoning", "arguments"];
const FIRST = ["id", "created", "model", "role", "type", "name"]; // later ones replace nothing

/** Adds what is set to what came before, at each level. */
function merge(kept: Fields, added: Fields): void {
  for (const [name, value] of Object.entries(added)) {
    if (value === undefined) continue;
    if (name === "extraJson") kept[name] = { ...kept[name], ...value };
    else if (Array.isArray(value)) (kept[name] ??= []).push(...value);
    else if (typeof value === "object") merge((kept[name] ??= {}), value);
    else if (JOINED.includes(name)) kept[name] = (kept[name] ?? "") + value;
    else if (FIRST.includes(name)) kept[name] ||= value;
    else kept[name] = value;
  }
}

/** Connects to a bridge, joins the chunks of a stream, and reads a failed call. ../../CASES.md has the rules. */

import { readFileSync } from "node:fs";

import * as grpc from "@grpc/grpc-js";

import { BadRequest, ErrorInfo, RequestInfo, RetryInfo } from "./generated/google/rpc/error_details.js";
import { Status } from "./generated/google/rpc/status.js";
import { ChatMessage, Choice, type ChoiceDelta, ToolCall, type ToolCallDelta } from "./generated/ollmbridge/v1/chat.js";
import {
  ChatCompletionServiceClient,
  CreateChatCompletionResponse,
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
  const read = (file?: string) => (file === undefined ? null : readFileSync(file));
  const credentials = tls
    ? grpc.credentials.createSsl(read(tls.ca), read(tls.key), read(tls.cert))
    : grpc.credentials.createInsecure();
  return new ChatCompletionServiceClient(address, credentials, {
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.max_receive_message_length": 32 * 1024 * 1024, // an answer may have 16 MiB; gRPC's own limit is 4 MiB
    "grpc.per_rpc_retry_buffer_size": 8 * 1024 * 1024, // a request may have 4 MiB; gRPC's own limit is 1 MiB
    "grpc.service_config": SERVICE_CONFIG,
    ...options,
  });
}

/** What a failed call says. Without the bridge's details, as from a proxy, all but code and message is empty. */
export type Failure = ReturnType<typeof readFailure>;

/** Reads the error of a call. */
export function readFailure(error: grpc.ServiceError) {
  const [packed] = error.metadata.get("grpc-status-details-bin");
  const details = (Buffer.isBuffer(packed) && decode(Status, packed)?.details) || [];
  const find = <T>(type: Type<T>) => {
    const found = details.find(({ typeUrl }) => typeUrl.endsWith(`/${type.$type}`));
    return found && decode(type, found.value);
  };
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

type Type<T> = { $type: string; decode(bytes: Uint8Array): T };

function decode<T>(type: Type<T>, bytes: Uint8Array): T | undefined {
  try {
    return type.decode(bytes);
  } catch {
    return undefined; // broken bytes count as none
  }
}

type Chunks = Iterable<Chunk> | AsyncIterable<Chunk>;

/** Returns the response that the chunks of a stream make up. */
export async function accumulate(chunks: Chunks): Promise<CreateChatCompletionResponse> {
  const accumulator = new Accumulator();
  for await (const chunk of chunks) accumulator.add(chunk);
  return accumulator.build();
}

/** The same chunk by chunk: for a program that shows text as it comes, or if the stream fails. */
export class Accumulator {
  readonly #reply = CreateChatCompletionResponse.create({ object: "chat.completion" });
  readonly #choices = new Map<number, ChoiceSoFar>();

  /** Adds the next chunk. */
  add({ id, object: _, created, model, choices, rawChunkJson: __, ...rest }: Chunk): void {
    this.#reply.id ||= id;
    this.#reply.created ||= created;
    this.#reply.model ||= model;
    merge(this.#reply, rest);
    for (const added of choices) {
      if (!this.#choices.has(added.index)) this.#choices.set(added.index, new ChoiceSoFar());
      this.#choices.get(added.index)!.add(added);
    }
  }

  /** Returns the response as it is so far. */
  build(): CreateChatCompletionResponse {
    const sorted = [...this.#choices].sort(([a], [b]) => a - b);
    const choices = sorted.map(([index, choice]) => choice.build(index));
    return CreateChatCompletionResponse.fromPartial({ ...this.#reply, choices }); // a copy
  }
}

class ChoiceSoFar {
  readonly #message = ChatMessage.create();
  readonly #choice = Choice.create();
  readonly #calls: { index: number; call: ToolCall }[] = [];
  readonly #places = new Map<number, number>(); // of the last call at each index
  #text: string | undefined;
  #place: number | undefined; // of the fragment before

  add({ delta, finishReason, logprobs, extraJson }: ChoiceDelta): void {
    merge(this.#choice, { finishReason: finishReason || undefined, logprobs, extraJson });
    if (!delta) return;
    const message = this.#message;
    message.role ||= delta.role ?? "";
    this.#text = join(this.#text, delta.content);
    message.refusal = join(message.refusal, delta.refusal);
    message.reasoningContent = join(message.reasoningContent, delta.reasoningContent);
    message.reasoning = join(message.reasoning, delta.reasoning);
    merge(message, { annotations: delta.annotations, extraJson: delta.extraJson });
    for (const fragment of delta.toolCalls) {
      this.#place = this.#find(fragment);
      const { call } = this.#calls[this.#place]!;
      call.id ||= fragment.id ?? "";
      call.type ||= fragment.type;
      merge(call.extraJson, fragment.extraJson);
      if (!fragment.function) continue;
      call.function ??= { name: "", arguments: "", extraJson: {} };
      call.function.name ||= fragment.function.name ?? "";
      call.function.arguments += fragment.function.arguments ?? "";
      merge(call.function.extraJson, fragment.function.extraJson);
    }
  }

  /** Returns the place of a fragment's call: of the last one at its index, or of the one before; or of a new one. */
  #find({ index, id, function: named }: ToolCallDelta): number {
    const place = index === undefined ? this.#place : this.#places.get(index);
    if (place !== undefined) {
      const known = this.#calls[place]!.call.id;
      const isOther = id && known ? id !== known : index === undefined;
      if (!isOther || !named?.name) return place;
    }
    const at = index ?? this.#calls.length;
    this.#places.set(at, this.#calls.length);
    return this.#calls.push({ index: at, call: ToolCall.create() }) - 1;
  }

  build(index: number): Choice {
    const calls = [...this.#calls].sort((a, b) => a.index - b.index);
    const hasText = this.#text || (this.#text === "" && calls.length === 0);
    const message = {
      ...this.#message,
      role: this.#message.role || "assistant",
      content: hasText ? ({ $case: "text", value: this.#text! } as const) : undefined,
      toolCalls: calls.map(({ call }) => ({ ...call, type: call.type || "function" })),
    };
    return { ...this.#choice, index, message };
  }
}

function join(text: string | undefined, added: string | undefined): string | undefined {
  return added === undefined ? text : (text ?? "") + added;
}

/** Sets what is set, at each level, and appends to lists: protobuf's merge. */
function merge(kept: Record<string, any>, added: Record<string, any>): void {
  for (const [key, value] of Object.entries(added)) {
    if (Array.isArray(value)) (kept[key] ??= []).push(...value);
    else if (typeof value === "object") merge((kept[key] ??= {}), value);
    else if (value !== undefined) kept[key] = value;
  }
}

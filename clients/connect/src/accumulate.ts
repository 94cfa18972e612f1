/** Joins the chunks of a stream to the response that a unary call would return. ../../CASES.md has the rules. */

import { clone, create, type DescMessage, fromBinary, type MessageShape, toBinary } from "@bufbuild/protobuf";

import {
  type CreateChatCompletionResponse,
  CreateChatCompletionResponseSchema,
  type StreamChatCompletionResponse,
} from "./generated/ollmbridge/v1/chat_completion_service_pb.js";
import {
  ChatMessageSchema,
  type Choice,
  type ChoiceDelta,
  ChoiceSchema,
  FunctionCallSchema,
  LogprobsSchema,
  type ToolCall,
  type ToolCallDelta,
  ToolCallSchema,
  UsageSchema,
} from "./generated/ollmbridge/v1/chat_pb.js";

/** Returns the response that the chunks of a stream make up. */
export async function accumulate(
  chunks: Iterable<StreamChatCompletionResponse> | AsyncIterable<StreamChatCompletionResponse>,
): Promise<CreateChatCompletionResponse> {
  const accumulator = new Accumulator();
  for await (const chunk of chunks) accumulator.add(chunk);
  return accumulator.build();
}

/** The same chunk by chunk: for a program that shows text as it comes, or if the stream fails. */
export class Accumulator {
  readonly #reply = create(CreateChatCompletionResponseSchema, { object: "chat.completion" });
  readonly #choices = new Map<number, ChoiceSoFar>();

  /** Adds the next chunk. */
  add(chunk: StreamChatCompletionResponse): void {
    const reply = this.#reply;
    reply.id ||= chunk.id;
    reply.created ||= chunk.created;
    reply.model ||= chunk.model;
    reply.episodeId = chunk.episodeId ?? reply.episodeId;
    reply.systemFingerprint = chunk.systemFingerprint ?? reply.systemFingerprint;
    reply.serviceTier = chunk.serviceTier ?? reply.serviceTier;
    reply.rawUsageJson = chunk.rawUsageJson ?? reply.rawUsageJson;
    reply.rawResponseJson = chunk.rawResponseJson ?? reply.rawResponseJson;
    reply.usage = merge(UsageSchema, reply.usage, chunk.usage);
    Object.assign(reply.extraJson, chunk.extraJson);
    for (const added of chunk.choices) {
      if (!this.#choices.has(added.index)) this.#choices.set(added.index, new ChoiceSoFar());
      this.#choices.get(added.index)!.add(added);
    }
  }

  /** Returns the response as it is so far. */
  build(): CreateChatCompletionResponse {
    const reply = clone(CreateChatCompletionResponseSchema, this.#reply);
    const sorted = [...this.#choices].sort(([a], [b]) => a - b);
    reply.choices = sorted.map(([index, choice]) => choice.build(index));
    return reply;
  }
}

class ChoiceSoFar {
  readonly #message = create(ChatMessageSchema);
  readonly #choice = create(ChoiceSchema);
  readonly #logprobs: Uint8Array[] = [];
  readonly #calls: { index: number; call: ToolCall }[] = [];
  readonly #places = new Map<number, number>(); // of the last call at each index
  #text: string | undefined;
  #place: number | undefined; // of the fragment before

  add({ delta, finishReason, logprobs, extraJson }: ChoiceDelta): void {
    this.#choice.finishReason = finishReason || this.#choice.finishReason;
    if (logprobs) this.#logprobs.push(toBinary(LogprobsSchema, logprobs));
    Object.assign(this.#choice.extraJson, extraJson);
    if (!delta) return;
    const message = this.#message;
    message.role ||= delta.role ?? "";
    this.#text = join(this.#text, delta.content);
    message.refusal = join(message.refusal, delta.refusal);
    message.reasoningContent = join(message.reasoningContent, delta.reasoningContent);
    message.reasoning = join(message.reasoning, delta.reasoning);
    message.annotations.push(...delta.annotations);
    Object.assign(message.extraJson, delta.extraJson);
    for (const fragment of delta.toolCalls) {
      this.#place = this.#find(fragment);
      const { call } = this.#calls[this.#place]!;
      call.id ||= fragment.id ?? "";
      call.type ||= fragment.type;
      Object.assign(call.extraJson, fragment.extraJson);
      if (!fragment.function) continue;
      call.function ??= create(FunctionCallSchema);
      call.function.name ||= fragment.function.name ?? "";
      call.function.arguments += fragment.function.arguments ?? "";
      Object.assign(call.function.extraJson, fragment.function.extraJson);
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
    return this.#calls.push({ index: at, call: create(ToolCallSchema) }) - 1;
  }

  build(index: number): Choice {
    const message = clone(ChatMessageSchema, this.#message);
    message.role ||= "assistant";
    const calls = [...this.#calls].sort((a, b) => a.index - b.index);
    message.toolCalls = calls.map(({ call }) => clone(ToolCallSchema, call));
    for (const call of message.toolCalls) call.type ||= "function";
    if (this.#text || (this.#text === "" && this.#calls.length === 0)) {
      message.content = { case: "text", value: this.#text };
    }
    const choice = clone(ChoiceSchema, this.#choice);
    if (this.#logprobs.length > 0) choice.logprobs = fromBinary(LogprobsSchema, concatenate(this.#logprobs));
    return Object.assign(choice, { index, message });
  }
}

function join(text: string | undefined, added: string | undefined): string | undefined {
  return added === undefined ? text : (text ?? "") + added;
}

/** Sets what is set, at each level: messages whose bytes are joined are merged. */
function merge<T extends DescMessage>(schema: T, kept?: MessageShape<T>, added?: MessageShape<T>) {
  const parts = [kept, added].filter((message) => message !== undefined);
  return parts.length > 0 ? fromBinary(schema, concatenate(parts.map((part) => toBinary(schema, part)))) : undefined;
}

function concatenate(parts: Uint8Array[]): Uint8Array {
  const joined = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    joined.set(part, at);
    at += part.length;
  }
  return joined;
}

/** Joins the chunks of a stream to the response that a unary call would return. ../../CASES.md has the rules. */

import { clone, create } from "@bufbuild/protobuf";

import {
  type CreateChatCompletionResponse as Reply,
  CreateChatCompletionResponseSchema as ReplySchema,
  type StreamChatCompletionResponse as Chunk,
} from "./generated/ollmbridge/v1/chat_completion_service_pb.js";
import type { ChoiceDelta, ToolCallDelta } from "./generated/ollmbridge/v1/chat_pb.js";

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
    return clone(ReplySchema, create(ReplySchema, { ...this.#reply, object: "chat.completion", choices }));
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
    const content = text || (text === "" && calls.length === 0) ? { case: "text", value: text } : undefined;
    return { ...this.#choice, message: { ...message, role: role || "assistant", content, toolCalls } };
  }
}

type Fields = Record<string, any>;
const JOINED = ["content", "refusal", "reasoningContent", "reasoning", "arguments"];
const FIRST = ["id", "created", "model", "role", "type", "name"]; // later ones replace nothing

/** Adds what is set to what came before, at each level. */
function merge(kept: Fields, added: Fields): void {
  for (const [name, value] of Object.entries(added)) {
    if (value === undefined || name === "$typeName" || name === "$unknown") continue;
    if (name === "extraJson") kept[name] = { ...kept[name], ...value };
    else if (Array.isArray(value)) (kept[name] ??= []).push(...value);
    else if (typeof value === "object") merge((kept[name] ??= {}), value);
    else if (JOINED.includes(name)) kept[name] = (kept[name] ?? "") + value;
    else if (FIRST.includes(name)) kept[name] ||= value;
    else kept[name] = value;
  }
}

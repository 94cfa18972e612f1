/** Helpers of the cases: requests, failures, and the vectors. */

import { readFileSync } from "node:fs";

import type { MessageInitShape } from "@bufbuild/protobuf";
import { type CallOptions, ConnectError } from "@connectrpc/connect";

import type { CreateChatCompletionResponse } from "./generated/ollmbridge/v1/chat_completion_service_pb.js";
import type { ChatMessageSchema } from "./generated/ollmbridge/v1/chat_pb.js";
import { type Failure, readFailure } from "./kit.js";

const MODEL = "near_qwen3_30b";
const CASE_TIMEOUT_MS = 60_000;

/** Returns a message of a role with a text. Clients convert plain objects to messages. */
export function buildMessage(role: string, text: string) {
  return { role, content: { case: "text", value: text } } satisfies MessageInitShape<typeof ChatMessageSchema>;
}

/** Returns a request with one message of the user. */
export function buildRequest(text: string, model = MODEL) {
  return { model, messages: [buildMessage("user", text)] };
}

/** Returns call options with a timeout. */
export function withTimeout(timeoutMs = CASE_TIMEOUT_MS): CallOptions {
  return { timeoutMs };
}

/** The text of a reply's first choice. */
export function textOf(reply: CreateChatCompletionResponse): string | null {
  const content = reply.choices[0]?.message?.content;
  return content?.case === "text" ? content.value : null;
}

/** Awaits a call that must fail, and returns its failure. */
export async function expectFailure(call: Promise<unknown>): Promise<Failure> {
  try {
    await call;
  } catch (error) {
    return readFailure(ConnectError.from(error));
  }
  throw new Error("the call did not fail");
}

/** What is printed of a failure. */
export function describe(failure: Failure) {
  return {
    code: failure.code,
    message: failure.message,
    reason: failure.reason,
    domain: failure.domain,
    retry_after_s: failure.retryAfterS,
    violations: failure.violations.map(({ field, description }) => ({ field, description })),
    request_id: failure.requestId,
    http_status: failure.upstream?.httpStatus ?? 0,
    upstream_words: failure.upstreamWords,
  };
}

/** A line of one of the files of ../../vectors, with the bytes in base64. */
export interface Vector {
  name: string;
  chunks: string[];
  code: number;
  message: string;
  details: string;
}

/** Reads one of the files of ../../vectors. */
export function readVectors(kind: string): Vector[] {
  const { VECTORS = "../vectors" } = process.env;
  const lines = readFileSync(`${VECTORS}/${kind}.jsonl`, "utf8").trimEnd().split("\n");
  return lines.map((line) => JSON.parse(line));
}

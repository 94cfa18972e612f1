/** Helpers of the cases: calls as promises, and the vectors. */

import { readFileSync } from "node:fs";

import * as grpc from "@grpc/grpc-js";

import { ChatMessage } from "./generated/ollmbridge/v1/chat.js";
import {
  ChatCompletionServiceClient,
  CreateChatCompletionRequest,
  CreateChatCompletionResponse,
  StreamChatCompletionResponse,
} from "./generated/ollmbridge/v1/chat_completion_service.js";
import { type Failure, readFailure } from "./kit.js";

const MODEL = "near_qwen3_30b";
const CASE_TIMEOUT_MS = 60_000;

/** Returns a request with one message of the user. */
export function buildRequest(text: string, model = MODEL): CreateChatCompletionRequest {
  const messages = [ChatMessage.fromPartial({ role: "user", content: { $case: "text", value: text } })];
  return CreateChatCompletionRequest.fromPartial({ model, messages });
}

/** Returns call options with a deadline. */
export function withTimeout(timeoutMs = CASE_TIMEOUT_MS): grpc.CallOptions {
  return { deadline: Date.now() + timeoutMs };
}

/** Makes a unary call. Returns the reply and the trailers, which have the returned headers. */
export async function create(
  client: ChatCompletionServiceClient,
  request: CreateChatCompletionRequest,
  options: grpc.CallOptions = withTimeout(),
  metadata = new grpc.Metadata(),
): Promise<{ reply: CreateChatCompletionResponse; trailers: grpc.Metadata }> {
  let call!: grpc.ClientUnaryCall;
  const reply = new Promise<CreateChatCompletionResponse>((resolve, reject) => {
    call = client.createChatCompletion(request, metadata, options, (error, reply) =>
      error ? reject(error) : resolve(reply),
    );
  });
  const status = new Promise<grpc.StatusObject>((resolve) => call.on("status", resolve));
  return { reply: await reply, trailers: (await status).metadata };
}

/** Returns a stream's chunks with their type: grpc-js' streams are Node's, whose iterators yield any. */
export function iterateChunks(
  call: grpc.ClientReadableStream<StreamChatCompletionResponse>,
): AsyncIterable<StreamChatCompletionResponse> {
  return call;
}

/** The text of a reply's first choice. */
export function textOf(reply: CreateChatCompletionResponse): string | null {
  const content = reply.choices[0]?.message?.content;
  return content?.$case === "text" ? content.value : null;
}

/** Awaits a call that must fail, and returns its failure. */
export async function expectFailure(call: Promise<unknown>): Promise<Failure> {
  try {
    await call;
  } catch (error) {
    return readFailure(error as grpc.ServiceError);
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

/** Helpers of the cases: the channel's options, calls as promises, and the details of a failed call. */

import { readFileSync } from "node:fs";

import * as grpc from "@grpc/grpc-js";

import { BadRequest, ErrorInfo, RequestInfo, RetryInfo } from "./generated/google/rpc/error_details.js";
import { Status } from "./generated/google/rpc/status.js";
import { ChatMessage } from "./generated/ollmbridge/v1/chat.js";
import {
  ChatCompletionServiceClient,
  CreateChatCompletionRequest,
  CreateChatCompletionResponse,
  StreamChatCompletionResponse,
} from "./generated/ollmbridge/v1/chat_completion_service.js";
import { UpstreamError } from "./generated/ollmbridge/v1/error_details.js";

const MODEL = "near_qwen3_30b";
const CASE_TIMEOUT_MS = 60_000;

export const SERVICE_CONFIG = {
  methodConfig: [
    {
      name: [{ service: "ollmbridge.v1.ChatCompletionService" }],
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: "0.01s",
        maxBackoff: "0.05s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
      },
    },
  ],
};

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
export async function expectFailure(call: Promise<unknown>): Promise<grpc.ServiceError> {
  try {
    await call;
  } catch (error) {
    return error as grpc.ServiceError;
  }
  throw new Error("the call did not fail");
}

/** Unpacks grpc-status-details-bin. */
export function unpackDetails(error: grpc.ServiceError) {
  const [packed] = error.metadata.get("grpc-status-details-bin");
  if (!Buffer.isBuffer(packed)) throw new Error(`the status has no details: ${error.message}`);
  const status = Status.decode(packed);
  return {
    badRequest: unpack(status, BadRequest),
    errorInfo: unpack(status, ErrorInfo),
    requestInfo: unpack(status, RequestInfo),
    retryInfo: unpack(status, RetryInfo),
    upstreamError: unpack(status, UpstreamError),
  };
}

function unpack<T>(status: Status, type: { $type: string; decode(bytes: Uint8Array): T }): T | undefined {
  const packed = status.details.find(({ typeUrl }) => typeUrl === `type.googleapis.com/${type.$type}`);
  return packed && type.decode(packed.value);
}

/** The wait that a failure asks for, or null. */
export function retryAfterS(retryInfo: RetryInfo | undefined): number | null {
  const delay = retryInfo?.retryDelay;
  return delay ? Number(delay.seconds) + delay.nanos / 1e9 : null;
}

/** Reads the file that an environment variable names. */
export function readFileOf(variable: string): Buffer {
  const path = process.env[variable];
  if (!path) throw new Error(`expected ${variable} to name a file, found it unset`);
  return readFileSync(path);
}

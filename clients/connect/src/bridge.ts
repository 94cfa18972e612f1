/** Helpers of the cases: the transport's retries, requests, and the details of a failed call. */

import { readFileSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";

import type { MessageInitShape } from "@bufbuild/protobuf";
import { type CallOptions, Code, ConnectError, type Interceptor } from "@connectrpc/connect";

import { RetryInfoSchema } from "./generated/google/rpc/error_details_pb.js";
import type { CreateChatCompletionResponse } from "./generated/ollmbridge/v1/chat_completion_service_pb.js";
import type { ChatMessageSchema } from "./generated/ollmbridge/v1/chat_pb.js";

const MODEL = "near_qwen3_30b";
const CASE_TIMEOUT_MS = 60_000;
const ATTEMPTS_MAX = 4;
const PAUSE_S_MAX = 60;
const BACKOFF_S = { first: 0.01, max: 0.05 };
const RETRYABLE = [Code.Unavailable, Code.ResourceExhausted];

/**
 * A retry policy, since Connect has none: retries what is safe to retry, after the wait that the bridge asks for.
 * The call's deadline spans all attempts. It does not retry streams: they fail while they are read, when chunks may have
 * come already.
 */
export const retries: Interceptor = (next) => async (request) => {
  for (let attempt = 1; ; attempt++) {
    try {
      return await next(request);
    } catch (error) {
      const pauseS = choosePauseS(ConnectError.from(error), attempt);
      if (request.stream || pauseS === null) throw error;
      await pause(pauseS * 1000, undefined, { signal: request.signal });
    }
  }
};

/** Returns the pause before the next attempt, or null if there must be none. */
function choosePauseS(error: ConnectError, attempt: number): number | null {
  if (attempt >= ATTEMPTS_MAX || !RETRYABLE.includes(error.code)) return null;
  const pauseS = retryAfterS(error) ?? Math.min(BACKOFF_S.first * 2 ** (attempt - 1), BACKOFF_S.max);
  return pauseS <= PAUSE_S_MAX ? pauseS : null;
}

/** The wait that a failure asks for, or null. */
export function retryAfterS(error: ConnectError): number | null {
  const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
  return delay ? Number(delay.seconds) + delay.nanos / 1e9 : null;
}

/** A code's name in the gRPC specification. */
export function nameOf(code: Code): string {
  return code === Code.Canceled ? "CANCELLED" : Code[code].replace(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase();
}

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
export async function expectFailure(call: Promise<unknown>): Promise<ConnectError> {
  try {
    await call;
  } catch (error) {
    return ConnectError.from(error);
  }
  throw new Error("the call did not fail");
}

/** Reads the file that an environment variable names. */
export function readFileOf(variable: string): Buffer {
  const path = process.env[variable];
  if (!path) throw new Error(`expected ${variable} to name a file, found it unset`);
  return readFileSync(path);
}

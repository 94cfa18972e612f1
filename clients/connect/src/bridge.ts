/** The bridge as the cases call it: the transport with its retries, requests, and what a failed call says. */

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
const REPEATABLE = [Code.Unavailable, Code.ResourceExhausted];

/**
 * Connect has no retry policy, so this is one: what is safe to repeat is repeated, as late as the bridge asks for it.
 * The call's deadline spans all attempts. Streams pass: they fail while they are read, when something may have come.
 */
export const retries: Interceptor = (next) => async (request) => {
  for (let attempt = 1; ; attempt++) {
    try {
      return await next(request);
    } catch (error) {
      const pauseS = pauseAfter(ConnectError.from(error), attempt);
      if (request.stream || pauseS === null) throw error;
      await pause(pauseS * 1000, undefined, { signal: request.signal });
    }
  }
};

/** The pause before the next attempt, or null where there must be none. */
function pauseAfter(error: ConnectError, attempt: number): number | null {
  if (attempt >= ATTEMPTS_MAX || !REPEATABLE.includes(error.code)) return null;
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

/** A message of a role with a text. Clients take plain objects and make messages of them. */
export function said(role: string, text: string) {
  return { role, content: { case: "text", value: text } } satisfies MessageInitShape<typeof ChatMessageSchema>;
}

/** A request with one message of the user. */
export function asked(text: string, model = MODEL) {
  return { model, messages: [said("user", text)] };
}

/** The options of a call that may take so long. */
export function within(timeoutMs = CASE_TIMEOUT_MS): CallOptions {
  return { timeoutMs };
}

/** The text of a reply's first choice. */
export function textOf(reply: CreateChatCompletionResponse): string | null {
  const content = reply.choices[0]?.message?.content;
  return content?.case === "text" ? content.value : null;
}

/** The failure of a call that must fail. */
export async function failed(call: Promise<unknown>): Promise<ConnectError> {
  try {
    await call;
  } catch (error) {
    return ConnectError.from(error);
  }
  throw new Error("expected a failure, found an answer");
}

/** Reads the file that a variable of the environment names. */
export function fileOf(variable: string): Buffer {
  const path = process.env[variable];
  if (!path) throw new Error(`expected ${variable} to name a file, found it unset`);
  return readFileSync(path);
}

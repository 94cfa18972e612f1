/** Connects to a bridge, retries what is safe to retry, and reads a failed call. ../../CASES.md has the rules. */

import { readFileSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";

import { type Client, Code, ConnectError, createClient, type Interceptor, type Transport } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

import {
  BadRequestSchema,
  ErrorInfoSchema,
  RequestInfoSchema,
  RetryInfoSchema,
} from "./generated/google/rpc/error_details_pb.js";
import { ChatCompletionService } from "./generated/ollmbridge/v1/chat_completion_service_pb.js";
import { UpstreamErrorSchema } from "./generated/ollmbridge/v1/error_details_pb.js";

const ATTEMPTS_MAX = 4;
const PAUSE_S_MAX = 60;
const BACKOFF_S = { first: 0.1, max: 5 };
const RETRYABLE = [Code.Unavailable, Code.ResourceExhausted];

/** PEM files: of the authorities to trust (unset: the system's), and of the client's certificate and its key. */
export type Tls = { ca?: string; cert?: string; key?: string };

/** Returns a client of a bridge; without `tls`, not over TLS. */
export function connect(address: string, tls?: Tls): Client<typeof ChatCompletionService> {
  return createClient(ChatCompletionService, openTransport(address, tls));
}

/** Returns the transport of such a client. */
export function openTransport(address: string, tls?: Tls): Transport {
  const read = (file?: string) => (file === undefined ? undefined : readFileSync(file));
  return createGrpcTransport({
    baseUrl: `${tls ? "https" : "http"}://${address}`,
    nodeOptions: tls && { ca: read(tls.ca), cert: read(tls.cert), key: read(tls.key) },
    interceptors: [retries],
    pingIntervalMs: 30_000,
    pingIdleConnection: true,
    readMaxBytes: 32 * 1024 * 1024, // an answer may have 16 MiB
  });
}

/**
 * A retry policy, since Connect has none: retries what is safe to retry, after the wait that the bridge asks for.
 * The call's deadline spans all attempts. It does not retry streams: they fail while they are read, when chunks may
 * have come already.
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
  const pauseS = readFailure(error).retryAfterS ?? Math.min(BACKOFF_S.first * 2 ** (attempt - 1), BACKOFF_S.max);
  return pauseS <= PAUSE_S_MAX ? pauseS : null;
}

/** What a failed call says. Without the bridge's details, as from a proxy, all but code and message is empty. */
export type Failure = ReturnType<typeof readFailure>;

/** Reads the error of a call. */
export function readFailure(error: ConnectError) {
  const [info] = error.findDetails(ErrorInfoSchema);
  const [wait] = error.findDetails(RetryInfoSchema);
  const [upstream] = error.findDetails(UpstreamErrorSchema);
  return {
    code: nameOf(error.code),
    message: error.rawMessage,
    reason: info?.reason ?? "",
    domain: info?.domain ?? "",
    metadata: info?.metadata ?? {},
    retryAfterS: wait?.retryDelay ? Number(wait.retryDelay.seconds) + wait.retryDelay.nanos / 1e9 : null,
    violations: error.findDetails(BadRequestSchema)[0]?.fieldViolations ?? [],
    requestId: error.findDetails(RequestInfoSchema)[0]?.requestId ?? "",
    upstream,
    upstreamWords: upstream?.message || upstream?.bodyExcerpt || "",
  };
}

/** A code's name in the gRPC specification. */
function nameOf(code: Code): string {
  return code === Code.Canceled ? "CANCELLED" : Code[code].replace(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase();
}

// The details of a failed call, decoded from gRPC-Web's trailers, and advice for a person.

import { Code, ConnectError } from "@connectrpc/connect";

import { BadRequestSchema, ErrorInfoSchema, RequestInfoSchema, RetryInfoSchema } from "../generated/google/rpc/error_details_pb";
import { UpstreamErrorSchema } from "../generated/ollmbridge/v1/error_details_pb";

export interface Failure {
  /** The gRPC code's name: `RESOURCE_EXHAUSTED`. */
  code: string;
  /** From ErrorInfo. Empty if the bridge was not reached, since it sends ErrorInfo with each failure. */
  reason: string;
  message: string;
  advice: string;
  /** Other details, by name. */
  details: Array<[name: string, value: string]>;
}

/** Decodes the error that a call ended with. */
export function explainFailure(thrown: unknown): Failure {
  const error = ConnectError.from(thrown);
  const [info] = error.findDetails(ErrorInfoSchema);
  const [retry] = error.findDetails(RetryInfoSchema);
  const [request] = error.findDetails(RequestInfoSchema);
  const [upstream] = error.findDetails(UpstreamErrorSchema);
  const violations = error.findDetails(BadRequestSchema).flatMap((bad) => bad.fieldViolations);
  const wait = retry?.retryDelay && Number(retry.retryDelay.seconds) + retry.retryDelay.nanos / 1e9;

  const details: Failure["details"] = violations.map(({ field, description }) => [field, description]);
  if (upstream) {
    details.push(["the gateway said", `HTTP ${upstream.httpStatus} ${upstream.type ?? ""} ${upstream.code ?? ""}`.trim()]);
    details.push(["chunks before", String(upstream.chunksDelivered)]);
  }
  if (request) {
    details.push(["request id", request.requestId]);
  }
  return {
    code: nameOf(error.code),
    reason: info?.reason ?? "",
    message: error.rawMessage,
    advice: chooseAdvice(error.code, info !== undefined, wait),
    details,
  };
}

/** Spells a code as the gRPC specification does: `RESOURCE_EXHAUSTED` for `Code.ResourceExhausted`. */
function nameOf(code: Code): string {
  return Code[code].replace(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase().replace("CANCELED", "CANCELLED");
}

function chooseAdvice(code: Code, fromBridge: boolean, wait: number | undefined): string {
  if (wait !== undefined) {
    return `Try again in ${wait} s.`;
  }
  switch (code) {
    case Code.Unknown:
      return "No answer came, or it was interrupted: does the bridge run, and may this page call it?";
    case Code.Unavailable:
      // Only the bridge knows that nothing was generated, and its statuses have a reason.
      return fromBridge ? "Nothing was generated: it is safe to try again." : "No bridge could be reached: try again later.";
    case Code.Aborted:
      return "It may have run and been billed: try again only if paying twice is acceptable.";
    case Code.ResourceExhausted:
      return "Too many calls: try again in a moment.";
    case Code.InvalidArgument:
    case Code.NotFound:
      return "Fix the request: the same one will fail again.";
    case Code.Unauthenticated:
    case Code.PermissionDenied:
      return "Ask for access: the same call will fail again.";
    default:
      return "It may have run. If this persists, report the request id.";
  }
}

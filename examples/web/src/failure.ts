// What a failed call says, and what to do about it: the status' details, decoded from gRPC-Web's trailers.

import { Code, ConnectError } from "@connectrpc/connect";

import { BadRequestSchema, ErrorInfoSchema, RequestInfoSchema, RetryInfoSchema } from "../generated/google/rpc/error_details_pb";
import { UpstreamErrorSchema } from "../generated/ollmbridge/v1/error_details_pb";

export interface Failure {
  /** The gRPC code's name: `RESOURCE_EXHAUSTED`. */
  code: string;
  /** Of ErrorInfo; empty where the bridge was not reached, since it sends one with each failure. */
  reason: string;
  message: string;
  advice: string;
  /** What else came, by name. */
  details: Array<[name: string, value: string]>;
}

/** Decode whatever a call was ended by. */
export function explained(thrown: unknown): Failure {
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
    code: named(error.code),
    reason: info?.reason ?? "",
    message: error.rawMessage,
    advice: advised(error.code, info !== undefined, wait),
    details,
  };
}

/** `Code.ResourceExhausted` as the gRPC specification writes it. */
function named(code: Code): string {
  return Code[code].replace(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase().replace("CANCELED", "CANCELLED");
}

function advised(code: Code, answered: boolean, wait: number | undefined): string {
  if (wait !== undefined) {
    return `Try again in ${wait} s.`;
  }
  switch (code) {
    case Code.Unknown:
      return "No answer came, or it broke off: is Envoy there, and may this page call it?";
    case Code.Unavailable:
      // That nothing was generated is the bridge's word, which comes with a reason.
      return answered ? "Nothing was generated: it is safe to try again." : "No bridge could be reached: try again later.";
    case Code.Aborted:
      return "It may have run and been billed: try again only if you would pay for it twice.";
    case Code.ResourceExhausted:
      return "Too many calls: try again in a moment.";
    case Code.InvalidArgument:
    case Code.NotFound:
      return "Mend the request: the same one will fail again.";
    case Code.Unauthenticated:
    case Code.PermissionDenied:
      return "Ask for access: the same call will fail again.";
    default:
      return "It may have run. If it lasts, report the request id.";
  }
}

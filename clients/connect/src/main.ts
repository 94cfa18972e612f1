/** Runs the named cases, or all, and prints a line for each. The environment has the bridge's address. */

import { createClient } from "@connectrpc/connect";

import * as cases from "./cases.js";
import { Health } from "./generated/health/v1/health_pb.js";
import { connect, openTransport } from "./kit.js";

const { BRIDGE_ADDRESS = "127.0.0.1:50051", BRIDGE_TLS_ADDRESS, BRIDGE_MTLS_ADDRESS } = process.env;

const client = connect(BRIDGE_ADDRESS);

const table: Record<string, (() => Promise<object>) | false> = {
  unary: () => cases.unary(client),
  stream: () => cases.stream(client),
  tools: () => cases.tools(client),
  ollm_options: () => cases.ollmOptions(client),
  extra_json: () => cases.extraJson(client),
  error: () => cases.error(client),
  large_error: () => cases.largeError(client),
  deadline: () => cases.deadline(client),
  cancel: () => cases.cancel(client),
  retry: () => cases.retry(client),
  tls: BRIDGE_TLS_ADDRESS !== undefined && (() => cases.tls(BRIDGE_TLS_ADDRESS)),
  mtls: BRIDGE_MTLS_ADDRESS !== undefined && (() => cases.mtls(BRIDGE_MTLS_ADDRESS)),
  health: () => cases.health(createClient(Health, openTransport(BRIDGE_ADDRESS))),
  large_answer: () => cases.largeAnswer(client),
  accumulate: cases.accumulateVectors,
  failure: cases.readFailures,
};

const named = process.argv.slice(2);
for (const [name, run] of Object.entries(table)) {
  if (run && (named.length === 0 || named.includes(name))) {
    console.log(JSON.stringify({ case: name, ...(await run()) }));
  }
}

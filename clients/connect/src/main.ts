/** Runs the named cases, or all, and prints a line for each. The environment has the bridge's address. */

import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

import { retries } from "./bridge.js";
import * as cases from "./cases.js";
import { Health } from "./generated/health/v1/health_pb.js";
import { ChatCompletionService } from "./generated/ollmbridge/v1/chat_completion_service_pb.js";

const { BRIDGE_ADDRESS = "127.0.0.1:50051", BRIDGE_TLS_ADDRESS, BRIDGE_MTLS_ADDRESS } = process.env;

const transport = createGrpcTransport({ baseUrl: `http://${BRIDGE_ADDRESS}`, interceptors: [retries] });
const client = createClient(ChatCompletionService, transport);

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
  health: () => cases.health(createClient(Health, transport)),
};

const named = process.argv.slice(2);
for (const [name, run] of Object.entries(table)) {
  if (run && (named.length === 0 || named.includes(name))) {
    console.log(JSON.stringify({ case: name, ...(await run()) }));
  }
}

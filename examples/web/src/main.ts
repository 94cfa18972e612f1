// One completion on a page: send it, watch it grow, stop it. `?address=…&model=…&protocol=…` fill the form.

import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";

import { ChatCompletionService } from "../generated/ollmbridge/v1/chat_completion_service_pb";
import { explainFailure } from "./failure";

const TIMEOUT_MS = 120_000;
const DEFAULTS = { address: "http://127.0.0.1:8081", model: "near_qwen3_30b" };
/** The bridge speaks both; Envoy, as deploy/envoy has it, gRPC-Web alone. */
const TRANSPORTS = { connect: createConnectTransport, "grpc-web": createGrpcWebTransport };

const form = findElement("form", HTMLFormElement);
const prompt = findElement("prompt", HTMLTextAreaElement);
const model = findElement("model", HTMLInputElement);
const address = findElement("address", HTMLInputElement);
const send = findElement("send", HTMLButtonElement);
const protocol = findElement("protocol", HTMLSelectElement);
const stop = findElement("stop", HTMLButtonElement);
const answer = findElement("answer", HTMLElement);
const text = findElement("text", HTMLElement);
const failure = findElement("failure", HTMLElement);

const query = new URLSearchParams(location.search);
address.value = query.get("address") ?? DEFAULTS.address;
model.value = query.get("model") ?? DEFAULTS.model;
protocol.value = query.get("protocol") ?? protocol.value;

let controller = new AbortController();

form.addEventListener("submit", (event) => {
  event.preventDefault();
  controller = new AbortController();
  void complete(controller.signal);
});
// Cancelling the call is enough: the bridge then closes the gateway's connection.
stop.addEventListener("click", () => controller.abort());
// A browser may keep a page that the user left, and its calls with it.
addEventListener("pagehide", () => controller.abort());

async function complete(signal: AbortSignal): Promise<void> {
  show("streaming", "Waiting for the first word …");
  text.textContent = "";
  failure.hidden = true;
  try {
    show("whole", await stream(signal));
  } catch (thrown) {
    if (signal.aborted && ConnectError.from(thrown).code === Code.Canceled) {
      show("stopped", "Stopped.");
    } else {
      show("failed", "Failed. The text above is not whole.");
      showFailure(thrown);
    }
  }
}

/** Appends each chunk's text as it comes. Returns, with a text for the status, only if the completion is whole. */
async function stream(signal: AbortSignal): Promise<string> {
  const createTransport = TRANSPORTS[protocol.value as keyof typeof TRANSPORTS];
  const client = createClient(ChatCompletionService, createTransport({ baseUrl: address.value }));
  const request = {
    model: model.value,
    messages: [{ role: "user", content: { case: "text" as const, value: prompt.value } }],
    streamOptions: { includeUsage: true },
  };
  let finishReason = "";
  let tokens: bigint | undefined;
  for await (const chunk of client.streamChatCompletion(request, { signal, timeoutMs: TIMEOUT_MS })) {
    for (const choice of chunk.choices) {
      if (choice.delta?.content) {
        text.append(choice.delta.content);
        show("streaming", "Writing …");
      }
      finishReason = choice.finishReason ?? finishReason;
    }
    tokens = chunk.usage?.totalTokens ?? tokens;
  }
  return `Whole: ${finishReason}${tokens === undefined ? "" : `, ${tokens} tokens`}.`;
}

function show(state: "streaming" | "whole" | "stopped" | "failed", status: string): void {
  answer.dataset.state = state;
  findElement("status", HTMLElement).textContent = status;
  send.disabled = state === "streaming";
  stop.disabled = state !== "streaming";
}

function showFailure(thrown: unknown): void {
  const { details, ...texts } = explainFailure(thrown);
  for (const [name, value] of Object.entries(texts)) {
    findElement(name, HTMLElement).textContent = value;
  }
  const rows = details.flatMap(([name, value]) => [createCell("dt", name), createCell("dd", value)]);
  findElement("details", HTMLElement).replaceChildren(...rows);
  failure.hidden = false;
}

function createCell(tag: "dt" | "dd", value: string): HTMLElement {
  const cell = document.createElement(tag);
  cell.textContent = value;
  return cell;
}

function findElement<Kind extends HTMLElement>(id: string, kind: new () => Kind): Kind {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) {
    throw new Error(`#${id} is not a ${kind.name}: ${String(found)}`);
  }
  return found;
}

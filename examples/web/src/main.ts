// One completion on a page: it is sent, grows as it is written, and can be stopped. `?address=…&model=…` fill the form.

import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";

import { ChatCompletionService } from "../generated/ollmbridge/v1/chat_completion_service_pb";
import { explained } from "./failure";

const TIMEOUT_MS = 120_000;
const DEFAULTS = { address: "http://127.0.0.1:10000", model: "near_qwen3_30b" };

const form = element("form", HTMLFormElement);
const prompt = element("prompt", HTMLTextAreaElement);
const model = element("model", HTMLInputElement);
const address = element("address", HTMLInputElement);
const send = element("send", HTMLButtonElement);
const stop = element("stop", HTMLButtonElement);
const answer = element("answer", HTMLElement);
const text = element("text", HTMLElement);
const failure = element("failure", HTMLElement);

const given = new URLSearchParams(location.search);
address.value = given.get("address") ?? DEFAULTS.address;
model.value = given.get("model") ?? DEFAULTS.model;

let leaving = new AbortController();

form.addEventListener("submit", (event) => {
  event.preventDefault();
  leaving = new AbortController();
  void complete(leaving.signal);
});
// Leaving the call is all there is to it: the bridge closes the gateway's connection.
stop.addEventListener("click", () => leaving.abort());
// A browser may keep a page that was left, to come back to, and its calls with it.
addEventListener("pagehide", () => leaving.abort());

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
      show("failed", "Failed. What stands above is not whole.");
      tell(thrown);
    }
  }
}

/** Append each chunk's text as it comes. Returns, and says how it ended, only where the completion is whole. */
async function stream(signal: AbortSignal): Promise<string> {
  const client = createClient(ChatCompletionService, createGrpcWebTransport({ baseUrl: address.value }));
  const request = {
    model: model.value,
    messages: [{ role: "user", content: { case: "text" as const, value: prompt.value } }],
    streamOptions: { includeUsage: true },
  };
  let finished = "";
  let tokens: bigint | undefined;
  for await (const chunk of client.streamChatCompletion(request, { signal, timeoutMs: TIMEOUT_MS })) {
    for (const choice of chunk.choices) {
      if (choice.delta?.content) {
        text.append(choice.delta.content);
        show("streaming", "Writing …");
      }
      finished = choice.finishReason ?? finished;
    }
    tokens = chunk.usage?.totalTokens ?? tokens;
  }
  return `Whole: ${finished}${tokens === undefined ? "" : `, ${tokens} tokens`}.`;
}

function show(state: "streaming" | "whole" | "stopped" | "failed", status: string): void {
  answer.dataset.state = state;
  element("status", HTMLElement).textContent = status;
  send.disabled = state === "streaming";
  stop.disabled = state !== "streaming";
}

function tell(thrown: unknown): void {
  const { details, ...texts } = explained(thrown);
  for (const [name, value] of Object.entries(texts)) {
    element(name, HTMLElement).textContent = value;
  }
  const rows = details.flatMap(([name, value]) => [cell("dt", name), cell("dd", value)]);
  element("details", HTMLElement).replaceChildren(...rows);
  failure.hidden = false;
}

function cell(tag: "dt" | "dd", value: string): HTMLElement {
  const made = document.createElement(tag);
  made.textContent = value;
  return made;
}

function element<Kind extends HTMLElement>(id: string, kind: new () => Kind): Kind {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) {
    throw new Error(`expected #${id} to be ${kind.name}, found ${String(found)}`);
  }
  return found;
}

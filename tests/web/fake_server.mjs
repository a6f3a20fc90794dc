// A stand-in for `sash serve` that needs no model: it serves the built page and speaks the same API, with one token a word,
// a window of 60 tokens in 4 layers, and every fault on request. Tests start it in their own process.

import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

const STATIC = process.env.SASH_PAGE_FILES ?? fileURLToPath(new URL("../../src/sash/server/static", import.meta.url));
const TYPES = { ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml" };
const CSP =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; " +
  "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const SIZE = 60;
const LAYERS = 4;

const words = (text) => text.match(/\S+\s*/g) ?? [];
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** How the next token sees each message, counted token by token. */
export function account(messages, window, mixed = false, size = SIZE) {
  const limit = window?.size ?? size;
  const pinned = new Set(window?.pins?.messages ?? []);
  const counts = messages.map((message) => Math.max(words(message.content).length, 1) + 2);
  const all = counts.reduce((sum, n) => sum + n, 0);
  let at = 0;
  const rows = counts.map((n, index) => {
    const row = { index, start: at, stop: at + n, direct: 0, pinned: 0, relayed: 0, out_of_reach: 0 };
    for (let token = at; token < at + n; token += 1) {
      const age = all - 1 - token;
      if (age < limit || mixed) row.direct += 1;
      else if (pinned.has(index)) row.pinned += 1;
      else if (age <= LAYERS * (limit - 1)) row.relayed += 1;
      else row.out_of_reach += 1;
    }
    at += n;
    return row;
  });
  const kept = counts.reduce((sum, n, index) => sum + (pinned.has(index) ? n : 0), 0);
  return {
    n_tokens: all,
    size: limit,
    capacity: { slots: limit + kept, used: Math.min(all, limit + kept), pinned: kept },
    messages: rows,
  };
}

export class FakeServer {
  /** Bodies of the requests by route, in order. */
  asked = { chat: [], window: [] };
  /** What goes wrong with the next answers, first come first served: drop, event, hold, or a status. */
  faults = [];
  key = null;
  models = ["smollm2-135m-instruct"];
  /** Whether one layer has no window; the API then calls every token direct. */
  mixed = false;
  chats = true;
  /** Words after which an answer with the fault "hold" waits for `release`. */
  holdAt = 3;
  release = null;
  reply = "This is a short answer with **bold** words.";
  gap = 2;
  windowFaults = [];
  modelsKnown = null;
  cancelled = 0;
  authorizations = [];

  async start(port = 0) {
    this.server = createServer((request, response) => this.#route(request, response).catch((error) => response.destroy(error)));
    await new Promise((resolve) => this.server.listen(port, "127.0.0.1", resolve));
    this.port = this.server.address().port;
    this.url = `http://127.0.0.1:${this.port}/`;
    return this;
  }

  async stop() {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }

  async #route(request, response) {
    const path = new URL(request.url, this.url).pathname;
    if (!path.startsWith("/v1/")) return this.#file(path, response);
    this.authorizations.push(request.headers.authorization ?? null);
    if (this.key && request.headers.authorization !== `Bearer ${this.key}`) {
      return fail(response, 401, "this server asks for an API key", "invalid_api_key");
    }
    if (path === "/v1/models") await this.modelsKnown;
    if (path === "/v1/models") return send(response, { object: "list", data: this.models.map((id) => this.#card(id)) });
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = JSON.parse(Buffer.concat(chunks).toString());
    if (path === "/v1/window") {
      this.asked.window.push(body);
      if (this.windowFaults.length > 0) return fail(response, this.windowFaults.shift(), "no account now", "server_error");
      return send(response, account(body.messages, body.window, this.mixed));
    }
    if (path === "/v1/chat/completions") return this.#chat(body, response);
    return fail(response, 404, `no such route: ${path}`, "not_found");
  }

  async #hold(response) {
    await new Promise((go) => {
      this.release = go;
      response.on("close", go);
    });
    this.release = null;
  }

  /** Resolves once an answer waits for `release`. */
  async held() {
    while (!this.release) await wait(10);
  }

  #card(id) {
    const windows = [SIZE, SIZE, SIZE, this.mixed ? null : SIZE];
    return { id, object: "model", capabilities: { completion_chat: this.chats }, attention: { window: SIZE, windows } };
  }

  async #file(path, response) {
    const name = normalize(path === "/" ? "/index.html" : path);
    try {
      const bytes = await readFile(join(STATIC, name));
      response.writeHead(200, { "content-type": TYPES[extname(name)] ?? "text/plain", "content-security-policy": CSP });
      response.end(bytes);
    } catch {
      response.writeHead(404).end();
    }
  }

  async #chat(body, response) {
    this.asked.chat.push(body);
    const fault = this.faults.shift() ?? null;
    if (typeof fault === "number") {
      const said = { 429: "the queue is full", 503: "the server is draining", 400: "temperature: must be at most 2" };
      return fail(response, fault, said[fault] ?? "the server failed at this request", "fault", fault === 429 ? { "retry-after": "2" } : {});
    }
    let gone = false;
    response.on("close", () => {
      if (!response.writableFinished) {
        gone = true;
        this.cancelled += 1;
      }
    });
    response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
    const event = (value) => response.write(`data: ${typeof value === "string" ? value : JSON.stringify(value)}\n\n`);
    const choice = (delta, finish_reason = null) => ({ object: "chat.completion.chunk", choices: [{ index: 0, delta, finish_reason }] });
    event(choice({ role: "assistant", content: "" }));
    response.write(": ping\n\n");
    const text = words(typeof this.reply === "function" ? this.reply(body) : this.reply);
    const most = Math.min(body.max_tokens ?? text.length, text.length);
    for (let at = 0; at < most && !gone; at += 1) {
      await wait(this.gap);
      if (at === this.holdAt && fault === "hold") await this.#hold(response);
      if (at === 3 && fault === "drop") return void (await wait(100), response.destroy());
      if (at === 3 && fault === "event") {
        event({ error: { message: "the logits were not finite", type: "server_error", code: "numerical" } });
        event("[DONE]");
        return response.end();
      }
      event(choice({ content: text[at] }));
    }
    event(choice({}, most < text.length ? "length" : "stop"));
    const seen = account(body.messages, body.window);
    const cached = Math.max(seen.n_tokens - 12, 0);
    event({
      choices: [],
      usage: {
        prompt_tokens: seen.n_tokens,
        completion_tokens: most,
        total_tokens: seen.n_tokens + most,
        prompt_tokens_details: { cached_tokens: body.messages.length > 2 ? cached : 0 },
      },
      timings: { prompt_ms: 12.5, prompt_per_second: 960.2, predicted_ms: 300, predicted_per_second: 41.64, ttft_ms: 140.2 },
      window: { size: seen.size, layers: LAYERS, windowed_layers: LAYERS, first_visible: 0, evicted: Math.max(seen.n_tokens - seen.size, 0), reuse: "part", cached_tokens: cached },
    });
    event("[DONE]");
    response.end();
  }
}

function send(response, value, status = 200, headers = {}) {
  response.writeHead(status, { "content-type": "application/json", ...headers });
  response.end(JSON.stringify(value));
}

function fail(response, status, message, code, headers = {}) {
  send(response, { error: { message, type: "invalid_request_error", param: null, code } }, status, headers);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const server = await new FakeServer().start(Number(process.argv[2] ?? 0));
  console.log(server.url);
}

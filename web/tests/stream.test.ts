import { describe, expect, it } from "vitest";
import { fromResponse, fromThrown, Failure } from "../src/model/failure";
import { figuresOf, seconds } from "../src/model/format";
import { pieces, type Piece } from "../src/model/stream";

function body(text: string, cut: number): ReadableStream<Uint8Array> {
  const bytes = new TextEncoder().encode(text);
  return new ReadableStream({
    start(controller) {
      for (let at = 0; at < bytes.length; at += cut) controller.enqueue(bytes.slice(at, at + cut));
      controller.close();
    },
  });
}

async function all(text: string, cut = 7): Promise<Piece[]> {
  const read: Piece[] = [];
  for await (const piece of pieces(body(text, cut))) read.push(piece);
  return read;
}

const event = (value: unknown) => `data: ${typeof value === "string" ? value : JSON.stringify(value)}\n\n`;
const said = (content: string) => event({ choices: [{ delta: { content }, finish_reason: null }] });

describe("the stream", () => {
  it.each([1, 2, 5, 4096])("is the same in pieces of %i bytes", async (cut) => {
    const text = `: ping\n\n${said("naïve ")}${said("日本 🪟")}${event({ choices: [{ delta: {}, finish_reason: "stop" }] })}${event("[DONE]")}`;
    const read = await all(text, cut);
    expect(read.map((piece) => piece.text ?? "").join("")).toBe("naïve 日本 🪟");
    expect(read.at(-1)!.finish).toBe("stop");
  });

  it("brings the figures of its last chunk", async () => {
    const [piece] = await all(
      event({
        choices: [],
        usage: { prompt_tokens: 9, completion_tokens: 3, prompt_tokens_details: { cached_tokens: 4 } },
        timings: { predicted_per_second: 41.6, ttft_ms: 12 },
        window: { size: 512, layers: 18, windowed_layers: 15, evicted: 0, reuse: "part" },
      }) + event("[DONE]"),
    );
    expect(piece!.figures).toEqual({
      promptTokens: 9, answerTokens: 3, cachedTokens: 4, tokensPerSecond: 41.6, firstTokenMs: 12, reuse: "part",
      windowSize: 512, layers: 18, windowedLayers: 15, evicted: 0,
    });
  });

  it("fails where it ends too early or says an error", async () => {
    await expect(all(said("a"))).rejects.toMatchObject({ kind: "dropped" });
    await expect(all(said("a") + event({ error: { message: "no more memory" } }))).rejects.toThrow("The answer broke off: no more memory");
  });
});

describe("failures", () => {
  it.each([
    [401, null, null, "key", "The server asks for an API key."],
    [429, null, "3", "busy", "The server is busy: its queue is full. Try again in 3 s."],
    [429, null, "Wed, 21 Oct 2026", "busy", "The server is busy: its queue is full. Try again in a moment."],
    [503, "the model is loading", null, "busy", "The model is loading. Try again in a moment."],
    [500, null, null, "server", "The server failed (500)."],
    [400, "top_p: at most 1", null, "refused", "top_p: at most 1"],
  ])("%i says %s", (status, message, after, kind, line) => {
    const failure = fromResponse(status, message && { error: { message } }, after);
    expect([failure.kind, failure.message]).toEqual([kind, line]);
  });

  it("tells a server that is not there from one that left", () => {
    expect(fromThrown(new TypeError("Failed to fetch"), false).kind).toBe("unreachable");
    expect(fromThrown(new TypeError("network error"), true).kind).toBe("dropped");
    const own = new Failure("busy", "x");
    expect(fromThrown(own, true)).toBe(own);
  });
});

describe("figures in words", () => {
  it("says how it ended, how fast, and what was read", () => {
    const figures = { answerTokens: 1200, tokensPerSecond: 41.63, firstTokenMs: 1234, promptTokens: 5000, cachedTokens: 4900 };
    expect(figuresOf({ id: "", parent: null, role: "assistant", content: "", created: 0, finish: "length", figures })).toEqual([
      "cut at 1,200 tokens", "41.6 tok/s", "first token 1.23 s", "read 100, reused 4,900",
    ]);
    expect([0.2, 999, 12_340, 120_000].map(seconds)).toEqual(["1 ms", "999 ms", "12.3 s", "2 min"]);
  });
});

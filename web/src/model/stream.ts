// Reads the server-sent events of a streamed chat completion.

import { createParser } from "eventsource-parser";
import type { Figures } from "./conversation";
import { dropped, fromEvent } from "./failure";

export interface Piece {
  text?: string;
  finish?: string;
  figures?: Figures;
}

interface Chunk {
  error?: unknown;
  choices?: { delta?: { content?: unknown }; finish_reason?: string | null }[];
  usage?: {
    prompt_tokens?: number;
    completion_tokens?: number;
    prompt_tokens_details?: { cached_tokens?: number } | null;
  } | null;
  timings?: { prompt_per_second?: number; predicted_per_second?: number; ttft_ms?: number } | null;
  window?: {
    size?: number | null;
    layers?: number;
    windowed_layers?: number;
    evicted?: number;
    reuse?: string;
    cached_tokens?: number;
  } | null;
}

/** What one chunk carries; throws the failure that an error event stands for. */
export function readChunk(chunk: Chunk): Piece {
  if (chunk.error) throw fromEvent(chunk);
  const piece: Piece = {};
  const choice = chunk.choices?.[0];
  if (typeof choice?.delta?.content === "string" && choice.delta.content) piece.text = choice.delta.content;
  if (choice?.finish_reason) piece.finish = choice.finish_reason;
  const { usage, timings, window } = chunk;
  if (usage || timings || window) {
    piece.figures = prune({
      promptTokens: usage?.prompt_tokens,
      answerTokens: usage?.completion_tokens,
      cachedTokens: usage?.prompt_tokens_details?.cached_tokens ?? window?.cached_tokens,
      tokensPerSecond: timings?.predicted_per_second,
      promptPerSecond: timings?.prompt_per_second,
      firstTokenMs: timings?.ttft_ms,
      reuse: window?.reuse,
      windowSize: window?.size,
      layers: window?.layers,
      windowedLayers: window?.windowed_layers,
      evicted: window?.evicted,
    });
  }
  return piece;
}

function prune(figures: Figures): Figures {
  return Object.fromEntries(Object.entries(figures).filter(([, value]) => value !== undefined)) as Figures;
}

/** The pieces of a stream in order; a stream that ends before `[DONE]` fails. */
export async function* pieces(body: ReadableStream<Uint8Array>): AsyncGenerator<Piece> {
  const ready: string[] = [];
  const parser = createParser({ onEvent: (event) => ready.push(event.data) });
  const decoder = new TextDecoder();
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      parser.feed(done ? decoder.decode() : decoder.decode(value, { stream: true }));
      for (let data = ready.shift(); data !== undefined; data = ready.shift()) {
        if (data === "[DONE]") return;
        yield readChunk(JSON.parse(data) as Chunk);
      }
      if (done) throw dropped();
    }
  } finally {
    reader.cancel().catch(() => undefined);
  }
}

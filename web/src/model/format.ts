// Numbers in words that fit a line.

import type { Figures, Message } from "./conversation";
import { number } from "./view";

export function seconds(ms: number): string {
  if (ms < 1000) return `${Math.max(Math.round(ms), 1)} ms`;
  return ms < 60_000 ? `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s` : `${Math.round(ms / 60_000)} min`;
}

export function rate(perSecond: number): string {
  return `${perSecond < 100 ? perSecond.toFixed(1) : number(perSecond)} tok/s`;
}

const ENDS: Record<string, string> = {
  length: "cut",
  stopped: "stopped",
  model_length: "cut at the model's length",
  error: "broke off",
};

/** How much of the prompt was not read again. */
export function reuse(figures: Figures): string | null {
  const { cachedTokens, promptTokens } = figures;
  if (!promptTokens) return null;
  if (!cachedTokens) return `read ${number(promptTokens)}`;
  return `read ${number(promptTokens - cachedTokens)}, reused ${number(cachedTokens)}`;
}

export function figuresOf(message: Message): string[] {
  const { figures } = message;
  const said: string[] = [];
  const end = (message.finish && ENDS[message.finish]) || null;
  const tokens = figures?.answerTokens ? `${number(figures.answerTokens)} tokens` : null;
  if (end && tokens && message.finish === "length") said.push(`${end} at ${tokens}`);
  else said.push(...[end, tokens].filter((part) => part !== null));
  if (figures?.tokensPerSecond) said.push(rate(figures.tokensPerSecond));
  if (figures?.firstTokenMs !== undefined) said.push(`first token ${seconds(figures.firstTokenMs)}`);
  const read = figures ? reuse(figures) : null;
  if (read) said.push(read);
  return said;
}

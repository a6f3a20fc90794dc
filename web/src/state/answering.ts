// Asking the model: one answer at a time, into a message of its own in the tree.

import { computed, signal } from "@preact/signals";
import { add, change, newId, path, remove, siblings, type Conversation, type Figures, type Message } from "../model/conversation";
import { Failure, fromThrown } from "../model/failure";
import { chatBody, outgoing } from "../model/request";
import { pieces } from "../model/stream";
import { alter, current, edit, held, rememberShown } from "./library";
import { speak } from "./notices";
import { call, greet, models, trouble } from "./server";

export interface Answering {
  conversation: string;
  message: string;
  text: string;
  /** Pieces so far: about one token each. */
  count: number;
  started: number;
  firstAt: number | null;
}

export const answering = signal<Answering | null>(null);
/** Whether an answer is being written; unlike `answering` it does not change with every word. */
export const busy = computed(() => answering.value !== null);

const SHOW_EVERY_MS = 50;
const KEEP_EVERY_MS = 1500;
let controller: AbortController | null = null;

export function stop(): void {
  controller?.abort();
}

export function modelOf(conversation: Conversation): string | null {
  const known = models.value.some(({ id }) => id === conversation.model);
  return known ? conversation.model : (models.value[0]?.id ?? null);
}

/** False for a base model: it continues texts, and has no template for a conversation. */
export function canChat(model: string | null): boolean {
  return models.value.find(({ id }) => id === model)?.capabilities?.completion_chat !== false;
}

/** Sends what was typed after the last message that is shown. */
export function send(text: string): void {
  sendAfter(path(current.peek()).at(-1)?.id ?? null, text);
}

/** Sends the text as a new branch beside the message `id`. */
export function sendInstead(id: string, text: string): void {
  sendAfter(current.peek().messages[id]?.parent ?? null, text);
}

function sendAfter(parent: string | null, content: string): void {
  if (answering.peek()) return;
  const message: Message = { id: newId(), parent, role: "user", content, created: Date.now() };
  edit((conversation) => add(conversation, message));
  rememberShown();
  void ask(message.id);
}

/** Asks again for the answer `id`: beside it, or in its place where nothing had come of it. */
export function again(id: string): void {
  const old = current.peek().messages[id];
  if (!old || answering.peek()) return;
  if (!old.content) edit((conversation) => remove(conversation, id));
  if (old.parent !== null) void ask(old.parent);
}

/** From here on the page is busy: what is sent while the models are still asked for would be a second answer. */
async function ask(question: string): Promise<void> {
  const conversation = current.peek().id;
  const message: Message = { id: newId(), parent: question, role: "assistant", content: "", created: Date.now() };
  controller = new AbortController();
  const { signal } = controller;
  answering.value = { conversation, message: message.id, text: "", count: 0, started: performance.now(), firstAt: null };
  if (models.peek().length === 0) await greet();
  const model = modelOf(current.peek());
  if (model) message.model = model;
  const out = outgoing(current.peek(), question);
  const asked = current.peek();
  await alter(conversation, (tree) => add(tree, message));
  if (!model) {
    const failure = trouble.peek() ?? new Failure("server", "The server has no model loaded.");
    await alter(conversation, (tree) => change(tree, message.id, { error: failure.message }));
    answering.value = null;
    controller = null;
    return;
  }
  await follow({ conversation, message: message.id, body: chatBody(asked, model, out), signal });
}

interface Errand {
  conversation: string;
  message: string;
  body: Record<string, unknown>;
  signal: AbortSignal;
}

async function follow({ conversation, message, body, signal }: Errand): Promise<void> {
  const started = performance.now();
  const state: Answering = { conversation, message, text: "", count: 0, started, firstAt: null };
  answering.value = { ...state };
  held.add(conversation);
  let figures: Figures = {};
  let finish: string | undefined;
  let failure: Failure | null = null;
  let shown = 0;
  let waiting: ReturnType<typeof setTimeout> | undefined;
  const show = () => {
    waiting = undefined;
    shown = performance.now();
    answering.value = { ...state };
  };
  let written = started;
  try {
    const response = await call("v1/chat/completions", body, signal);
    if (!response.body) throw new Failure("server", "The server sent an empty answer.");
    for await (const piece of pieces(response.body)) {
      if (piece.figures) figures = { ...figures, ...piece.figures };
      finish = piece.finish ?? finish;
      if (!piece.text) continue;
      const now = performance.now();
      state.firstAt ??= now;
      state.text += piece.text;
      state.count += 1;
      // What comes in a burst is shown at once, and its end a moment later, even if nothing follows it.
      waiting ??= setTimeout(show, Math.max(SHOW_EVERY_MS - (now - shown), 0));
      if (now - written >= KEEP_EVERY_MS) {
        written = now;
        void alter(conversation, (tree) => change(tree, message, { content: state.text, finish: "stopped" }));
      }
    }
  } catch (error) {
    if (signal.aborted) finish = "stopped";
    else failure = fromThrown(error, state.count > 0);
  }
  clearTimeout(waiting);
  const done = { content: state.text, figures: complete(figures, state), finish, error: failure?.message };
  await alter(conversation, (tree) => ({ ...change(tree, message, done), updated: Date.now() }));
  held.delete(conversation);
  answering.value = null;
  controller = null;
  if (failure) speak(`Error: ${failure.message}`);
  else speak(finish === "stopped" ? "Stopped." : `Answer: ${state.text}`);
}

/** What the server did not say is measured here. */
function complete(figures: Figures, state: Answering): Figures {
  if (state.firstAt === null) return figures;
  const seconds = (performance.now() - state.firstAt) / 1000;
  return {
    firstTokenMs: state.firstAt - state.started,
    ...(state.count > 1 && seconds > 0 && { tokensPerSecond: (state.count - 1) / seconds }),
    ...figures,
  };
}

/** The place of a message among its branches: "2 of 3". */
export function place(conversation: Conversation, id: string): { at: number; of: number } {
  const all = siblings(conversation, id);
  return { at: all.indexOf(id) + 1, of: all.length };
}

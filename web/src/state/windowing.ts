// What the model sees of the shown conversation, asked of the server whenever the conversation, the pins or the draft change.

import { batch, computed, effect, signal } from "@preact/signals";
import type { Conversation } from "../model/conversation";
import { retryAfter } from "../model/failure";
import { outgoing, windowBody } from "../model/request";
import { advance, readView, type Share, type View } from "../model/view";
import { answering, canChat, modelOf } from "./answering";
import { current } from "./library";
import { call, models } from "./server";

interface Seen {
  conversation: string;
  ids: string[];
  view: View;
}

interface Question {
  conversation: string;
  ids: string[];
  body: Record<string, unknown>;
  pinned: Set<number>;
  mixed: boolean;
}

export const draft = signal("");
const seen = signal<Seen | null>(null);
/** Why there is no account of the window, in words; null while there is one. */
export const unseen = signal<string | null>(null);

const WAIT_MS = 350;

/** The view of the conversation that is shown, counted on while an answer streams. */
export const view = computed<View | null>(() => {
  const known = seen.value;
  if (!known || known.conversation !== current.value.id || known.view.shares.length === 0) return null;
  const now = answering.value;
  if (!now || now.conversation !== known.conversation || now.count === 0) return known.view;
  const empty: Share = { start: known.view.tokens, stop: known.view.tokens, direct: 0, some: 0, pinned: 0, relayed: 0, out: 0 };
  return advance({ ...known.view, shares: [...known.view.shares, empty] }, now.count);
});

/** True where no layer of the model has a window. */
export const windowless = computed(() => view.value?.size === null);

/** Each message's share by its identifier. */
export const shares = computed<Map<string, Share>>(() => {
  const map = new Map<string, Share>();
  const known = seen.value;
  const now = answering.value;
  view.value?.shares.forEach((share, index) => {
    const id = known!.ids[index] ?? now?.message;
    if (id !== undefined) map.set(id, share);
  });
  return map;
});

export const ids = computed<string[]>(() => {
  const known = seen.value?.ids ?? [];
  const now = answering.value;
  return now && view.value && view.value.shares.length > known.length ? [...known, now.message] : known;
});

const pinnedOf = (conversation: Conversation, ids: string[]): Set<number> =>
  new Set(ids.flatMap((id, index) => (conversation.pins.includes(id) ? [index] : [])));

/** Whether the model has layers with a window and layers without. */
function isMixed(model: string): boolean {
  const windows = models.value.find(({ id }) => id === model)?.attention?.windows ?? [];
  return new Set(windows).size > 1;
}

/** Starts asking; each change waits a little, and a newer one replaces an older. */
export function watch(): void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let pending: AbortController | undefined;
  let last = "";

  function ask(question: Question, tries: number): void {
    pending?.abort();
    pending = new AbortController();
    const { signal } = pending;
    call("v1/window", question.body, signal)
      .then(async (response) => readView(await response.json(), question.pinned, question.mixed))
      .then((fresh) => {
        if (signal.aborted) return;
        batch(() => {
          seen.value = { conversation: question.conversation, ids: question.ids, view: fresh };
          unseen.value = null;
        });
      })
      .catch((error: unknown) => {
        if (signal.aborted) return;
        unseen.value = (error as Error).message;
        const wait = retryAfter(error, tries);
        if (wait === null) last = "";
        else timer = setTimeout(() => ask(question, tries + 1), wait);
      });
  }

  effect(() => {
    const conversation = current.value;
    const model = modelOf(conversation);
    const writing = answering.value?.conversation === conversation.id;
    const typed = draft.value;
    if (!model || writing || !canChat(model)) return;
    const out = outgoing(conversation, undefined, typed);
    if (out.messages.length === 0) {
      clearTimeout(timer);
      pending?.abort();
      last = "";
      batch(() => {
        seen.value = null;
        unseen.value = null;
      });
      return;
    }
    const body = windowBody(conversation, model, out);
    const mixed = conversation.settings.windowSize === undefined && isMixed(model);
    const key = `${conversation.id} ${JSON.stringify(body)}`;
    if (key === last) return;
    clearTimeout(timer);
    const question = { conversation: conversation.id, ids: out.ids, body, pinned: pinnedOf(conversation, out.ids), mixed };
    last = key;
    timer = setTimeout(() => ask(question, 1), typed ? WAIT_MS : 0);
  });
}

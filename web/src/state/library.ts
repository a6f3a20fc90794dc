// The conversations: the one that is shown, the list of all, and how changes get into the browser's store.

import { signal } from "@preact/signals";
import { newConversation, type Conversation } from "../model/conversation";
import { fromText } from "../model/transfer";
import { say } from "./notices";
import { keepSettings, lastSettings } from "./preferences";
import * as storage from "./storage";

export const summaries = signal<storage.Summary[]>([]);
export const current = signal<Conversation>(newConversation(lastSettings()));
/** False where the browser keeps nothing (private windows of some browsers): the page says so. */
export const kept = signal(true);

/** Conversations that an answer is being written into: another tab's copy would lack it. */
export const held = new Set<string>();

const SHOWN = "sash-shown";
const channel = typeof BroadcastChannel === "undefined" ? null : new BroadcastChannel("sash");
const unsaved = new Map<string, Conversation>();
let writing: Promise<void> = Promise.resolve();

export const isEmpty = (conversation: Conversation): boolean =>
  Object.keys(conversation.messages).length === 0 && !conversation.system;

/** Changes a conversation, shown or not, and saves it. */
export async function alter(id: string, work: (conversation: Conversation) => Conversation): Promise<void> {
  const shown = current.peek();
  const before = shown.id === id ? shown : (unsaved.get(id) ?? (await storage.load(id).catch(() => undefined)));
  if (!before) return;
  const after = work(before);
  if (after === before) return;
  if (current.peek().id === id) current.value = after;
  save(after);
}

/** Changes the conversation that is shown. */
export function edit(work: (conversation: Conversation) => Conversation): void {
  const before = current.peek();
  const after = work(before);
  if (after === before) return;
  current.value = after;
  if (after.settings !== before.settings) keepSettings(after.settings);
  save(after);
}

export function save(conversation: Conversation): void {
  if (isEmpty(conversation) && !summaries.peek().some(({ id }) => id === conversation.id)) return;
  unsaved.set(conversation.id, conversation);
  const { id, title, updated } = conversation;
  const known = summaries.peek().find((entry) => entry.id === id);
  if (!known || known.title !== title || known.updated !== updated) {
    const rest = summaries.peek().filter((entry) => entry.id !== id);
    summaries.value = [...rest, { id, title, updated }].sort((a, b) => b.updated - a.updated);
  }
  writing = writing.then(flush);
}

async function flush(): Promise<void> {
  for (const [id, conversation] of [...unsaved]) {
    try {
      await storage.save(conversation);
      if (unsaved.get(id) === conversation) unsaved.delete(id);
      channel?.postMessage(id);
    } catch {
      kept.value = false;
      return;
    }
  }
}

export async function start(): Promise<void> {
  try {
    summaries.value = await storage.list();
    const wanted = shownId();
    const found = wanted ? await storage.load(wanted) : undefined;
    if (found && isEmpty(current.peek())) current.value = found;
  } catch {
    kept.value = false;
  }
  channel?.addEventListener("message", (event) => void refresh(event.data as string));
}

/** Another tab has saved a conversation: take it over, unless this tab has changes of its own. */
async function refresh(id: string): Promise<void> {
  summaries.value = await storage.list().catch(() => summaries.peek());
  if (current.peek().id !== id || unsaved.has(id) || held.has(id)) return;
  const found = await storage.load(id).catch(() => undefined);
  if (found && current.peek().id === id && found.updated >= current.peek().updated) current.value = found;
}

function shownId(): string | null {
  try {
    return sessionStorage.getItem(SHOWN);
  } catch {
    return null;
  }
}

function show(conversation: Conversation): void {
  current.value = conversation;
  try {
    sessionStorage.setItem(SHOWN, conversation.id);
  } catch {
    // Then a reload starts anew.
  }
}

export function rememberShown(): void {
  show(current.peek());
}

export function begin(): void {
  show({ ...newConversation(lastSettings()), model: current.peek().model });
}

export async function open(id: string): Promise<void> {
  if (current.peek().id === id) return;
  const found = unsaved.get(id) ?? (await storage.load(id).catch(() => undefined));
  if (found) show(found);
  else say("That conversation is no longer there.");
}

/** Deletes a conversation; the notice offers it back. */
export async function erase(id: string): Promise<void> {
  const gone = unsaved.get(id) ?? (await storage.load(id).catch(() => undefined)) ?? current.peek();
  unsaved.delete(id);
  summaries.value = summaries.peek().filter((entry) => entry.id !== id);
  if (current.peek().id === id) begin();
  await writing;
  await storage.erase(id).catch(() => (kept.value = false));
  say(`Deleted “${gone.title}”.`, { label: "Undo", run: () => { save(gone); show(gone); } });
}

export async function everything(): Promise<Conversation[]> {
  await writing;
  const all = await storage.loadAll().catch(() => [] as Conversation[]);
  const shown = current.peek();
  if (!isEmpty(shown) && !all.some(({ id }) => id === shown.id)) all.push(shown);
  return all.sort((a, b) => b.updated - a.updated);
}

/** Adds the conversations of a file and shows the first. */
export function bringIn(text: string): void {
  const read = fromText(text);
  for (const conversation of read) save(conversation);
  if (read[0]) show(read[0]);
  say(read.length === 1 ? "One conversation imported." : `${read.length} conversations imported.`);
}

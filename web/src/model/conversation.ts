// A conversation is a tree: every message knows the one it follows, and editing or asking again adds a branch beside the
// old one. Nothing is ever overwritten. All functions here are pure: they return a changed copy.

export type Role = "user" | "assistant";

/** What the server said about one answer. Times in milliseconds, the rest in tokens. */
export interface Figures {
  promptTokens?: number;
  answerTokens?: number;
  cachedTokens?: number;
  tokensPerSecond?: number;
  firstTokenMs?: number;
  promptPerSecond?: number;
  reuse?: string;
  windowSize?: number | null;
  layers?: number;
  windowedLayers?: number;
  evicted?: number;
}

export interface Message {
  id: string;
  parent: string | null;
  role: Role;
  content: string;
  created: number;
  model?: string;
  finish?: string;
  error?: string;
  figures?: Figures;
}

/** What is sent with each request where it is set; what is not set is left to the model. */
export interface Settings {
  temperature?: number;
  top_p?: number;
  top_k?: number;
  max_tokens?: number;
  seed?: number;
  windowSize?: number;
}

export interface Conversation {
  id: string;
  title: string;
  titled: boolean;
  created: number;
  updated: number;
  system: string;
  model: string | null;
  messages: Record<string, Message>;
  /** Children of each message in the order they were made; the key "" holds the first messages. */
  children: Record<string, string[]>;
  /** Which child of each message is shown. */
  chosen: Record<string, string>;
  /** Identifiers of pinned messages; SYSTEM stands for the system prompt. */
  pins: string[];
  settings: Settings;
}

export const SYSTEM = "system";
const ROOT = "";
const TITLE_LENGTH = 56;

export function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newConversation(settings: Settings = {}, now = Date.now()): Conversation {
  return {
    id: newId(),
    title: "New conversation",
    titled: false,
    created: now,
    updated: now,
    system: "",
    model: null,
    messages: {},
    children: {},
    chosen: {},
    pins: [],
    settings,
  };
}

/** The messages shown, from the first to the last. */
export function path(conversation: Conversation): Message[] {
  const shown: Message[] = [];
  let at = conversation.chosen[ROOT];
  while (at !== undefined) {
    const message = conversation.messages[at];
    if (!message) break;
    shown.push(message);
    at = conversation.chosen[at];
  }
  return shown;
}

export function siblings(conversation: Conversation, id: string): string[] {
  return conversation.children[conversation.messages[id]?.parent ?? ROOT] ?? [];
}

/** Adds a message and shows it. */
export function add(conversation: Conversation, message: Message): Conversation {
  const key = message.parent ?? ROOT;
  const first = message.role === "user" && message.parent === null && !conversation.titled;
  return {
    ...conversation,
    title: first ? titleOf(message.content) : conversation.title,
    updated: message.created,
    messages: { ...conversation.messages, [message.id]: message },
    children: { ...conversation.children, [key]: [...(conversation.children[key] ?? []), message.id] },
    chosen: { ...conversation.chosen, [key]: message.id },
  };
}

export function change(conversation: Conversation, id: string, changes: Partial<Message>): Conversation {
  const message = conversation.messages[id];
  if (!message) return conversation;
  return { ...conversation, messages: { ...conversation.messages, [id]: { ...message, ...changes } } };
}

/** Shows the branch `step` places beside the one that `id` is on; the ends hold. */
export function turnTo(conversation: Conversation, id: string, step: number): Conversation {
  const all = siblings(conversation, id);
  const target = all[Math.min(Math.max(all.indexOf(id) + step, 0), all.length - 1)];
  if (target === undefined || target === id) return conversation;
  return { ...conversation, chosen: { ...conversation.chosen, [conversation.messages[id]?.parent ?? ROOT]: target } };
}

/** Takes out one message and all that follows it on every branch; a sibling beside it is shown instead. */
export function remove(conversation: Conversation, id: string): Conversation {
  const message = conversation.messages[id];
  if (!message) return conversation;
  const key = message.parent ?? ROOT;
  const gone = new Set<string>();
  const open = [id];
  for (let next = open.pop(); next !== undefined; next = open.pop()) {
    gone.add(next);
    open.push(...(conversation.children[next] ?? []));
  }
  const rest = (conversation.children[key] ?? []).filter((child) => child !== id);
  const chosen = without(conversation.chosen, gone);
  const shown = rest.at(-1);
  if (conversation.chosen[key] === id) {
    if (shown === undefined) delete chosen[key];
    else chosen[key] = shown;
  }
  return {
    ...conversation,
    messages: without(conversation.messages, gone),
    children: { ...without(conversation.children, gone), [key]: rest },
    chosen,
    pins: conversation.pins.filter((pin) => !gone.has(pin)),
  };
}

function without<T>(record: Record<string, T>, keys: Set<string>): Record<string, T> {
  return Object.fromEntries(Object.entries(record).filter(([key]) => !keys.has(key)));
}

export function togglePin(conversation: Conversation, id: string): Conversation {
  const pins = conversation.pins.includes(id)
    ? conversation.pins.filter((pin) => pin !== id)
    : [...conversation.pins, id];
  return { ...conversation, pins };
}

export function titleOf(text: string): string {
  const line = text.trim().split(/\s+/).join(" ");
  if (line.length <= TITLE_LENGTH) return line || "New conversation";
  const cut = line.slice(0, TITLE_LENGTH);
  return `${cut.slice(0, Math.max(cut.lastIndexOf(" "), TITLE_LENGTH / 2)).trimEnd()}…`;
}

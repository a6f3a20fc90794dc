// What is sent to the server for a conversation.

import { SYSTEM, path, type Conversation, type Message } from "./conversation";

export interface ChatMessage {
  role: "system" | "user" | "assistant";
  content: string;
}

/** The messages as the server takes them, with the page's own identifier of each beside it. */
export interface Outgoing {
  messages: ChatMessage[];
  ids: string[];
}

export const DRAFT = "draft";

/** The shown messages up to and with `until` (all where it is left out), the system prompt first, `draft` last. */
export function outgoing(conversation: Conversation, until?: string | null, draft = ""): Outgoing {
  let shown: Message[] = path(conversation);
  if (until !== undefined) shown = shown.slice(0, shown.findIndex((message) => message.id === until) + 1);
  const out: Outgoing = { messages: [], ids: [] };
  const put = (id: string, role: ChatMessage["role"], content: string) => {
    const last = out.messages.at(-1);
    if (last?.role === role) {
      // An answer that never came is left out; what was asked before and after it is one question, for templates that
      // want the two to take turns.
      last.content += `\n\n${content}`;
      return;
    }
    out.messages.push({ role, content });
    out.ids.push(id);
  };
  if (conversation.system.trim()) put(SYSTEM, "system", conversation.system);
  for (const message of shown) if (message.content) put(message.id, message.role, message.content);
  if (draft.trim()) put(DRAFT, "user", draft);
  return out;
}

/** The request's `window` object, or undefined where the page asks for nothing special. */
export function windowOf(conversation: Conversation, ids: string[]): Record<string, unknown> | undefined {
  const pinned = ids.flatMap((id, index) => (conversation.pins.includes(id) ? [index] : []));
  const { windowSize } = conversation.settings;
  const wanted = {
    ...(windowSize !== undefined && { size: windowSize }),
    ...(pinned.length > 0 && { pins: { messages: pinned } }),
  };
  return Object.keys(wanted).length > 0 ? wanted : undefined;
}

export function windowBody(conversation: Conversation, model: string, out: Outgoing): Record<string, unknown> {
  const window = windowOf(conversation, out.ids);
  return { model, messages: out.messages, ...(window && { window }) };
}

export function chatBody(conversation: Conversation, model: string, out: Outgoing): Record<string, unknown> {
  const { windowSize: _, ...sampling } = conversation.settings;
  const set = Object.fromEntries(Object.entries(sampling).filter(([, value]) => value !== undefined));
  return { ...windowBody(conversation, model, out), ...set, stream: true, stream_options: { include_usage: true } };
}

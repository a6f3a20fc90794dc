// Export and import: whole trees as JSON, or the messages shown as JSONL (one conversation a line, as training takes it).

import { add, newConversation, newId, path, titleOf, type Conversation, type Message, type Settings } from "./conversation";

export const FORMAT = "sash-conversations";
export const VERSION = 1;

export function toJson(conversations: Conversation[]): string {
  return `${JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 1)}\n`;
}

/** One line a conversation: `{"messages": [...]}` with the branch that is shown. */
export function toJsonl(conversations: Conversation[]): string {
  return conversations
    .map((conversation) => {
      const messages = path(conversation).map(({ role, content }) => ({ role, content }) as { role: string; content: string });
      if (conversation.system.trim()) messages.unshift({ role: "system", content: conversation.system });
      return `${JSON.stringify({ messages })}\n`;
    })
    .join("");
}

/** Reads either form. Throws an Error of one line that says where the file is wrong. */
export function fromText(text: string): Conversation[] {
  const whole = parse(text);
  if (whole !== undefined) {
    if (isRecord(whole) && whole.format === FORMAT) return fromTrees(whole);
    if (isRecord(whole) && Array.isArray(whole.messages)) return [fromMessages(whole.messages, "the file")];
    if (Array.isArray(whole)) return [fromMessages(whole, "the file")];
    throw new Error("The file holds neither conversations of this page nor messages.");
  }
  const lines = text.split("\n").map((line, index) => ({ line: line.trim(), place: `line ${index + 1}` }));
  const read = lines.filter(({ line }) => line).map(({ line, place }) => {
    const entry = parse(line);
    if (!isRecord(entry) || !Array.isArray(entry.messages)) throw new Error(`${place}: expected {"messages": [...]}.`);
    return fromMessages(entry.messages, place);
  });
  if (read.length === 0) throw new Error("The file is empty.");
  return read;
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function fromMessages(entries: unknown[], place: string): Conversation {
  let conversation = newConversation();
  let parent: string | null = null;
  entries.forEach((entry, index) => {
    const where = `${place}: messages[${index}]`;
    if (!isRecord(entry)) throw new Error(`${where} is not an object.`);
    const { role, content } = entry;
    if (typeof content !== "string") throw new Error(`${where}.content is not text.`);
    if (role === "system" && index === 0) {
      conversation = { ...conversation, system: content };
      return;
    }
    if (role !== "user" && role !== "assistant") {
      throw new Error(`${where}.role is ${JSON.stringify(role)}; expected "user" or "assistant" (or "system", first).`);
    }
    const message: Message = { id: newId(), parent, role, content, created: conversation.created };
    conversation = add(conversation, message);
    parent = message.id;
  });
  if (parent === null) throw new Error(`${place}: there is no message in it.`);
  return conversation;
}

function fromTrees(file: Record<string, unknown>): Conversation[] {
  if (file.version !== VERSION) throw new Error(`The file has version ${JSON.stringify(file.version)}; this page reads ${VERSION}.`);
  if (!Array.isArray(file.conversations)) throw new Error("The file has no conversations.");
  return file.conversations.map((entry, index) => fromTree(entry, `conversations[${index}]`));
}

/** Builds the tree anew from what is checked, so that nothing else of a strange file gets in; identifiers are new. */
function fromTree(entry: unknown, place: string): Conversation {
  if (!isRecord(entry) || !isRecord(entry.messages) || !isRecord(entry.children)) throw new Error(`${place} is not a conversation.`);
  const names = new Map<string, string>();
  const known = entry.messages;
  const children = entry.children;
  let tree: Conversation = {
    ...newConversation(settingsOf(entry.settings), time(entry.created)),
    title: typeof entry.title === "string" ? titleOf(entry.title) : "Imported conversation",
    titled: true,
    system: typeof entry.system === "string" ? entry.system : "",
    model: typeof entry.model === "string" ? entry.model : null,
  };
  const open: [string, string | null][] = [["", null]];
  for (let next = open.shift(); next; next = open.shift()) {
    const [old, parent] = next;
    const listed = children[old] ?? [];
    if (!Array.isArray(listed)) throw new Error(`${place}.children[${JSON.stringify(old)}] is not a list.`);
    for (const id of listed) {
      const message = typeof id === "string" ? known[id] : undefined;
      if (!isRecord(message) || names.has(id)) throw new Error(`${place}: message ${JSON.stringify(id)} is missing or listed twice.`);
      if (message.role !== "user" && message.role !== "assistant") throw new Error(`${place}: message ${id} has no known role.`);
      if (typeof message.content !== "string") throw new Error(`${place}: message ${id} has no text.`);
      names.set(id, newId());
      tree = add(tree, {
        id: names.get(id)!,
        parent,
        role: message.role,
        content: message.content,
        created: time(message.created),
        ...(typeof message.model === "string" && { model: message.model }),
        ...(typeof message.finish === "string" && { finish: message.finish }),
        ...(isRecord(message.figures) && { figures: figuresOf(message.figures) }),
      });
      open.push([id, names.get(id)!]);
    }
  }
  const chosen = isRecord(entry.chosen) ? entry.chosen : {};
  for (const [old, child] of Object.entries(chosen)) {
    const to = typeof child === "string" ? names.get(child) : undefined;
    const from = old === "" ? "" : names.get(old);
    if (to !== undefined && from !== undefined && tree.children[from]?.includes(to)) tree.chosen[from] = to;
  }
  const pins = Array.isArray(entry.pins) ? entry.pins : [];
  tree.pins = pins.flatMap((pin) => (pin === "system" ? [pin] : (names.get(pin as string) ?? [])));
  return { ...tree, updated: time(entry.updated) };
}

const time = (value: unknown): number => (typeof value === "number" && Number.isFinite(value) ? value : Date.now());

const SETTINGS = ["temperature", "top_p", "top_k", "max_tokens", "seed", "windowSize"] as const;

function settingsOf(value: unknown): Settings {
  if (!isRecord(value)) return {};
  return Object.fromEntries(SETTINGS.flatMap((name) => (typeof value[name] === "number" ? [[name, value[name]]] : [])));
}

function figuresOf(value: Record<string, unknown>): Message["figures"] {
  return Object.fromEntries(
    Object.entries(value).filter(([, entry]) => typeof entry === "number" || typeof entry === "string"),
  ) as Message["figures"];
}

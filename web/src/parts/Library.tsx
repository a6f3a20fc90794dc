import { useRef } from "preact/hooks";
import type { Conversation } from "../model/conversation";
import { toJson, toJsonl } from "../model/transfer";
import { answering } from "../state/answering";
import { drawers, opened, shutDrawer } from "../state/layout";
import { begin, bringIn, current, erase, everything, isEmpty, kept, open, summaries } from "../state/library";
import { say } from "../state/notices";
import { Icon, IconButton, Mark } from "./icons";

export function Library() {
  const drawer = drawers.value.list;
  const shut = drawer && opened.value !== "list";
  const then = (work: () => void) => () => { work(); shutDrawer(); };
  return (
    <nav id="list-panel" class={`wing left ${drawer ? "drawer" : ""} ${shut ? "" : "open"}`} inert={shut} aria-label="Conversations">
      <div class="wing-head">
        <Mark />
        <span class="name">Sash</span>
        {drawer && <IconButton icon="close" label="Close the list" class="shut" onClick={shutDrawer} />}
      </div>
      <button type="button" class="wide" onClick={then(() => { begin(); requestAnimationFrame(() => document.getElementById("message-box")?.focus()); })}>
        <Icon name="plus" /> New conversation
      </button>
      {summaries.value.length > 0 ? (
        <ul class="shelf">
          {summaries.value.map(({ id, title }) => (
            <li key={id} class={id === current.value.id ? "here" : ""}>
              <button type="button" class="entry" aria-current={id === current.value.id ? "true" : undefined} onClick={then(() => void open(id))}>
                {title}
                {answering.value?.conversation === id && <span class="pulse" aria-label="(answering)" role="img" />}
              </button>
              <IconButton icon="bin" label={`Delete “${title}”`} onClick={() => void erase(id)} disabled={answering.value?.conversation === id} />
            </li>
          ))}
        </ul>
      ) : (
        <p class="quiet shelf">What you talk about stays in this browser. Nothing is here yet.</p>
      )}
      <Exchange />
      {!kept.value && <p class="warning" role="alert">This browser keeps nothing here: export what you want to keep.</p>}
    </nav>
  );
}

function Exchange() {
  const picker = useRef<HTMLInputElement>(null);
  const empty = isEmpty(current.value);
  const bring = async (file: File | undefined) => {
    if (!file) return;
    try {
      bringIn(await file.text());
      shutDrawer();
    } catch (error) {
      say(`Not imported. ${(error as Error).message}`);
    }
    if (picker.current) picker.current.value = "";
  };
  return (
    <div class="exchange">
      <details>
        <summary><Icon name="out" /> Export</summary>
        <div class="choices">
          <button type="button" class="plain" disabled={empty} onClick={() => store([current.value], "json")}>This conversation, all branches (JSON)</button>
          <button type="button" class="plain" disabled={empty} onClick={() => store([current.value], "jsonl")}>The messages shown (JSONL)</button>
          <button type="button" class="plain" disabled={summaries.value.length === 0} onClick={() => void everything().then((all) => store(all, "json"))}>All conversations (JSON)</button>
        </div>
      </details>
      <button type="button" class="plain row" onClick={() => picker.current?.click()}><Icon name="into" /> Import</button>
      <input ref={picker} class="hidden" type="file" accept=".json,.jsonl,application/json" aria-label="File to import" tabIndex={-1} onChange={(event) => void bring(event.currentTarget.files?.[0])} />
    </div>
  );
}

function store(conversations: Conversation[], form: "json" | "jsonl"): void {
  const text = form === "json" ? toJson(conversations) : toJsonl(conversations);
  const only = conversations.length === 1 ? conversations[0] : undefined;
  const stem = only ? only.title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "") || "conversation" : "conversations";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `sash-${stem}.${form}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

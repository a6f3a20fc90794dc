import { useLayoutEffect, useRef } from "preact/hooks";
import { useEffect } from "preact/hooks";
import { busy, canChat, modelOf, send, stop } from "../state/answering";
import { current } from "../state/library";
import { draft } from "../state/windowing";
import { IconButton } from "./icons";
import { Sill } from "./Sill";

const TALLEST = 240;

/** Makes a text box as tall as its text, up to a limit. */
export function grow(box: HTMLTextAreaElement | null, most = TALLEST): void {
  if (!box) return;
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight + 2, most)}px`;
}

/** Enter sends, Shift and Enter begins a line; while an input method composes, Enter is the method's. */
export function isSend(event: KeyboardEvent): boolean {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}

export function Composer() {
  const box = useRef<HTMLTextAreaElement>(null);
    const text = draft.value;
  const able = canChat(modelOf(current.value));
  useLayoutEffect(() => grow(box.current), [text]);
  useEffect(() => {
    draft.value = "";
    if (window.matchMedia("(pointer: fine)").matches) box.current?.focus();
  }, [current.value.id]);
  const go = () => {
    if (busy.value || !able || !text.trim()) return;
    send(text.trim());
    draft.value = "";
  };
  return (
    <div class="sill">
      <Sill />
      <form class="composer" onSubmit={(event) => { event.preventDefault(); go(); }}>
        <label class="hidden" for="message-box">Message</label>
        <textarea
          id="message-box"
          ref={box}
          rows={1}
          value={text}
          placeholder="Write a message"
          aria-describedby="keys"
          enterkeyhint="send"
          onInput={(event) => (draft.value = event.currentTarget.value)}
          onKeyDown={(event) => {
            if (!isSend(event)) return;
            event.preventDefault();
            go();
          }}
        />
        {busy.value ? (
          <IconButton icon="stop" label="Stop the answer" class="go" onClick={stop} />
        ) : (
          <IconButton icon="send" label="Send" class="go" onClick={go} disabled={!able || !text.trim()} />
        )}
      </form>
      <p id="keys" class="keys"><kbd>Enter</kbd> sends, <kbd>Shift</kbd> <kbd>Enter</kbd> begins a line, <kbd>Esc</kbd> stops an answer</p>
    </div>
  );
}

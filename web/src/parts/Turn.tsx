import { memo } from "./memo";
import { useSignal } from "@preact/signals";
import { useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { SYSTEM, togglePin, turnTo, type Message } from "../model/conversation";
import { blocks } from "../model/markdown";
import { describe, mainKind, type Share } from "../model/view";
import { again, busy, place, sendInstead } from "../state/answering";
import { current, edit } from "../state/library";
import { say } from "../state/notices";
import { windowless } from "../state/windowing";
import { grow, isSend } from "./Composer";
import { FiguresLine } from "./FiguresLine";
import { IconButton } from "./icons";
import { Stripe } from "./Stripe";

interface TurnProps {
  message: Message;
  /** The window's size where its edge lies in or just above this message. */
  edge: string | null;
  share: Share | undefined;
  /** What has come of the answer so far, while it is being written; else null. */
  live: string | null;
}

/** One message. It is drawn anew only where something of it changes: a conversation may have very many. */
export const Turn = memo(({ message, edge, share, live }: TurnProps) => {
  const editing = useSignal(false);
  const name = message.role === "user" ? "You" : (message.model ?? "Model");
  const inside = share !== undefined && share.relayed + share.out + share.some > 0;
  return (
    <>
      {edge !== null && (
        <li class="rail" aria-label={`The window of ${edge} tokens begins ${inside ? "inside the next message" : "here"}`}>
          <span>{inside ? "the window begins inside this message" : "the window begins here"}</span>
        </li>
      )}
      <li class={`turn ${message.role} ${share ? mainKind(share) : ""}`}>
        <article aria-label={name} aria-busy={live !== null}>
          <Stripe share={share} />
          <div class="body">
            <div class="who">
              <h2>{name}</h2>
              <Sight share={share} />
              <span class="deeds">
                {message.role === "user" && !editing.value && <Asked message={message} onEdit={() => (editing.value = true)} />}
                <PinButton id={message.id} name={message.role === "user" ? "your message" : "this answer"} />
              </span>
            </div>
            {editing.value ? (
              <Rewrite message={message} done={() => (editing.value = false)} />
            ) : message.role === "user" ? (
              <p class="words said">{message.content}</p>
            ) : (
              <Answer message={message} text={live ?? message.content} live={live !== null} />
            )}
            {live === null && message.role === "assistant" && <Foot message={message} />}
          </div>
        </article>
      </li>
    </>
  );
});

export function Sight({ share }: { share: Share | undefined }) {
  return share ? <span class="sight">{describe(share)}</span> : null;
}

function Answer({ message, text, live }: { message: Message; text: string; live: boolean }) {
  if (live && !text) return <p class="reading">Reading <span class="dots" aria-hidden="true"><i /><i /><i /></span></p>;
  return (
    <>
      {text && <Words text={text} />}
      {live && <span class="caret" aria-hidden="true" />}
      {!live && message.error && (
        <p class="failure" role="alert">
          <span>{message.error}</span>
          <button type="button" class="plain" disabled={busy.value} onClick={() => again(message.id)}>Retry</button>
        </p>
      )}
    </>
  );
}

const Block = memo(({ html }: { html: string }) => <div class="block" dangerouslySetInnerHTML={{ __html: html }} />);

function Words({ text }: { text: string }) {
  const pieces = useMemo(() => blocks(text), [text]);
  return (
    <div class="words prose" onClick={copyCode}>
      {pieces.map((html, index) => <Block key={index} html={html} />)}
    </div>
  );
}

function copyCode(event: MouseEvent): void {
  const button = (event.target as HTMLElement).closest("button.copy-code");
  const code = button?.closest("figure")?.querySelector("code")?.textContent;
  if (code !== undefined && code !== null) void copy(code, "Code copied.");
}

async function copy(text: string, done: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
    say(done);
  } catch {
    say("The browser did not allow copying.");
  }
}

function Asked({ message, onEdit }: { message: Message; onEdit: () => void }) {
  return (
    <>
      <Branches id={message.id} />
      <IconButton icon="copy" label="Copy text" onClick={() => void copy(message.content, "Text copied.")} />
      <IconButton icon="edit" label="Edit and ask again" disabled={busy.value} onClick={onEdit} />
    </>
  );
}

function Foot({ message }: { message: Message }) {
  return (
    <div class="foot">
      <Branches id={message.id} />
      <span class="deeds">
        {message.content && <IconButton icon="copy" label="Copy text" onClick={() => void copy(message.content, "Text copied.")} />}
        <IconButton icon="again" label="Answer again" disabled={busy.value} onClick={() => again(message.id)} />
      </span>
      <FiguresLine message={message} />
    </div>
  );
}

function Branches({ id }: { id: string }) {
  const { at, of } = place(current.value, id);
  if (of < 2) return null;
  const turn = (step: number) => edit((tree) => turnTo(tree, id, step));
  return (
    <span class="branches" role="group" aria-label="Branches">
      <IconButton icon="left" label="Earlier branch" disabled={busy.value || at === 1} onClick={() => turn(-1)} />
      <span aria-label={`Branch ${at} of ${of}`} role="img">{at}/{of}</span>
      <IconButton icon="right" label="Later branch" disabled={busy.value || at === of} onClick={() => turn(1)} />
    </span>
  );
}

/** One click keeps a message in sight wherever the window slides. */
export function PinButton({ id, name }: { id: string; name: string }) {
  const pinned = current.value.pins.includes(id);
  const pointless = !pinned && windowless.value;
  const label = pointless ? "Pin: this model has no window that anything slides out of" : `Pin ${name}`;
  return (
    <IconButton
      icon="pin"
      class="pin"
      label={label}
      title={pinned ? "Unpin" : label}
      pressed={pinned}
      disabled={pointless || (id !== SYSTEM && busy.value)}
      onClick={() => edit((tree) => togglePin(tree, id))}
    />
  );
}

function Rewrite({ message, done }: { message: Message; done: () => void }) {
  const text = useSignal(message.content);
  const box = useRef<HTMLTextAreaElement>(null);
  useLayoutEffect(() => grow(box.current, 400), [text.value]);
  useLayoutEffect(() => {
    box.current?.focus();
    box.current?.setSelectionRange(text.peek().length, text.peek().length);
  }, []);
  const go = () => {
    if (!text.value.trim() || busy.peek()) return;
    done();
    sendInstead(message.id, text.value.trim());
  };
  return (
    <form class="rewrite" onSubmit={(event) => { event.preventDefault(); go(); }}>
      <textarea
        ref={box}
        aria-label="Your message, anew"
        value={text.value}
        onInput={(event) => (text.value = event.currentTarget.value)}
        onKeyDown={(event) => {
          if (isSend(event)) { event.preventDefault(); go(); }
          if (event.key === "Escape") { event.preventDefault(); done(); }
        }}
      />
      <span class="deeds">
        <button type="submit" class="strong" disabled={!text.value.trim()}>Send as a new branch</button>
        <button type="button" class="plain" onClick={done}>Cancel</button>
      </span>
    </form>
  );
}

import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { useSignal } from "@preact/signals";
import { path, SYSTEM } from "../model/conversation";
import { edge, mainKind, number } from "../model/view";
import { answering } from "../state/answering";
import { current, edit } from "../state/library";
import { ids, shares, view } from "../state/windowing";
import { Icon, IconButton, Mark } from "./icons";
import { editSystem } from "./Panel";
import { Trouble } from "./Trouble";
import { PinButton, Sight, Turn } from "./Turn";
import { Stripe } from "./Stripe";

const NEAR = 80;

export function Talk() {
  const conversation = current.value;
  const shown = path(conversation);
  const lane = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  const away = useSignal(false);
  const now = answering.value;
  const jump = () => {
    const box = lane.current;
    if (box) box.scrollTop = box.scrollHeight;
  };
  useLayoutEffect(() => {
    if (follows.current) jump();
  });
  useEffect(() => {
    follows.current = true;
    jump();
  }, [conversation.id, shown.length]);
  const seen = view.value;
  const first = seen ? ids.value[edge(seen)] : undefined;
  return (
    <div class="lane-place">
      <div
        class="lane"
        ref={lane}
        tabIndex={-1}
        onScroll={(event) => {
          const box = event.currentTarget;
          follows.current = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR;
          away.value = !follows.current;
        }}
      >
        <Trouble />
        {shown.length === 0 && !conversation.system ? (
          <Welcome />
        ) : (
          <ol class="talk" aria-label="Messages" aria-busy={now !== null}>
            {conversation.system && <Instructions />}
            {shown.map((message) => (
              <Turn
                key={message.id}
                message={message}
                edge={message.id === first ? number(seen?.size ?? 0) : null}
                share={shares.value.get(message.id)}
                live={now?.message === message.id ? now.text : null}
              />
            ))}
          </ol>
        )}
      </div>
      {away.value && (
        <button type="button" class="latest" onClick={() => { follows.current = true; jump(); }}>
          <Icon name="down" /> Latest
        </button>
      )}
    </div>
  );
}

function Welcome() {
  return (
    <section class="welcome">
      <Mark />
      <h2>A window that slides</h2>
      <p>
        Talk to the model, and watch what it can still see: what is in direct sight, what only deeper layers still carry,
        and what has slid out of reach.
      </p>
    </section>
  );
}

function Instructions() {
  const share = shares.value.get(SYSTEM);
  return (
    <li class={`turn system ${share ? mainKind(share) : ""}`}>
      <article aria-label="System prompt">
        <Stripe share={share} />
        <div class="body">
          <div class="who">
            <h2>System prompt</h2>
            <Sight share={share} />
            <span class="deeds">
              <IconButton icon="edit" label="Edit the system prompt" onClick={editSystem} />
              <IconButton icon="close" label="Clear the system prompt" onClick={() => edit((tree) => ({ ...tree, system: "" }))} />
              <PinButton id={SYSTEM} name="the system prompt" />
            </span>
          </div>
          <p class="words said">{current.value.system}</p>
        </div>
      </article>
    </li>
  );
}

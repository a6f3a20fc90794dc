import { number, wraps, type View } from "../model/view";

const SIZE = 176;
const RADIUS = 70;
const ROUND = 2 * Math.PI * RADIUS;
const TICKS = 48;

/** The rolling buffer drawn as what it is: slots in a ring, how many are held, and where the next token goes. */
export function Ring({ view }: { view: View }) {
  const { slots, used, size } = view;
  if (slots === null || size === null) {
    return <p class="endless"><b>{number(view.tokens)}</b> tokens held, and room grows with the text: no ring to fill.</p>;
  }
  // The slots for pins come first and stay; behind them the window's own are written round and round.
  const room = 1 - size / slots;
  const pinned = Math.min(view.pinned / slots, room);
  const turning = Math.max(view.tokens - view.pinned, 0);
  const full = Math.min(turning, size) / slots;
  const times = wraps(view);
  const head = room + (turning % size) / slots;
  const label = `${number(used)} of ${number(slots)} slots of the ring used${view.pinned ? `, ${number(view.pinned)} pinned` : ""}; ${
    times ? `gone round ${number(times)} ${times === 1 ? "time" : "times"}` : "not yet gone round"
  }`;
  return (
    <figure class="ring">
      <svg viewBox={`0 0 ${SIZE} ${SIZE}`} width={SIZE} height={SIZE} role="img" aria-label={label}>
        <g transform={`rotate(-90 ${SIZE / 2} ${SIZE / 2})`}>
          <circle class="ring-slots" cx={SIZE / 2} cy={SIZE / 2} r={RADIUS} />
          <Arc from={room} to={room + full} kind="held" />
          <Arc from={0} to={pinned} kind="pins" />
          <Ticks />
          <Head at={head % 1} />
        </g>
        <text class="ring-used" x={SIZE / 2} y={SIZE / 2 - 2}>{number(used)}</text>
        <text class="ring-of" x={SIZE / 2} y={SIZE / 2 + 18}>of {number(slots)} slots</text>
        <text class="ring-of" x={SIZE / 2} y={SIZE / 2 + 35}>{times ? `round ${number(times)}×` : `${Math.round((100 * used) / slots)}% full`}</text>
      </svg>
    </figure>
  );
}

function Arc({ from, to, kind }: { from: number; to: number; kind: string }) {
  if (to <= from) return null;
  return (
    <circle
      class={`ring-arc ${kind}`}
      cx={SIZE / 2}
      cy={SIZE / 2}
      r={RADIUS}
      stroke-dasharray={`${(to - from) * ROUND} ${ROUND}`}
      stroke-dashoffset={-from * ROUND}
    />
  );
}

/** Glazing bars between the panes. */
function Ticks() {
  const gap = ROUND / TICKS;
  return <circle class="ring-bars" cx={SIZE / 2} cy={SIZE / 2} r={RADIUS} stroke-dasharray={`1.5 ${gap - 1.5}`} stroke-dashoffset={0.75} />;
}

function Head({ at }: { at: number }) {
  return (
    <g transform={`rotate(${360 * at} ${SIZE / 2} ${SIZE / 2})`}>
      <line class="ring-head" x1={SIZE / 2 + RADIUS - 12} x2={SIZE / 2 + RADIUS + 12} y1={SIZE / 2} y2={SIZE / 2} />
    </g>
  );
}

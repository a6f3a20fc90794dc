// What the next token can still see, message by message, as the server's `POST /v1/window` tells it. Counts are tokens.

export type Kind = "pinned" | "out" | "relayed" | "some" | "direct";

/** The tokens of one message by how they can be seen. */
export type Share = Record<Kind, number> & { start: number; stop: number };

export interface View {
  tokens: number;
  /** Tokens in direct sight in windowed layers; null where no layer has a window. */
  size: number | null;
  slots: number | null;
  used: number;
  pinned: number;
  shares: Share[];
  /** Tokens behind the last message: how the template asks for an answer. */
  tail: number;
  /** True where the page counted on by itself since the server last told. */
  estimated: boolean;
  /** Some layers have no window, or a larger one: what slides past the window stays in sight of those. */
  mixed: boolean;
}

/** The order of the parts of one message: what has slid away is older than what has not. */
export const KINDS: readonly Kind[] = ["pinned", "out", "relayed", "some", "direct"];

export const WORDS: Record<Kind, { label: string; short: string; says: string }> = {
  direct: { label: "In direct sight", short: "in sight", says: "every layer looks straight at it" },
  some: {
    label: "In sight of some layers",
    short: "in sight of some layers",
    says: "slid past the window; layers without one still look at it",
  },
  pinned: { label: "Pinned", short: "pinned", says: "kept in sight wherever the window slides" },
  relayed: {
    label: "Through deeper layers",
    short: "through deeper layers",
    says: "slid past the window; only what later tokens took up of it arrives",
  },
  out: { label: "Out of reach", short: "out of reach", says: "no chain of windows leads back to it" },
};

const count = (value: unknown): number => (typeof value === "number" && value > 0 ? Math.round(value) : 0);
const countOrNull = (value: unknown): number | null => (typeof value === "number" && value > 0 ? Math.round(value) : null);

/**
 * Reads an answer of `POST /v1/window`; throws where it is not one.
 *
 * The server counts as direct what at least one layer sees. Here what lies before the window's edge is told apart from it:
 * only layers without a window, or with a larger one, see that; unless it is pinned, which holds it in every layer.
 */
export function readView(json: unknown, pinned: ReadonlySet<number> = new Set(), mixed = false): View {
  const body = json as Record<string, unknown> | null;
  if (!body || !Array.isArray(body.messages)) throw new Error("the server's account of the window has no messages");
  const capacity = (body.capacity ?? {}) as Record<string, unknown>;
  const tokens = count(body.n_tokens);
  const size = countOrNull(body.size);
  const edge = size === null ? 0 : Math.max(tokens - size, 0);
  const shares = body.messages.map((entry: Record<string, unknown>, index) => {
    const [start, stop, direct] = [count(entry.start), count(entry.stop), count(entry.direct)];
    const early = Math.max(direct - Math.max(stop - Math.max(edge, start), 0), 0);
    const held = pinned.has(index) ? early : 0;
    return {
      start,
      stop,
      direct: direct - early,
      some: early - held,
      pinned: count(entry.pinned) + held,
      relayed: count(entry.relayed),
      out: count(entry.out_of_reach),
    };
  });
  const view = { tokens, size, slots: countOrNull(capacity.slots), used: 0, pinned: 0, shares, tail: 0, estimated: false, mixed };
  if (shares.length > 0) view.tail = Math.max(tokens - Math.max(...shares.map(({ stop }) => stop)), 0);
  const all = sums(view);
  return {
    ...view,
    pinned: count(capacity.pinned),
    used: size === null ? count(capacity.used) : Math.min(tokens, size) + all.pinned,
    mixed: mixed || all.some > 0,
  };
}

export function total(share: Share): number {
  return KINDS.reduce((sum, kind) => sum + share[kind], 0);
}

export function sums(view: View): Record<Kind, number> {
  const all = { direct: view.tail, some: 0, pinned: 0, relayed: 0, out: 0 };
  for (const share of view.shares) for (const kind of KINDS) all[kind] += share[kind];
  return all;
}

/** The parts of one message from its oldest token to its newest, empty ones left out. */
export function parts(share: Share): { kind: Kind; tokens: number }[] {
  return KINDS.map((kind) => ({ kind, tokens: share[kind] })).filter((part) => part.tokens > 0);
}

/** The one kind that a message is told apart by: the best that most of its tokens have. */
export function mainKind(share: Share): Kind {
  const [best] = parts(share).sort((a, b) => b.tokens - a.tokens);
  return best?.kind ?? "direct";
}

export const number = (value: number): string => Math.round(value).toLocaleString("en");

/** "182 tokens: 120 in sight, 62 through deeper layers"; one kind alone is said without its count. */
export function describe(share: Share): string {
  const all = parts(share).reverse();
  const tokens = `${number(total(share))} ${total(share) === 1 ? "token" : "tokens"}`;
  if (all.length === 1 && all[0]) return `${tokens}, ${WORDS[all[0].kind].short}`;
  return `${tokens}: ${all.map((part) => `${number(part.tokens)} ${WORDS[part.kind].short}`).join(", ")}`;
}

/** How often the ring has gone round: whole turns of the window's slots, with what is pinned kept beside them. */
export function wraps(view: View): number {
  if (view.size === null || view.tokens - view.pinned <= view.size) return 0;
  return Math.floor((view.tokens - view.pinned) / view.size);
}

/**
 * The view after `n` more tokens of the last message, counted on by the page while an answer streams: the oldest tokens
 * in direct sight leave it one by one, and where some are out of reach already, that edge moves as fast.
 */
export function advance(view: View, n: number): View {
  if (n <= 0 || view.shares.length === 0) return view;
  // Shares that stay as they are stay the same objects, so that what is drawn of them is not drawn anew.
  const shares = [...view.shares];
  const last = shares[shares.length - 1]!;
  shares[shares.length - 1] = { ...last, direct: last.direct + n, stop: last.stop + n };
  if (view.size !== null) {
    const before = sums(view);
    const leaving = Math.max(before.direct + n - Math.max(view.size, before.direct), 0);
    move(shares, "direct", view.mixed ? "some" : "relayed", leaving);
    if (before.out > 0) move(shares, "relayed", "out", leaving);
  }
  const used = view.size === null || view.slots === null ? view.used + n : Math.min(view.used + n, view.slots);
  return { ...view, tokens: view.tokens + n, used, shares, estimated: true };
}

function move(shares: Share[], from: Kind, to: Kind, n: number): void {
  shares.forEach((share, index) => {
    const moved = Math.min(share[from], n);
    if (moved > 0) shares[index] = { ...share, [from]: share[from] - moved, [to]: share[to] + moved };
    n -= moved;
  });
}

/** One sentence for the panel and for those who cannot see the drawing. */
export function sentence(view: View): string {
  const all = sums(view);
  if (view.size === null) return `No layer of this model has a window: all ${number(view.tokens)} tokens are in sight.`;
  const said = [`${number(all.direct + all.pinned)} of ${number(view.tokens)} tokens are in direct sight`];
  if (view.mixed) said[0] += " of every layer";
  if (all.pinned) said[0] += `, ${number(all.pinned)} of them pinned`;
  if (all.some) said.push(`${number(all.some)} only of layers without this window`);
  if (all.relayed) said.push(`${number(all.relayed)} arrive through deeper layers only`);
  if (all.out) said.push(`${number(all.out)} are out of reach`);
  return `${said.join("; ")}.`;
}

/** Index of the first message with a token in direct sight where something has slid out before it; else -1. */
export function edge(view: View): number {
  const all = sums(view);
  if (all.relayed + all.out + all.some === 0) return -1;
  return view.shares.findIndex((share) => share.direct > 0);
}

/** Tokens before the first one in direct sight, in the order in which messages and their parts are drawn. */
export function before(view: View): number {
  const at = edge(view);
  if (at < 0) return 0;
  const share = view.shares[at]!;
  return view.shares.slice(0, at).reduce((sum, earlier) => sum + total(earlier), total(share) - share.direct);
}

import { describe, expect, it } from "vitest";
import { advance, before, describe as words, edge, mainKind, parts, readView, sentence, sums, wraps, type View } from "../src/model/view";

const row = (index: number, start: number, direct: number, pinned = 0, relayed = 0, out_of_reach = 0) => ({
  index, start, stop: start + direct + pinned + relayed + out_of_reach, direct, pinned, relayed, out_of_reach,
});

/** 100 tokens, a window of 40: 10 pinned, 20 out of reach, 30 relayed, 40 direct, of which 10 in the third message. */
const slid = (): View =>
  readView({
    n_tokens: 100,
    size: 40,
    capacity: { slots: 50, used: 50, pinned: 10 },
    messages: [row(0, 0, 0, 10), row(1, 10, 0, 0, 0, 20), row(2, 30, 10, 0, 30), row(3, 70, 30)],
  });

describe("the view", () => {
  it("is read from the server's answer, and refused where it is none", () => {
    expect(sums(slid())).toEqual({ pinned: 10, out: 20, relayed: 30, some: 0, direct: 40 });
    expect([slid().used, slid().mixed]).toEqual([50, false]);
    expect(() => readView({})).toThrow("no messages");
    expect(() => readView(null)).toThrow();
    expect(readView({ n_tokens: 5, size: null, capacity: {}, messages: [] }).slots).toBeNull();
  });

  it("tells what only layers without a window see from what all see", () => {
    const body = { n_tokens: 100, size: 40, capacity: { slots: 104, used: 40, pinned: 10 }, messages: [row(0, 0, 10), row(1, 10, 45), row(2, 55, 45)] };
    const view = readView(body, new Set([0]));
    expect(sums(view)).toEqual({ pinned: 10, out: 0, relayed: 0, some: 50, direct: 40 });
    expect(view.shares.map(({ some, direct }) => [some, direct])).toEqual([[0, 0], [45, 0], [5, 40]]);
    expect([view.mixed, view.used, edge(view), before(view)]).toEqual([true, 50, 2, 60]);
    expect(sums(advance(view, 10))).toEqual({ pinned: 10, out: 0, relayed: 0, some: 60, direct: 40 });
    expect(sentence(view)).toBe(
      "50 of 100 tokens are in direct sight of every layer, 10 of them pinned; 50 only of layers without this window.",
    );
  });

  it("counts what the template adds behind the last message as seen", () => {
    const view = readView({ n_tokens: 104, size: 40, capacity: { slots: 40, used: 40 }, messages: [row(0, 0, 0, 0, 64), row(1, 64, 36)] });
    expect([view.tail, sums(view).direct, view.used]).toEqual([4, 40, 40]);
    expect(sums(advance(view, 6))).toMatchObject({ direct: 40, relayed: 70 });
  });

  it("puts the parts of a message from old to new", () => {
    expect(parts(slid().shares[2]!)).toEqual([{ kind: "relayed", tokens: 30 }, { kind: "direct", tokens: 10 }]);
    expect(mainKind(slid().shares[2]!)).toBe("relayed");
    expect(words(slid().shares[2]!)).toBe("40 tokens: 10 in sight, 30 through deeper layers");
    expect(words(slid().shares[0]!)).toBe("10 tokens, pinned");
  });

  it("finds the window's edge", () => {
    expect(edge(slid())).toBe(2);
    expect(before(slid())).toBe(60);
    const all = readView({ n_tokens: 5, size: 40, capacity: { slots: 40, used: 5 }, messages: [row(0, 0, 5)] });
    expect([edge(all), before(all), wraps(all)]).toEqual([-1, 0, 0]);
  });

  it("counts the ring's rounds over the slots that turn", () => {
    expect(wraps(slid())).toBe(2);
    expect(wraps({ ...slid(), tokens: 50 })).toBe(0);
    expect(wraps({ ...slid(), tokens: 51 })).toBe(1);
    expect(wraps({ ...slid(), tokens: 90 })).toBe(2);
    expect(wraps({ ...slid(), size: null })).toBe(0);
  });

  it("says it in a sentence", () => {
    expect(sentence(slid())).toBe(
      "50 of 100 tokens are in direct sight, 10 of them pinned; 30 arrive through deeper layers only; 20 are out of reach.",
    );
    expect(sentence({ ...slid(), size: null })).toMatch(/^No layer/);
  });
});

describe("counting on while an answer streams", () => {
  it("moves the oldest tokens out, keeps pins, and keeps the sum", () => {
    const later = advance(slid(), 15);
    expect(sums(later)).toEqual({ pinned: 10, out: 35, relayed: 30, some: 0, direct: 40 });
    expect(later.shares[2]).toMatchObject({ direct: 0, relayed: 25, out: 15 });
    expect(later.shares[3]).toMatchObject({ direct: 40, relayed: 5 });
    expect([later.tokens, later.used, later.estimated]).toEqual([115, 50, true]);
  });

  it("equals the server's own count of a longer text", () => {
    const text = (n: number) => {
      const direct = Math.min(n, 40);
      const relayed = Math.min(n - direct, 117);
      return readView({ n_tokens: n, size: 40, capacity: { slots: 40, used: direct }, messages: [row(0, 0, direct, 0, relayed, n - direct - relayed)] });
    };
    for (const [from, more] of [[5, 10], [35, 10], [40, 1], [157, 9], [200, 50]] as const) {
      const counted = advance(text(from), more);
      if (from + more <= 157 || from > 157) expect({ ...counted, estimated: false }).toEqual(text(from + more));
    }
  });

  it("lets nothing leave where there is no window", () => {
    const endless = { ...slid(), size: null, slots: null };
    expect(sums(advance(endless, 500)).direct).toBe(540);
    expect(advance(slid(), 0)).toEqual(slid());
  });
});

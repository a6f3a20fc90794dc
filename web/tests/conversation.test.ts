import { describe, expect, it } from "vitest";
import { add, newConversation, path, remove, siblings, titleOf, togglePin, turnTo, type Conversation, type Message } from "../src/model/conversation";
import { chatBody, outgoing, windowBody } from "../src/model/request";

let made = 0;
const message = (id: string, parent: string | null, role: Message["role"] = "user"): Message => ({
  id,
  parent,
  role,
  content: `text of ${id}`,
  created: (made += 1),
});

/** q1 with answers a1 and a2; q2 after a2; q1b beside q1. Shown: q1 a2 q2. */
function tree(): Conversation {
  let made = newConversation();
  for (const [id, parent, role] of [
    ["q1b", null, "user"],
    ["q1", null, "user"],
    ["a1", "q1", "assistant"],
    ["a2", "q1", "assistant"],
    ["q2", "a2", "user"],
  ] as const) {
    made = add(made, message(id, parent, role));
  }
  return made;
}

const ids = (conversation: Conversation) => path(conversation).map(({ id }) => id);

describe("the tree", () => {
  it("shows the newest branch and turns to the others", () => {
    expect(ids(tree())).toEqual(["q1", "a2", "q2"]);
    expect(ids(turnTo(tree(), "a2", -1))).toEqual(["q1", "a1"]);
    expect(ids(turnTo(tree(), "q1", -1))).toEqual(["q1b"]);
    expect(turnTo(tree(), "q1", 1).chosen).toEqual(tree().chosen);
    expect(siblings(tree(), "a1")).toEqual(["a1", "a2"]);
  });

  it("comes back to where a branch was left", () => {
    const away = turnTo(tree(), "q1", -1);
    expect(ids(turnTo(away, "q1b", 1))).toEqual(["q1", "a2", "q2"]);
  });

  it("changes no tree in place", () => {
    const before = tree();
    const frozen = JSON.stringify(before);
    add(before, message("q3", null));
    turnTo(before, "a2", -1);
    remove(before, "a2");
    togglePin(before, "q1");
    expect(JSON.stringify(before)).toBe(frozen);
  });

  it("takes out a branch with all that follows, and its pins", () => {
    const rest = remove(togglePin(togglePin(tree(), "q2"), "q1"), "a2");
    expect(ids(rest)).toEqual(["q1", "a1"]);
    expect(Object.keys(rest.messages).sort()).toEqual(["a1", "q1", "q1b"]);
    expect(rest.pins).toEqual(["q1"]);
    expect(ids(remove(remove(rest, "q1"), "q1b"))).toEqual([]);
  });

  it("takes its title from the first message, until it is given one", () => {
    expect(tree().title).toBe("text of q1");
    expect(add({ ...newConversation(), title: "Mine", titled: true }, message("q", null)).title).toBe("Mine");
    expect(titleOf("  a\n b ")).toBe("a b");
    expect(titleOf("word ".repeat(30)).length).toBeLessThanOrEqual(57);
  });
});

describe("requests", () => {
  const asked = { ...tree(), system: "Be brief.", pins: ["system", "a2", "q1b"], settings: { temperature: 0, windowSize: 128 } };

  it("sends the shown branch up to a message, and the draft last", () => {
    expect(outgoing(asked, "a2").ids).toEqual(["system", "q1", "a2"]);
    expect(outgoing(asked, undefined, " more ").ids).toEqual(["system", "q1", "a2", "q2"]);
    expect(outgoing(newConversation()).messages).toEqual([]);
  });

  it("leaves out empty answers", () => {
    const empty = add(tree(), { ...message("a3", "q2", "assistant"), content: "" });
    expect(outgoing(empty).ids).toEqual(["q1", "a2", "q2"]);
  });

  it("asks as one what was asked before and after an answer that never came", () => {
    const failed = add(tree(), { ...message("a3", "q2", "assistant"), content: "", error: "busy" });
    const more = outgoing(add(failed, message("q3", "a3")));
    expect(more.messages.map(({ role }) => role)).toEqual(["user", "assistant", "user"]);
    expect(more.messages.at(-1)!.content).toBe("text of q2\n\ntext of q3");
    expect(more.ids).toEqual(["q1", "a2", "q2"]);
  });

  it("names pins by their index among what is sent, and only what is shown", () => {
    expect(windowBody(asked, "m", outgoing(asked)).window).toEqual({ size: 128, pins: { messages: [0, 2] } });
    expect(windowBody(tree(), "m", outgoing(tree()))).not.toHaveProperty("window");
  });

  it("sends the sampling that is set, zero too, and nothing else", () => {
    const body = chatBody(asked, "m", outgoing(asked));
    expect(body.temperature).toBe(0);
    expect(Object.keys(body).sort()).toEqual(["messages", "model", "stream", "stream_options", "temperature", "window"]);
  });
});

import { describe, expect, it } from "vitest";
import { add, newConversation, path, togglePin, turnTo, type Conversation, type Message } from "../src/model/conversation";
import { fromText, toJson, toJsonl } from "../src/model/transfer";

function tree(): Conversation {
  let made: Conversation = { ...newConversation({ temperature: 0.5 }), system: "Be brief.", title: "Fruit", titled: true };
  const put = (id: string, parent: string | null, role: Message["role"], content: string) => {
    made = add(made, { id, parent, role, content, created: 1, figures: { answerTokens: 3 } });
  };
  put("q", null, "user", "Apples?");
  put("a1", "q", "assistant", "Red.");
  put("a2", "q", "assistant", "Green.\n\"é\"");
  put("r", "a1", "user", "Why?");
  return togglePin(togglePin(turnTo(made, "a2", -1), "r"), "system");
}

const contents = (conversation: Conversation) => path(conversation).map(({ content }) => content);

describe("export and import", () => {
  it("keeps the whole tree, under new identifiers", () => {
    const before = tree();
    const [after] = fromText(toJson([before]));
    expect(contents(after!)).toEqual(["Apples?", "Red.", "Why?"]);
    const answer = path(after!)[1]!;
    expect(contents(turnTo(after!, answer.id, 1))).toEqual(["Apples?", "Green.\n\"é\""]);
    expect([after!.title, after!.system, after!.settings]).toEqual(["Fruit", "Be brief.", { temperature: 0.5 }]);
    expect(after!.pins).toEqual([path(after!)[2]!.id, "system"]);
    expect(answer.figures).toEqual({ answerTokens: 3 });
    expect(after!.id).not.toBe(before.id);
    expect(Object.keys(after!.messages)).not.toContain("a1");
  });

  it("writes one line a conversation, and reads it", () => {
    const text = toJsonl([tree(), tree()]);
    expect(text.split("\n")).toHaveLength(3);
    expect(JSON.parse(text.split("\n")[0]!).messages).toEqual([
      { role: "system", content: "Be brief." },
      { role: "user", content: "Apples?" },
      { role: "assistant", content: "Red." },
      { role: "user", content: "Why?" },
    ]);
    const read = fromText(text);
    expect(read.map(contents)).toEqual([contents(tree()), contents(tree())]);
    expect(read[0]!.system).toBe("Be brief.");
  });

  it.each([
    ["", "The file is empty."],
    ["{}", "neither conversations"],
    ["nonsense", "line 1: expected"],
    ['{"messages": []}', "there is no message"],
    ['{"messages": [{"role": "user", "content": 3}]}', "messages[0].content is not text"],
    ['{"messages": [{"role": "user", "content": "a"}]}\n{"messages": [{"role": "tool", "content": "a"}]}', 'line 2: messages[0].role is "tool"'],
    ['{"format": "sash-conversations", "version": 2, "conversations": []}', "version 2"],
    ['{"format": "sash-conversations", "version": 1, "conversations": [{}]}', "conversations[0] is not"],
    ['{"format": "sash-conversations", "version": 1, "conversations": [{"messages": {}, "children": {"": ["x"]}}]}', '"x" is missing'],
  ])("refuses %j in one line", (text, line) => {
    expect(() => fromText(text)).toThrow(line);
  });

  it("does not follow a circle", () => {
    const messages = { a: { role: "user", content: "a" } };
    const conversations = [{ messages, children: { "": ["a"], a: ["a"] } }];
    expect(() => fromText(JSON.stringify({ format: "sash-conversations", version: 1, conversations }))).toThrow("listed twice");
  });
});

// Everything a reader does on the page, in a real browser against the stand-in server.
// `node flows.mjs [NAME...]` runs them and writes one line of JSON for each: {"name", "ok", "error"}.

import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { answers, box, faults, fromTheTop, launch, said, say, settled, talk, turns, until, visit } from "./browser.mjs";
import { FakeServer } from "./fake_server.mjs";

const LONG = Array.from({ length: 50 }, (_, index) => `word${index}`).join(" ");
const NETWORK = /^Failed to load resource/;

const flows = new Map();
/** Options: `allowed` are complaints of the browser that belong to the flow; `own` flows open their pages themselves. */
const flow = (name, run, options = {}) => flows.set(name, { run, options });

flow("opens on a quiet page", async ({ page }) => {
  await page.getByRole("heading", { name: "A window that slides" }).waitFor();
  await page.getByText("smollm2-135m-instruct").waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.id), "message-box");
  assert.ok(await page.getByRole("button", { name: "Send" }).isDisabled());
});

flow("streams an answer with its figures", async ({ page, server }) => {
  server.faults = ["hold"];
  server.holdAt = 0;
  await say(page, "Hello");
  await page.getByText("Reading").waitFor();
  await server.held();
  server.release();
  await settled(page);
  server.holdAt = 3;
  server.faults = ["hold"];
  await page.getByRole("button", { name: "Answer again" }).click();
  await until("the start of the answer", async () => (await answers(page).locator(".words").textContent()).trim() === "This is a");
  await server.held();
  assert.ok(await page.getByRole("button", { name: "Stop the answer" }).isVisible());
  server.release();
  await settled(page);
  assert.equal((await answers(page).locator(".words").textContent()).trim(), "This is a short answer with bold words.");
  assert.equal(await answers(page).locator("strong").textContent(), "bold");
  const figures = await answers(page).locator(".figures").textContent();
  assert.match(figures, /8 tokens/);
  assert.match(figures, /41\.6 tok\/s/);
  assert.match(figures, /first token 140 ms/);
  assert.deepEqual(server.asked.chat[0].messages, [{ role: "user", content: "Hello" }]);
  assert.equal(server.asked.chat[0].stream_options.include_usage, true);
  assert.match(await page.locator("[aria-live=polite]").textContent(), /^Answer: This is a short/);
  await page.locator(".rows").getByText("41.6 tok/s").waitFor();
});

flow("stops with Escape and with the button", async ({ page, server }) => {
  server.faults = ["hold", "hold"];
  await say(page, "Hello");
  await said(page).getByText("This is").waitFor();
  await page.keyboard.press("Escape");
  await page.getByText("stopped", { exact: true }).waitFor();
  await until("the server to notice", () => server.cancelled === 1);
  assert.match(await answers(page).locator(".words").textContent(), /^This is/);
  await say(page, "And again");
  await page.getByRole("button", { name: "Stop the answer" }).click();
  await settled(page);
  await until("the server to notice", () => server.cancelled === 2);
  assert.ok(!(await box(page).isDisabled()));
});

flow("edits and asks again as branches", async ({ page, server }) => {
  server.reply = ({ messages }) => `Reply number ${server.asked.chat.length} to ${messages.at(-1).content}`;
  await talk(page, "First");
  await talk(page, "Second");
  await answers(page).nth(1).getByRole("button", { name: "Answer again" }).click();
  await settled(page);
  await said(page).getByText("Reply number 3 to Second").waitFor();
  await answers(page).nth(1).getByRole("img", { name: "Branch 2 of 2" }).waitFor();
  await answers(page).nth(1).getByRole("button", { name: "Earlier branch" }).click();
  await said(page).getByText("Reply number 2 to Second").waitFor();
  await page.locator("li.turn.user").first().getByRole("button", { name: "Edit and ask again" }).click();
  await page.getByLabel("Your message, anew").fill("Another");
  await page.getByLabel("Your message, anew").press("Enter");
  await settled(page);
  await said(page).getByText("Reply number 4 to Another").waitFor();
  assert.equal(await turns(page).count(), 2);
  assert.deepEqual(server.asked.chat[3].messages, [{ role: "user", content: "Another" }]);
  const first = page.locator("li.turn.user").first();
  await first.getByRole("img", { name: "Branch 2 of 2" }).waitFor();
  await first.getByRole("button", { name: "Earlier branch" }).click();
  await said(page).getByText("Reply number 2 to Second").waitFor();
  assert.equal(await turns(page).count(), 4);
  await first.getByRole("button", { name: "Edit and ask again" }).click();
  await page.getByLabel("Your message, anew").press("Escape");
  assert.equal(await page.getByLabel("Your message, anew").count(), 0);
});

flow("sends the system prompt and the sampling that is set", async ({ page, server }) => {
  await page.getByRole("textbox", { name: "System prompt" }).fill("Be brief.");
  await page.getByLabel("Temperature", { exact: true }).fill("0.3");
  await page.getByLabel("Top p", { exact: true }).fill("0.9");
  await page.getByLabel("Top k").fill("40");
  await page.getByLabel("Most tokens").fill("5");
  await page.getByLabel("Seed").fill("7");
  await talk(page, "Hello");
  const sent = server.asked.chat[0];
  assert.deepEqual(sent.messages[0], { role: "system", content: "Be brief." });
  assert.deepEqual(
    [sent.temperature, sent.top_p, sent.top_k, sent.max_tokens, sent.seed, sent.window],
    [0.3, 0.9, 40, 5, 7, undefined],
  );
  await page.getByText("cut at 5 tokens").waitFor();
  await page.locator("li.turn.system").getByText("Be brief.").waitFor();
  await page.getByLabel("Temperature, slider").fill("1.5");
  await page.getByRole("button", { name: "Leave all to the model" }).click();
  await talk(page, "More");
  assert.deepEqual(Object.keys(server.asked.chat[1]).sort(), ["messages", "model", "stream", "stream_options"]);
});

flow("shows Markdown and code, and nothing dangerous", async ({ page, server, foreign }) => {
  server.reply =
    "# Title\n\n- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\ndef f(x):\n    return x + 1\n```\n\n" +
    "<script>window.bad = 1</script> <img src=x onerror=\"window.bad = 2\"> ![p](https://example.invalid/p.png) " +
    "<b style=\"color:red\">raw</b>\n\n[bad](javascript:window.bad=3) [good](https://example.invalid/page)";
  await talk(page, "Show me");
  const answer = answers(page).first();
  await answer.getByRole("heading", { name: "Title" }).waitFor();
  assert.equal(await answer.locator("td").count(), 2);
  assert.equal(await answer.locator(".hljs-keyword").first().textContent(), "def");
  await answer.getByRole("button", { name: "Copy", exact: true }).click();
  await page.getByText("Code copied.").waitFor();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "def f(x):\n    return x + 1");
  assert.equal(await page.evaluate(() => window.bad), undefined);
  assert.equal(await answer.locator("script, img, b[style], [onerror]").count(), 0);
  assert.match(await answer.textContent(), /<script>window\.bad = 1<\/script>/);
  assert.equal(await answer.locator("a").filter({ hasText: "bad" }).count(), 0);
  assert.equal(await answer.getByText("good").getAttribute("rel"), "noopener noreferrer");
  assert.deepEqual(foreign, []);
});

flow("shades the messages by what is still seen", async ({ page, server }) => {
  server.reply = LONG;
  for (const text of ["One", "Two", "Three", "Four", "Five"]) await talk(page, text);
  const last = answers(page).last();
  await last.getByText("52 tokens, in sight").waitFor();
  await page.locator("li.turn.user").first().getByText("3 tokens, out of reach").waitFor();
  assert.equal(await page.locator("li.turn.out").first().isVisible(), true);
  const split = answers(page).nth(3);
  await split.getByText("52 tokens: 5 in sight, 47 through deeper layers").waitFor();
  const heights = await split.locator(".stile .part").evaluateAll((all) => all.map((part) => [part.className, part.getBoundingClientRect().height]));
  assert.deepEqual(heights.map(([name]) => name), ["part relayed", "part direct"]);
  assert.ok(heights[0][1] > 4 * heights[1][1]);
  assert.equal(await split.locator(".stile").getAttribute("aria-label"), "What the model sees of it: 52 tokens: 5 in sight, 47 through deeper layers");
  await page.getByText("the window begins inside this message").waitFor();
  assert.equal(await page.getByRole("img", { name: /60 of 60 slots of the ring used; gone round 4 times/ }).count(), 1);
  await page.getByText("60 of 275 tokens are in direct sight").waitFor();
  assert.match(await page.locator(".legend").textContent(), /In direct sight 60/);
});

flow("asks about the window while typing, and not at each key", async ({ page, server }) => {
  await talk(page, "Hello");
  await until("the window after the answer", () => server.asked.window.some(({ messages }) => messages.length === 2));
  const before = server.asked.window.length;
  await box(page).pressSequentially("one two three four five", { delay: 15 });
  await until("the draft's window", () => server.asked.window.at(-1).messages.at(-1).content === "one two three four five");
  assert.ok(server.asked.window.length - before <= 3);
  await page.getByText(/20 tokens$/).waitFor();
});

flow("asks again what is seen where the server failed", async ({ page, server }) => {
  server.windowFaults = [500, 503];
  await talk(page, "Hello");
  await page.getByText(/The window cannot be shown/).waitFor();
  await page.locator(".band").waitFor();
  assert.deepEqual(server.windowFaults, []);
  assert.equal(await page.getByText(/The window cannot be shown/).count(), 0);
}, { allowed: NETWORK });

flow("sends one message while the models are still asked for", async ({ browser, server }) => {
  let know;
  server.modelsKnown = new Promise((resolve) => (know = resolve));
  const { page, context } = await visit(browser, server.url);
  await say(page, "One");
  await page.getByRole("button", { name: "Stop the answer" }).waitFor();
  await say(page, "Two");
  know();
  await settled(page);
  assert.deepEqual(server.asked.chat.map(({ messages }) => messages), [[{ role: "user", content: "One" }]]);
  assert.equal(await box(page).inputValue(), "Two");
  await context.close();
}, { own: true });

flow("lets the window slide while an answer streams", async ({ page, server }) => {
  server.reply = LONG;
  await talk(page, "One");
  await page.getByText("55 tokens", { exact: true }).waitFor();
  server.faults = ["hold"];
  server.holdAt = 30;
  await say(page, "Two");
  const first = page.locator("li.turn.user").first();
  await server.held();
  await first.getByText("3 tokens, through deeper layers").waitFor();
  assert.ok(await page.getByRole("button", { name: "Stop the answer" }).isVisible());
  server.release();
  await settled(page);
});

flow("pins a message with one click", async ({ page, server }) => {
  server.reply = LONG;
  await page.getByRole("textbox", { name: "System prompt" }).fill("Be brief and kind.");
  for (const text of ["One", "Two"]) await talk(page, text);
  await page.getByRole("button", { name: "Pin your message" }).first().click();
  await page.locator("li.turn.user").first().getByText("3 tokens, pinned").waitFor();
  assert.equal(await page.getByRole("button", { name: "Pin your message" }).first().getAttribute("aria-pressed"), "true");
  await page.getByRole("button", { name: "Pin the system prompt" }).click();
  await page.locator("li.turn.system").getByText("6 tokens, pinned").waitFor();
  assert.equal(await page.getByRole("img", { name: /slots of the ring used, 9 pinned/ }).count(), 1);
  await talk(page, "Three");
  assert.deepEqual(server.asked.chat.at(-1).window, { pins: { messages: [0, 1] } });
  await page.getByRole("button", { name: "Pin your message" }).first().click();
  await page.getByLabel("Window, in tokens").fill("32");
  await talk(page, "Four");
  assert.deepEqual(server.asked.chat.at(-1).window, { size: 32, pins: { messages: [0] } });
});

flow("tells what only layers without a window still see", async ({ browser, server }) => {
  server.mixed = true;
  server.reply = LONG;
  const { page, context, complaints } = await visit(browser, server.url);
  for (const text of ["One", "Two"]) await talk(page, text);
  await answers(page).first().getByText("52 tokens: 5 in sight, 47 in sight of some layers").waitFor();
  await page.getByText("60 of 110 tokens are in direct sight of every layer; 50 only of layers without this window.").waitFor();
  await page.getByRole("button", { name: "Pin your message" }).first().click();
  await page.locator("li.turn.user").first().getByText("3 tokens, pinned").waitFor();
  assert.match(await page.locator(".legend").textContent(), /Pinned 3.*In sight of some layers 47/);
  assert.deepEqual(complaints, []);
  await context.close();
}, { own: true });

flow("says that a base model cannot chat", async ({ browser, server }) => {
  server.chats = false;
  const { page, context, complaints } = await visit(browser, server.url);
  await page.getByText("is a base model").waitFor();
  await box(page).fill("Hello");
  await box(page).press("Enter");
  assert.ok(await page.getByRole("button", { name: "Send" }).isDisabled());
  assert.equal(server.asked.chat.length + server.asked.window.length, 0);
  assert.deepEqual(complaints, []);
  await context.close();
}, { own: true });

flow("keeps conversations over a reload", async ({ page, server }) => {
  server.reply = ({ messages }) => `Reply to ${messages.at(-1).content}`;
  await talk(page, "About apples");
  await answers(page).first().getByRole("button", { name: "Answer again" }).click();
  await settled(page);
  await page.getByRole("button", { name: "New conversation" }).click();
  await talk(page, "About pears");
  await page.reload();
  await said(page).getByText("Reply to About pears").waitFor();
  await page.getByRole("button", { name: "About apples", exact: true }).click();
  await said(page).getByText("Reply to About apples").waitFor();
  await answers(page).first().getByRole("img", { name: "Branch 2 of 2" }).waitFor();
  await page.getByLabel("Title of this conversation").fill("Fruit");
  await page.getByLabel("Title of this conversation").press("Enter");
  await page.getByRole("button", { name: "Fruit", exact: true }).waitFor();
  await page.getByRole("button", { name: "Delete “Fruit”" }).click();
  await page.getByText("Deleted “Fruit”.").waitFor();
  assert.equal(await page.getByRole("button", { name: "Fruit", exact: true }).count(), 0);
  await page.getByRole("button", { name: "Undo" }).click();
  await said(page).getByText("Reply to About apples").waitFor();
  await page.getByRole("button", { name: "Delete “Fruit”" }).click();
  await until("it to be gone", async () => (await page.getByRole("button", { name: "Fruit", exact: true }).count()) === 0);
  await page.reload();
  await page.getByRole("button", { name: "About pears", exact: true }).waitFor();
  assert.equal(await page.getByRole("button", { name: "Fruit", exact: true }).count(), 0);
});

flow("keeps what had come when the page is closed in mid-answer", async ({ page, server }) => {
  server.reply = LONG;
  server.gap = 100;
  server.faults = ["hold"]; // so that the answer is not over before the page is closed
  server.holdAt = 30;
  await say(page, "Go on");
  await said(page).getByText("word22").waitFor();
  await page.reload();
  await said(page).getByText("word5").waitFor();
  await page.getByText("stopped", { exact: true }).waitFor();
});

flow("goes on answering in a conversation that is not shown", async ({ page, server }) => {
  server.reply = LONG;
  server.gap = 20;
  await say(page, "Long one");
  await said(page).getByText("word2").waitFor();
  await page.getByRole("button", { name: "New conversation" }).click();
  assert.equal(await turns(page).count(), 0);
  await settled(page);
  await page.getByRole("button", { name: "Long one", exact: true }).click();
  await said(page).getByText("word49").waitFor();
});

flow("takes over what another tab saved", async ({ page, context, server }) => {
  await talk(page, "Shared");
  const other = await context.newPage();
  await other.goto(server.url);
  await other.getByRole("button", { name: "Shared", exact: true }).click();
  await talk(other, "From the other tab");
  await page.getByText("From the other tab").waitFor();
  assert.equal(await turns(page).count(), 4);
});

flow("works where the browser keeps nothing, and says so", async ({ browser, server }) => {
  const context = await browser.newContext({ viewport: { width: 1280, height: 820 } });
  await context.addInitScript(() => {
    IDBFactory.prototype.open = () => { throw new DOMException("no", "SecurityError"); };
    Storage.prototype.getItem = Storage.prototype.setItem = () => { throw new DOMException("no", "SecurityError"); };
  });
  const { page, complaints } = await visit(browser, server.url, { context });
  await talk(page, "Hello");
  await talk(page, "Again");
  assert.equal(await answers(page).count(), 2);
  await page.getByText("This browser keeps nothing here").waitFor();
  assert.deepEqual(complaints, []);
  await context.close();
}, { own: true });

flow("stays quick with five hundred messages", async ({ page, folder, server }) => {
  const messages = Array.from({ length: 500 }, (_, index) => ({
    role: index % 2 ? "assistant" : "user",
    content: `Message ${index}: ${"some words and `code` ".repeat(12)}`,
  }));
  const file = join(folder, "long.jsonl");
  await writeFile(file, `${JSON.stringify({ messages })}\n`);
  await page.getByLabel("File to import").setInputFiles(file);
  await page.getByText("Message 499").waitFor();
  await until("its window", () => server.asked.window.at(-1)?.messages.length === 500);
  await until("all stripes", () => page.evaluate(() => document.querySelectorAll("li.turn .stile .part").length >= 500));
  server.reply = LONG;
  await talk(page, "And one more");
  await page.locator("li.turn").last().getByText("52 tokens, in sight").waitFor();
  assert.equal(await page.locator("li.turn").count(), 502);
});

flow("exports and imports whole trees and messages", async ({ page, browser, server, folder }) => {
  server.reply = ({ messages }) => `Reply ${server.asked.chat.length} to ${messages.at(-1).content}`;
  await page.getByRole("textbox", { name: "System prompt" }).fill("Be brief.");
  await talk(page, "Apples");
  await answers(page).first().getByRole("button", { name: "Answer again" }).click();
  await settled(page);
  await page.getByRole("button", { name: "Pin your message" }).click();
  await page.getByText("Export").click();
  const get = async (name) => {
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name }).click()]);
    const path = join(folder, download.suggestedFilename());
    await download.saveAs(path);
    return path;
  };
  const tree = await get("This conversation, all branches (JSON)");
  const lines = await get("The messages shown (JSONL)");
  assert.match(tree, /sash-apples\.json$/);
  assert.deepEqual(JSON.parse(await readFile(lines, "utf8")), {
    messages: [
      { role: "system", content: "Be brief." },
      { role: "user", content: "Apples" },
      { role: "assistant", content: "Reply 2 to Apples" },
    ],
  });
  const there = await visit(browser, server.url);
  await there.page.getByLabel("File to import").setInputFiles(tree);
  await there.page.getByText("Reply 2 to Apples").waitFor();
  await there.page.locator("li.turn.system").getByText("Be brief.").waitFor();
  assert.equal(await there.page.getByRole("button", { name: "Pin your message" }).getAttribute("aria-pressed"), "true");
  await answers(there.page).first().getByRole("button", { name: "Earlier branch" }).click();
  await there.page.getByText("Reply 1 to Apples").waitFor();
  await there.page.getByLabel("File to import").setInputFiles(lines);
  await until("two conversations", async () => (await there.page.locator(".shelf li").count()) === 2);
  const wrong = join(folder, "wrong.jsonl");
  await writeFile(wrong, '{"messages": [{"role": "user", "content": "a"}]}\n{"messages": [{"role": "owner", "content": "a"}]}\n');
  await there.page.getByLabel("File to import").setInputFiles(wrong);
  await there.page.getByText('Not imported. line 2: messages[0].role is "owner"').waitFor();
  assert.equal(await there.page.locator(".shelf li").count(), 2);
  assert.deepEqual(there.complaints, []);
  await there.context.close();
});

flow("says each error in one line and tries again", async ({ page, server }) => {
  const failure = page.locator("li.turn .failure");
  for (const [fault, line] of [
    [429, "The server is busy: its queue is full. Try again in 2 s."],
    [503, "The server is draining. Try again in a moment."],
    [500, "The server failed (500): the server failed at this request"],
    [400, "temperature: must be at most 2"],
  ]) {
    server.faults = [fault];
    await talk(page, `Cause ${fault}`);
    assert.equal(await failure.last().locator("span").textContent(), line);
    await failure.last().getByRole("button", { name: "Retry" }).click();
    await settled(page);
    await until("no error", async () => (await failure.count()) === 0);
  }
  assert.equal(await answers(page).count(), 4);
}, { allowed: NETWORK });

flow("keeps what came before a break, and tries again beside it", async ({ page, server }) => {
  for (const [fault, line] of [
    ["drop", "The connection broke before the answer was finished."],
    ["event", "The answer broke off: the logits were not finite"],
  ]) {
    server.faults = [fault];
    await talk(page, `Cause ${fault}`);
    const answer = answers(page).last();
    assert.equal(await answer.locator(".failure span").textContent(), line);
    assert.match(await answer.locator(".words").textContent(), /^This is a/);
    await answer.getByRole("button", { name: "Retry" }).click();
    await settled(page);
    await answers(page).last().getByRole("img", { name: "Branch 2 of 2" }).waitFor();
    assert.equal(await page.locator(".failure").count(), 0);
  }
}, { allowed: NETWORK });

flow("says that the server is gone, and goes on when it is back", async ({ page, server }) => {
  await talk(page, "Hello");
  const { port } = server;
  await server.stop();
  await talk(page, "Still there?");
  await page.locator("li.turn .failure").getByText("The server cannot be reached.").waitFor();
  await server.start(port);
  await page.locator("li.turn .failure").getByRole("button", { name: "Retry" }).click();
  await settled(page);
  assert.equal(await page.locator(".failure").count(), 0);
  assert.equal(await answers(page).count(), 2);
}, { allowed: NETWORK });

flow("asks for a key where the server does, until the tab is closed", async ({ browser, server }) => {
  server.key = "s3cret";
  const { page, context } = await visit(browser, server.url);
  await page.getByText("This server asks for an API key.").waitFor();
  await page.getByLabel(/^API key/).fill("wrong");
  await page.getByRole("button", { name: "Use it" }).click();
  await page.locator(".key-form").getByText("this server asks for an API key").waitFor();
  await page.getByLabel(/^API key/).fill("s3cret");
  await page.getByRole("button", { name: "Use it" }).click();
  await page.getByText("smollm2-135m-instruct").waitFor();
  await talk(page, "Hello");
  assert.equal(await page.evaluate(() => sessionStorage.getItem("sash-api-key")), "s3cret");
  assert.equal(await page.evaluate(() => JSON.stringify(localStorage).includes("s3cret")), false);
  await page.reload();
  await page.getByText("smollm2-135m-instruct").first().waitFor();
  await page.getByRole("button", { name: "Forget the API key" }).click();
  await page.getByText("This server asks for an API key.").waitFor();
  await context.close();
}, { allowed: NETWORK, own: true });

flow("chooses among several models", async ({ browser, server }) => {
  server.models = ["first", "second"];
  const { page, context } = await visit(browser, server.url);
  await page.getByLabel("Model").selectOption("second");
  await talk(page, "Hello");
  assert.equal(server.asked.chat[0].model, "second");
  await context.close();
}, { own: true });

flow("is used with the keyboard alone", async ({ page, server }) => {
  await fromTheTop(page);
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent.trim()), "Skip to the message box");
  await page.keyboard.press("Enter");
  await page.keyboard.type("line one");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("line two");
  assert.equal(server.asked.chat.length, 0);
  await page.keyboard.press("Enter");
  await settled(page);
  assert.equal(server.asked.chat[0].messages[0].content, "line one\nline two");
  await fromTheTop(page);
  const reached = new Set();
  for (let step = 0; step < 60; step += 1) {
    await page.keyboard.press("Tab");
    const found = await page.evaluate(() => {
      const at = document.activeElement;
      if (at === document.body) return {};
      const style = getComputedStyle(at);
      const ring = style.outlineStyle !== "none" || at.id === "message-box";
      return { name: at.getAttribute("aria-label") ?? at.id ?? "", text: at.textContent.trim().slice(0, 30), ring };
    });
    if (found.text || found.name) assert.ok(found.ring, `no ring to see around ${JSON.stringify(found)}`);
    reached.add(found.name || found.text);
  }
  for (const name of ["message-box", "Answer again", "Edit and ask again", "Pin your message", "Copy text", "set-temperature", "system-prompt", "New conversation", "Theme: as the system. Change"]) {
    assert.ok([...reached].some((one) => one.includes(name)), `${name} cannot be reached: ${[...reached]}`);
  }
});

flow("does not send while an input method composes", async ({ page, server }) => {
  await box(page).fill("にほん");
  await box(page).dispatchEvent("keydown", { key: "Enter", isComposing: true, bubbles: true, cancelable: true });
  assert.equal(await box(page).inputValue(), "にほん");
  assert.equal(server.asked.chat.length, 0);
});

flow("follows the system's theme, and the switch before it", async ({ browser, server }) => {
  const ground = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const { page, context } = await visit(browser, server.url, { colorScheme: "dark" });
  const dark = await ground(page);
  await page.getByRole("button", { name: /^Theme/ }).click();
  const light = await ground(page);
  assert.notEqual(dark, light);
  await page.reload();
  await page.getByRole("button", { name: "Theme: light. Change" }).waitFor();
  assert.equal(await ground(page), light);
  await page.getByRole("button", { name: /^Theme/ }).click();
  assert.equal(await ground(page), dark);
  await context.close();
}, { own: true });

flow("fits a phone of 360 pixels", async ({ browser, server }) => {
  const { page, context, complaints } = await visit(browser, server.url, { viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true });
  server.reply = `Some words and a line of code:\n\n\`\`\`python\n${"x = ".repeat(40)}1\n\`\`\`\n\n${"a".repeat(120)}`;
  await talk(page, "Hello");
  const fits = () => page.evaluate(() => document.documentElement.scrollWidth <= 360 && document.querySelector(".lane").scrollWidth <= document.querySelector(".lane").clientWidth);
  assert.ok(await fits());
  for (const [opener, shutter, inside] of [
    ["Conversations", "Close the list", "New conversation"],
    ["Window and settings", "Close window and settings", "Leave all to the model"],
  ]) {
    await page.getByRole("button", { name: opener, exact: true }).click();
    await until("the focus inside", () => page.evaluate((label) => document.activeElement.getAttribute("aria-label") === label, shutter));
    assert.ok(await page.getByRole("button", { name: inside }).isVisible());
    assert.ok(await fits());
    await page.keyboard.press("Escape");
    await until("the focus back", () => page.evaluate((label) => document.activeElement.getAttribute("aria-label") === label, opener));
  }
  const small = await page.locator("button:visible").evaluateAll((all) => all.filter((one) => !one.closest("[inert]") && one.getBoundingClientRect().height < 24).map((one) => one.outerHTML.slice(0, 90)));
  assert.deepEqual(small, []);
  assert.deepEqual(complaints, []);
  await context.close();
}, { own: true });

for (const colorScheme of ["light", "dark"]) {
  flow(`has no serious fault that axe knows, ${colorScheme}`, async ({ browser, server }) => {
    for (const viewport of [{ width: 1280, height: 820 }, { width: 360, height: 740 }]) {
      const { page, context } = await visit(browser, server.url, { colorScheme, viewport });
      const phone = viewport.width < 400;
      if (!phone) assert.deepEqual(await faults(page), [], "empty");
      server.reply = "A [link](https://example.invalid), `code`, and\n\n```python\n# note\ndef f(x):\n    return \"a\" + 1\n```\n\n> quoted\n\n" + LONG + LONG;
      for (const text of ["One", "Two", "Three"]) await talk(page, text);
      await page.getByRole("button", { name: "Pin your message" }).first().click();
      await page.getByText("3 tokens, pinned").waitFor();
      server.faults = [429];
      await talk(page, "Busy?");
      await box(page).fill("a draft");
      await page.locator("li.turn.user").nth(1).getByRole("button", { name: "Edit and ask again" }).click();
      assert.ok((await page.locator("li.turn.out").count()) > 0);
      assert.deepEqual(await faults(page), [], "a conversation with an error, while editing");
      if (phone) {
        await page.getByRole("button", { name: "Window and settings" }).click();
        assert.deepEqual(await faults(page), [], "the window's drawer");
        await page.keyboard.press("Escape");
        await page.getByRole("button", { name: "Conversations" }).click();
        assert.deepEqual(await faults(page), [], "the list's drawer");
      }
      await context.close();
    }
  }, { allowed: NETWORK, own: true });
}

flow("needs nothing but its server", async ({ browser, server }) => {
  const context = await browser.newContext({ viewport: { width: 1280, height: 820 } });
  await context.route((url) => url.origin !== new URL(server.url).origin, (route) => route.abort());
  const { page, foreign, complaints } = await visit(browser, server.url, { context });
  await talk(page, "Hello");
  assert.deepEqual(foreign, []);
  assert.deepEqual(complaints, []);
  await context.close();
}, { own: true });

async function run(name, { run: body, options }, browser) {
  const server = await new FakeServer().start();
  const folder = await mkdtemp(join(tmpdir(), "sash-flow-"));
  const began = performance.now();
  let visited;
  try {
    visited = options.own ? null : await visit(browser, server.url);
    await body({ ...visited, browser, server, folder });
    const left = (visited?.complaints ?? []).filter((line) => !options.allowed?.test(line));
    assert.deepEqual(left, [], "the page complained");
    return { name, ok: true, seconds: Math.round((performance.now() - began) / 100) / 10 };
  } catch (error) {
    return { name, ok: false, error: String(error.stack ?? error).slice(0, 3000) };
  } finally {
    await visited?.context.close();
    await server.stop().catch(() => undefined);
    await rm(folder, { recursive: true, force: true });
  }
}

const wanted = process.argv.slice(2);
const { browser, end } = await launch();
let failed = 0;
for (const [name, one] of flows) {
  if (wanted.length > 0 && !wanted.some((part) => name.includes(part))) continue;
  const result = await run(name, one, browser);
  failed += result.ok ? 0 : 1;
  console.log(JSON.stringify(result));
}
await end();
process.exitCode = failed ? 1 : 0;

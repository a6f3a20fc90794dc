// Pictures of the page, to be looked at: `node shots.mjs FOLDER [URL]`. Without an address, of the stand-in server.

import { join } from "node:path";
import { box, launch, talk, visit } from "./browser.mjs";
import { FakeServer } from "./fake_server.mjs";

const folder = process.argv[2] ?? ".";
const server = process.argv[3] ? null : await new FakeServer().start();
const url = process.argv[3] ?? server.url;
const { browser, end } = await launch();

const TALK = [
  ["Who wrote *Emma*, and when did it come out?", "*Emma* is by **Jane Austen**. It came out in December 1815, in three volumes, with the title page dated 1816."],
  ["What is a sash window?", "A window made of one or more movable panels, the *sashes*, which slide in a frame:\n\n- the **upper** sash stands outside,\n- the **lower** one slides behind it,\n- cords and weights in the frame balance both."],
  ["Write me a function that says which positions a window shows.", "Counting the token itself:\n\n```python\ndef visible(position: int, window: int) -> range:\n    \"\"\"Positions that a token sees.\"\"\"\n    return range(max(0, position - window + 1), position + 1)\n```\n\nSo `visible(5, 3)` is 3, 4, 5."],
  ["And how far back does a deep stack of layers reach?", "Each layer looks `W - 1` tokens further back, so that `L` layers reach `L * (W - 1)` tokens. What lies beyond is out of reach for good."],
];

async function conversation(page) {
  for (const [question, answer] of TALK) {
    if (server) server.reply = answer;
    await talk(page, question);
  }
}

for (const [name, options] of [
  ["desktop-light", { colorScheme: "light" }],
  ["desktop-dark", { colorScheme: "dark" }],
  ["phone-light", { colorScheme: "light", viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true }],
  ["phone-dark", { colorScheme: "dark", viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true }],
]) {
  const { page, context } = await visit(browser, url, options);
  const phone = name.startsWith("phone");
  const shoot = (what) => page.screenshot({ path: join(folder, `${name}-${what}.png`) });
  await shoot("empty");
  if (phone) await page.getByRole("button", { name: "Window and settings" }).click();
  await page.getByRole("textbox", { name: "System prompt" }).fill("You are a patient teacher. Answer in a few plain words.");
  if (phone) await page.getByRole("button", { name: "Close window and settings" }).click();
  await conversation(page);
  await page.getByRole("button", { name: "Pin the system prompt" }).click();
  await box(page).fill("Thank you. And the pins?");
  await page.waitForTimeout(900);
  await shoot("talk");
  await page.locator(".lane").evaluate((lane) => (lane.scrollTop = 0));
  await page.waitForTimeout(200);
  await shoot("top");
  if (phone) {
    await page.getByRole("button", { name: "Window and settings" }).click();
    await page.waitForTimeout(300);
    await shoot("window");
    await page.keyboard.press("Escape");
    await page.getByRole("button", { name: "Conversations" }).click();
    await page.waitForTimeout(300);
    await shoot("list");
  }
  await context.close();
}
await end();
await server?.stop();

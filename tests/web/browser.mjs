// What every flow of the page needs: Debian's Chromium, a page whose every complaint is kept, and small actions on it.

import { createRequire } from "node:module";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import assert from "node:assert/strict";

const require = createRequire(new URL("../../web/package.json", import.meta.url));
const { chromium } = require("playwright-core");
export const AXE = require.resolve("axe-core/axe.min.js");

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

export async function launch() {
  const profile = await mkdtemp(join(tmpdir(), "sash-page-"));
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: [...FLAGS, `--crash-dumps-dir=${profile}`],
  });
  return { browser, end: async () => { await browser.close(); await rm(profile, { recursive: true, force: true }); } };
}

/** A page in a context of its own, at the server's address, with everything that it complains about. */
export async function visit(browser, url, options = {}) {
  const context = options.context ?? (await browser.newContext({ viewport: { width: 1280, height: 820 }, reducedMotion: "reduce", ...options }));
  context.setDefaultTimeout(60_000);
  await context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: new URL(url).origin });
  const page = await context.newPage();
  const complaints = [];
  const foreign = [];
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) complaints.push(message.text()); });
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("request", (request) => {
    const { protocol, origin } = new URL(request.url());
    if (protocol !== "blob:" && origin !== new URL(url).origin) foreign.push(request.url());
  });
  await page.goto(url);
  await page.getByLabel("Message", { exact: true }).waitFor();
  return { page, context, complaints, foreign };
}

export const box = (page) => page.getByLabel("Message", { exact: true });
export const turns = (page) => page.locator("li.turn article");
export const answers = (page) => page.locator("li.turn.assistant");

export const said = (page) => page.locator(".talk");

/** Puts the focus before everything that can have it. */
export const fromTheTop = (page) =>
  page.evaluate(() => {
    document.body.tabIndex = -1;
    document.body.focus();
    document.body.removeAttribute("tabindex");
  });

export async function say(page, text) {
  const before = await answers(page).count();
  await box(page).fill(text);
  await box(page).press("Enter");
  return before;
}

/** Says it and waits for the whole answer. */
export async function talk(page, text) {
  await say(page, text);
  await settled(page);
}

export async function settled(page) {
  await page.getByRole("button", { name: "Stop the answer" }).waitFor({ state: "detached" });
}

export async function until(what, check, ms = 60_000) {
  const end = Date.now() + ms;
  let last;
  while (Date.now() < end) {
    last = await check();
    if (last) return last;
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  assert.fail(`waited in vain: ${what}`);
}

/** Serious and critical faults that axe finds. */
export async function faults(page) {
  // The page's policy forbids injected scripts, so axe comes in through the debugger.
  const source = await (await import("node:fs/promises")).readFile(AXE, "utf8");
  await page.evaluate(source);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  return violations
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .map(({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.target.join(" ")} ${node.any[0]?.message ?? ""}`).slice(0, 4).join(" | ")}`);
}

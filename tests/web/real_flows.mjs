// The page against a real server: `node real_flows.mjs URL [KEY [NAME]]`. One line of JSON for each flow, as flows.mjs writes them.

import assert from "node:assert/strict";
import { answers, box, faults, launch, settled, talk, until, visit } from "./browser.mjs";

const [url, key, wanted = ""] = process.argv.slice(2);
const { browser, end } = await launch();
let failed = 0;

async function flow(name, run, options = {}) {
  if (!name.includes(wanted)) return;
  let visited;
  try {
    visited = await visit(browser, url, { ...(key && { httpCredentials: { username: "reader", password: key } }), ...options });
    await visited.page.getByLabel("Most tokens").fill("24");
    await visited.page.getByLabel("Temperature", { exact: true }).fill("0"); // a drawn answer may be empty
    await run(visited);
    assert.deepEqual(visited.complaints.filter((line) => !options.allowed?.test(line)), [], "the page complained");
    assert.deepEqual(visited.foreign, []);
    console.log(JSON.stringify({ name, ok: true }));
  } catch (error) {
    failed += 1;
    console.log(JSON.stringify({ name, ok: false, error: String(error.stack ?? error).slice(0, 3000) }));
  } finally {
    await visited?.context.close();
  }
}

/** The counts that the legend shows, and the size of the whole. */
async function seen(page) {
  const legend = await page.locator(".legend dt").evaluateAll((all) => all.map((term) => term.textContent.trim()));
  const counts = Object.fromEntries(legend.map((line) => [line.replace(/[\d,\s]+$/, ""), Number(line.match(/[\d,]+$/)?.[0].replaceAll(",", ""))]));
  const whole = Number((await page.locator(".band .of").textContent()).replace(/\D/g, ""));
  return { counts, whole };
}

await flow("answers, and says what it sees and reuses", async ({ page }) => {
  await talk(page, "The first question is this one.");
  await page.locator(".band").waitFor();
  const figures = answers(page).first().locator(".figures");
  assert.match(await figures.textContent(), /\d+ tokens.*first token/);
  await talk(page, "And here is a second question.");
  assert.match(await answers(page).nth(1).locator(".figures").textContent(), /reused/);
  await until("the window of the whole", async () => (await page.locator(".cell").count()) === 4);
  const { counts, whole } = await seen(page);
  assert.ok(whole > 60);
  const known = Object.values(counts).reduce((sum, n) => sum + n, 0);
  assert.ok(known <= whole && known > whole - 40, `${known} of ${whole} tokens belong to messages`);
  assert.ok(counts["In direct sight"] <= 24);
  assert.ok(counts["Out of reach"] > 0);
  await page.getByText(/the window begins/).waitFor();
  await page.getByRole("img", { name: /24 of 24 slots of the ring used; gone round/ }).waitFor();
  assert.deepEqual(await faults(page), []);
});

await flow("pins what slid away, and sends it pinned", async ({ page }) => {
  await talk(page, "Keep me");
  await talk(page, "Another question, longer than the first one was.");
  const first = page.locator("li.turn.user").first();
  await first.getByText(/out of reach|through deeper layers/).waitFor();
  await first.getByRole("button", { name: "Pin your message" }).click();
  await first.getByText(/tokens, pinned/).waitFor();
  const [request] = await Promise.all([
    page.waitForRequest((one) => one.url().endsWith("/v1/chat/completions")),
    talk(page, "More"),
  ]);
  assert.deepEqual(request.postDataJSON().window, { pins: { messages: [0] } });
  assert.deepEqual(await page.locator(".failure span").allTextContents(), []);
});

await flow("stops, edits and asks again", async ({ page }) => {
  await page.getByLabel("Most tokens").fill("20000");
  await page.getByLabel("Temperature", { exact: true }).fill("0");
  await box(page).fill("Write without end");
  await box(page).press("Enter");
  await page.getByRole("button", { name: "Stop the answer" }).waitFor();
  await until("some of the answer", async () => (await answers(page).locator(".words").count()) === 1);
  await page.keyboard.press("Escape");
  await settled(page);
  await page.getByText("stopped", { exact: true }).waitFor();
  await page.getByLabel("Most tokens").fill("8");
  await page.getByRole("button", { name: "Answer again" }).click();
  await settled(page);
  await answers(page).getByRole("img", { name: "Branch 2 of 2" }).waitFor();
  await page.getByRole("button", { name: "Edit and ask again" }).click();
  await page.getByLabel("Your message, anew").fill("Write little");
  await page.getByLabel("Your message, anew").press("Enter");
  await settled(page);
  await page.locator("li.turn.user").getByRole("img", { name: "Branch 2 of 2" }).waitFor();
  assert.deepEqual(await page.locator(".failure span").allTextContents(), []);
});

await flow("says what the server refuses", async ({ page }) => {
  await page.getByLabel("Window, in tokens").fill("100000");
  await talk(page, "Hello");
  await page.locator("li.turn .failure").getByText(/window\.size can only be made smaller/).waitFor();
  await page.getByLabel("Window, in tokens").fill("12");
  await page.getByLabel("Window, in tokens").press("Enter");
  await page.locator("li.turn .failure").getByRole("button", { name: "Retry" }).click();
  await settled(page);
  assert.deepEqual(await page.locator(".failure span").allTextContents(), []);
  await page.getByRole("img", { name: /of 12 slots/ }).waitFor();
}, { allowed: /^Failed to load resource/ });

await end();
process.exitCode = failed ? 1 : 0;

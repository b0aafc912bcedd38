// One page of headless Chromium, driven by lines of JSON on stdin: {"cmd", …} in, {"ok", "value" or "error"} out. `COMMANDS` is the list.
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [executablePath] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath,
  // Without these Chromium calls home at every start.
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const page = await browser.newPage({ viewport: { width: 1200, height: 760 } });
page.setDefaultTimeout(15_000);

const COMMANDS = {
  open: ({ url }) => page.goto(url).then(() => null),
  click: ({ selector }) => page.locator(selector).first().click().then(() => null),
  texts: ({ selector }) => page.locator(selector).allInnerTexts(),
  picture: ({ path }) => page.screenshot({ path, animations: "disabled" }).then(() => null),
  html: () => page.content(),
};

for await (const line of createInterface({ input: process.stdin })) {
  const { cmd, ...fields } = JSON.parse(line);
  let answer;
  try {
    answer = { ok: true, value: await COMMANDS[cmd](fields) };
  } catch (error) {
    answer = { ok: false, error: error.message };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();

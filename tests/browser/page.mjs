// Drives the operations page in a real browser: a command as JSON on each line of standard input, its answer on a line
// of the output. Usage: node page.mjs CHROMIUM PROFILE ADDRESS AXE. Every wait ends by itself, and so does the process.
import { chromium } from 'playwright-core';
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';

const [, , program, profile, address, axe] = process.argv;
const PATIENCE = 180_000; // ms for one condition; machines are slow when others work on them too
const LIFE = 1_800_000; // ms, should nobody close us

const context = await chromium.launchPersistentContext(profile, {
  executablePath: program,
  headless: true,
  viewport: { width: 1280, height: 900 },
  locale: 'en-GB',
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync'],
});
setTimeout(() => leave(1), LIFE).unref();
context.setDefaultTimeout(PATIENCE);
const page = context.pages()[0] ?? (await context.newPage());
let troubles = [];
page.on('pageerror', error => troubles.push(String(error)));
page.on('console', line => {
  if (['error', 'warning'].includes(line.type())) troubles.push(line.text());
});
page.on('dialog', dialog => { troubles.push(`a dialog opened: ${dialog.message()}`); dialog.dismiss(); });
page.on('request', asked => asked.url().startsWith(address) || troubles.push(`asked elsewhere: ${asked.url()}`));
page.on('response', answer => answer.status() >= 400 && troubles.push(`${answer.status()} ${answer.url()}`));
// A refused script or style is no error of the console in every browser: it is asked for by name.
await context.addInitScript(() => {
  document.addEventListener('securitypolicyviolation', found => console.error(`CSP ${found.violatedDirective}`));
});

async function leave(code) {
  await context.close().catch(() => {});
  process.exit(code);
}

/** Ask something of the page, once more where it went to another one meanwhile. */
async function settled(ask) {
  for (let left = 20; ; left--) {
    try {
      return await page.evaluate(ask);
    } catch (error) {
      if (!left || !/context was destroyed/.test(error.message)) throw error;
      await page.waitForLoadState('load');
    }
  }
}

const commands = {
  /** Open a page, and wait until its pictures are there. */
  async open({ path }) {
    troubles = [];
    await page.goto(`${address}${path}`);
    await page.waitForLoadState('load');
    return page.title();
  },
  async text({ selector }) {
    return page.locator(selector).first().innerText();
  },
  async count({ selector }) {
    return page.locator(selector).count();
  },
  async click({ selector }) {
    await page.locator(selector).first().click();
    await page.waitForLoadState('load');
    return page.url().slice(address.length);
  },
  async press({ key }) {
    await page.keyboard.press(key);
    await page.waitForTimeout(50);
    await page.waitForLoadState('load');
    return commands.focused();
  },
  /** What has the focus: its words and address; and whether a ring around it is seen. */
  async focused() {
    return settled(() => {
      const it = document.activeElement;
      const { outlineStyle, outlineWidth } = getComputedStyle(it);
      const rect = it.getBoundingClientRect();
      return {
        tag: it.tagName, id: it.id, words: (it.innerText ?? '').trim(), href: it.getAttribute('href') ?? '',
        ring: outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2,
        seen: rect.width > 0 && rect.height > 0 && rect.right > 0,
        address: location.pathname + location.search + location.hash,
      };
    });
  },
  /** Focus something, as by the mouse; then wait until words appear somewhere by themselves. */
  async focus({ selector }) {
    await page.locator(selector).first().focus();
    return commands.focused();
  },
  async wait({ selector, words }) {
    await page.locator(selector).filter({ hasText: words }).first().waitFor();
    return true;
  },
  async size({ width, height }) {
    await page.setViewportSize({ width, height });
    return true;
  },
  /** How far the page is wider than the window, and the elements that stick out. */
  async overflow() {
    return page.evaluate(() => ({
      by: document.documentElement.scrollWidth - window.innerWidth,
      which: [...document.querySelectorAll('body *')]
        .filter(it => it.getBoundingClientRect().right > window.innerWidth + 1 && getComputedStyle(it).position !== 'absolute')
        .map(it => it.outerHTML.slice(0, 120)).slice(0, 5),
    }));
  },
  /** Each picture of the page: its natural size, 0 where it is none, and the size at which it is shown. */
  async pictures() {
    await page.evaluate(() => document.querySelectorAll('img').forEach(it => { it.loading = 'eager'; }));
    await page.waitForFunction(() => [...document.images].every(it => it.complete));
    return page.evaluate(() => [...document.images].map(it => ({
      alt: it.alt, width: it.naturalWidth, height: it.naturalHeight, shown: [it.width, it.height],
    })));
  },
  /** What axe-core has to say, of what is serious or critical. */
  async axe() {
    await page.evaluate(readFileSync(axe, 'utf-8')); // by the debugger, past the page's own policy
    return page.evaluate(async () => {
      const found = await window.axe.run(document, { resultTypes: ['violations'] });
      return found.violations.filter(it => ['serious', 'critical'].includes(it.impact))
        .map(it => `${it.id}: ${it.nodes.map(node => node.html).slice(0, 3).join(' | ')}`);
    });
  },
  async value({ selector, value }) {
    const field = page.locator(selector).first();
    if (value !== undefined) await field.fill(value);
    return field.inputValue();
  },
  async scroll({ to }) {
    await page.evaluate(y => window.scrollTo(0, y), to);
    return page.evaluate(() => window.scrollY);
  },
  async picture({ file, full }) {
    await page.screenshot({ path: file, fullPage: Boolean(full) });
    return file;
  },
  async scheme({ dark }) {
    await page.emulateMedia({ colorScheme: dark ? 'dark' : 'light' });
    return true;
  },
  async troubles() {
    return troubles;
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...rest } = JSON.parse(line);
  let answer;
  try {
    answer = { found: (await commands[command](rest)) ?? null };
  } catch (error) {
    answer = { error: `${command}: ${error.message}`, troubles };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await leave(0);

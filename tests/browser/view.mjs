// Drives OHIF in a real browser: a command as JSON on each line of standard input, its answer on a line of the output.
// Usage: node view.mjs CHROMIUM PROFILE ADDRESS. Every wait ends by itself, and so does the process.
import { chromium } from 'playwright-core';
import { createInterface } from 'node:readline';

const [, , program, profile, address] = process.argv;
const PATIENCE = 180_000; // ms for one condition; machines are slow when others work on them too
const LONGEST = 180_000; // ms for one command, whatever it waits for
const LIFE = 1_800_000; // ms, should nobody close us; a real model may work on a study in between
const SOFTWARE = ['--disable-gpu', '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader'];
const QUIET = ['--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update',
  '--disable-sync'];

const context = await chromium.launchPersistentContext(profile, {
  executablePath: program,
  headless: true,
  viewport: { width: 1400, height: 900 },
  serviceWorkers: 'block',
  args: ['--no-sandbox', ...SOFTWARE, ...QUIET],
});
setTimeout(() => leave(1), LIFE).unref();
context.setDefaultTimeout(PATIENCE);
// OHIF asks for files of other sites too; here nothing is reachable, and nothing is to be.
await context.route(url => url.protocol.startsWith('http') && url.origin !== address, route => route.abort());
await context.addInitScript(inThePage);
const page = context.pages()[0] ?? (await context.newPage());
let greeted = false;
let troubles = [];
page.on('pageerror', error => troubles.push(String(error)));
// What OHIF shows as "Something went wrong" it logs as no error.
page.on('console', line => (line.type() === 'error' || /Error Boundary/.test(line.text())) && troubles.push(line.text()));

/** What is asked in the page, of OHIF's own services, over and over. */
function inThePage() {
  const all = () => window.services.displaySetService.getActiveDisplaySets();
  const pane = () => window.services.viewportGridService.getState();
  window.seen = {
    all,
    one: series => all().find(set => set.SeriesInstanceUID === series),
    shows: set => {
      const { viewports, activeViewportId } = pane();
      return viewports.get(activeViewportId).displaySetInstanceUIDs.includes(set);
    },
    viewport: () => {
      const { viewports, activeViewportId } = pane();
      return window.services.cornerstoneViewportService.getCornerstoneViewport(activeViewportId) ?? null;
    },
    /** What OHIF has read of a series; null, as long as it reads it: then only it knows whether it will ask. */
    content: series => {
      const set = window.seen.one(series);
      if (!['SEG', 'SR'].includes(set.Modality)) return {};
      if (!set.isLoaded) return null;
      if (set.Modality === 'SEG') return { asks: true, segments: true };
      return { asks: set.isRehydratable, measurements: set.measurements.length };
    },
    segmented: () => {
      const { segmentationService, viewportGridService } = window.services;
      return segmentationService.getSegmentationRepresentations(viewportGridService.getActiveViewportId()).length > 0;
    },
    /** What is drawn over the image, if anything is written there too. */
    drawn: () => {
      const layer = document.querySelector('svg.svg-layer');
      return layer?.querySelector('text') ? layer.innerHTML : '';
    },
    rendered: () => {
      try {
        const viewport = window.seen.viewport();
        return Boolean(viewport?.getCurrentImageId() && viewport.getImageData());
      } catch {
        return false; // not even the services are there
      }
    },
  };
}

async function leave(code) {
  await context.close().catch(() => {});
  process.exit(code);
}

function tooLong() {
  return new Promise((_, refuse) => setTimeout(() => refuse(new Error('it took too long')), LONGEST).unref());
}

const commands = {
  /** Open a study; its display sets, once the first image is there. */
  async open({ study }) {
    troubles = [];
    await page.goto(`${address}/viewer?StudyInstanceUIDs=${study}`);
    await page.waitForFunction(() => window.seen.rendered());
    if (!greeted) { // once for each profile, the tour a moment after the image
      await page.getByText('Skip all', { exact: true }).click();
      await page.getByText('Confirm and hide', { exact: true }).click();
      greeted = true;
    }
    return page.evaluate(() => window.seen.all().map(set => ({
      series: set.SeriesInstanceUID,
      modality: set.Modality,
      description: set.SeriesDescription ?? '',
      unsupported: Boolean(set.unsupported),
      images: set.numImageFrames ?? 0,
      said: (set.messages?.messages ?? []).map(message => message.id),
    })));
  },

  /** Double-click on a series, and say yes to what OHIF asks; the question. */
  async show({ series }) {
    // What an extension shows is listed once that is loaded, perhaps behind the first image.
    const listed = page.waitForFunction(uid => window.seen.one(uid)?.displaySetInstanceUID, series);
    const set = await listed.then(found => found.jsonValue(), () => null);
    if (!set) throw new Error(`OHIF lists no series ${series}`);
    const shown = async () => {
      await page.locator(`[id="thumbnail-${set}"]`).dblclick();
      return page.waitForFunction(uid => window.seen.shows(uid), set, { timeout: PATIENCE / 4 }).catch(() => null);
    };
    // A list that is just drawn anew swallows the click.
    if (!((await shown()) ?? (await shown()) ?? (await shown()))) throw new Error(`OHIF does not show series ${series}`);
    const known = await page.waitForFunction(uid => window.seen.content(uid), series);
    const { asks, segments, measurements } = await known.jsonValue();
    let question = '';
    if (asks) {
      const yes = page.getByText('Yes', { exact: true });
      await yes.waitFor();
      question = await yes.locator('xpath=../..').innerText();
      await yes.click();
      await yes.waitFor({ state: 'hidden' });
    }
    if (segments) await page.waitForFunction(() => window.seen.segmented());
    if (measurements) await page.waitForFunction(() => window.seen.drawn());
    if (measurements !== 0) await page.waitForFunction(() => window.seen.rendered()); // else the pane stays empty
    return question;
  },

  /** Scroll to an image of the series that is shown. */
  async go({ image }) {
    await page.evaluate(async uid => {
      const viewport = window.seen.viewport();
      const index = viewport.getImageIds().findIndex(id => id.includes(`/instances/${uid}/`));
      if (index < 0) throw new Error(`no image ${uid} in the viewport`);
      await viewport.setImageIdIndex(index);
    }, image);
    await page.waitForFunction(uid => window.seen.viewport().getCurrentImageId().includes(`/instances/${uid}/`), image);
  },

  /** Step to the report's next measurement, as its arrow does. */
  async next() {
    const before = await page.evaluate(() => window.seen.drawn());
    await page.locator('[data-cy="viewport-action-arrows-right"]').click();
    await page.waitForFunction(was => ![was, ''].includes(window.seen.drawn()), before);
  },

  /** Open a panel of the right side, and read it. */
  async panel({ name }) {
    await page.locator(`[data-cy="${name}-btn"]`).first().click();
    const side = page.locator('[data-cy="side-panel-header-right"]').locator('xpath=../..');
    await page.waitForFunction(each => each.innerText.trim(), await side.elementHandle());
    return side.innerText();
  },

  /** A picture, once it does not change any more; what is written on it; and where points of the patient lie in it. */
  async look({ file, points }) {
    const until = Date.now() + PATIENCE;
    let [before, now] = [null, await page.screenshot()];
    while (before === null || !before.equals(now)) {
      if (Date.now() > until) throw new Error('the picture does not come to rest');
      await page.waitForTimeout(300);
      [before, now] = [now, await page.screenshot({ path: file })];
    }
    const seen = await page.evaluate(wanted => {
      const words = document.body.innerText;
      const viewport = window.seen.viewport();
      if (!viewport) return { words };
      const box = viewport.canvas.getBoundingClientRect();
      const { imageData, dimensions } = viewport.getImageData();
      const [right, low] = [dimensions[0] - 1, dimensions[1] - 1];
      const lines = document.querySelectorAll('svg.svg-layer text tspan');
      const outlines = document.querySelectorAll('svg.svg-layer polyline');
      return {
        words,
        canvas: [box.x, box.y, box.width, box.height],
        image: viewport.getCurrentImageId(),
        points: wanted.map(point => viewport.worldToCanvas(point)),
        corners: [[0, 0, 0], [right, 0, 0], [0, low, 0]].map(at => viewport.worldToCanvas(imageData.indexToWorld(at))),
        lines: [...lines].map(line => line.textContent),
        outlines: [...outlines].map(line => line.getAttribute('points').match(/-?[\d.]+/g).map(Number)),
      };
    }, points);
    return { ...seen, troubles };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...rest } = JSON.parse(line);
  let answer;
  try {
    answer = { found: (await Promise.race([commands[command](rest), tooLong()])) ?? null };
  } catch (error) {
    answer = { error: `${command}: ${error.message}`, troubles };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await leave(0);

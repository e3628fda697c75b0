// Opens one study in OHIF with headless Chromium, looks at SEG, measurement SR and readable report, and writes what
// the viewer itself says (facts.json) and shows (*.png) into a folder.
// usage: node look.cjs <playwright-core folder> <viewer url> <study uid> <output folder>
const fs = require('fs');
const path = require('path');
const [playwright, base, study, out] = process.argv.slice(2);
const { chromium } = require(playwright);
const PATIENCE = 240000;
const facts = { errors: [] };

async function open(browser, label) {
  const page = await browser.newPage({ viewport: { width: 1400, height: 900 } });
  page.setDefaultTimeout(PATIENCE);
  page.on('pageerror', error => facts.errors.push(`${label}: ${error.message}`));
  await page.addInitScript(() => localStorage.setItem('basicViewer-tour', 'true'));
  await page.addInitScript(() => { for (const k of ['basicViewerTour', 'shownTours']) localStorage.setItem(k, JSON.stringify(['basicViewerTour'])); });
  await page.goto(`${base}/viewer?StudyInstanceUIDs=${study}`, { timeout: PATIENCE });
  await page.waitForFunction(() => window.services?.displaySetService?.getActiveDisplaySets().length >= 4, null, { timeout: PATIENCE });
  await page.waitForTimeout(8000);
  const skip = page.getByText('Skip all', { exact: false });
  if (await skip.count()) await skip.first().click();
  return page;
}

async function show(page, description) {
  const name = page.getByText(description, { exact: false }).first();
  await name.scrollIntoViewIfNeeded();
  await name.dblclick();
}

async function segmentation(browser) {
  const page = await open(browser, 'seg');
  facts.displaySets = await page.evaluate(() => window.services.displaySetService.getActiveDisplaySets()
    .map(d => ({ modality: d.Modality, description: d.SeriesDescription, number: d.SeriesNumber })));
  await show(page, 'QCT SEG');
  const yes = page.locator('[data-cy="yes-hydrate-btn"]');
  await yes.waitFor({ timeout: PATIENCE });
  await yes.click();
  await page.waitForFunction(() => window.services.segmentationService.getSegmentations().length > 0, null, { timeout: PATIENCE });
  await page.waitForTimeout(15000);
  facts.segments = await page.evaluate(() => {
    const service = window.services.segmentationService;
    const segmentation = service.getSegmentations()[0];
    const viewport = window.services.viewportGridService.getState().activeViewportId;
    const counts = {};
    const count = values => { for (const v of values) if (v) counts[v] = (counts[v] || 0) + 1; };
    const data = segmentation.representationData.Labelmap;
    const groups = data.labelmaps ? Object.values(data.labelmaps) : [data];
    const seen = new Set();
    for (const group of groups) {
      for (const id of group.imageIds || []) {
        if (seen.has(id)) continue;
        seen.add(id);
        const image = window.cornerstone.cache.getImage(id);
        if (image) count(image.voxelManager ? image.voxelManager.getScalarData() : image.getPixelData());
      }
    }
    return Object.values(segmentation.segments).filter(Boolean).map(s => ({
      number: s.segmentIndex, label: s.label, voxels: counts[s.segmentIndex] || 0,
      colour: Array.from(service.getSegmentColor(viewport, segmentation.segmentationId, s.segmentIndex) || []),
    }));
  });
  const jump = await page.evaluate(() => {
    const service = window.services.segmentationService;
    const s = service.getSegmentations()[0];
    const viewport = window.services.viewportGridService.getState().activeViewportId;
    try { service.jumpToSegmentCenter(s.segmentationId, 3, viewport); return 'ok'; } catch (e) { return String(e); }
  });
  facts.jump = jump;
  await page.waitForTimeout(6000);
  await page.screenshot({ path: path.join(out, 'segmentation.png') });
  await page.close();
}

async function measurements(browser) {
  const page = await open(browser, 'sr');
  await show(page, 'QCT data');
  await page.waitForTimeout(20000);
  facts.sr = await page.evaluate(() => {
    const sr = window.services.displaySetService.getActiveDisplaySets().find(d => d.Modality === 'SR' && (d.SeriesDescription || '').startsWith('QCT data'));
    return { loaded: sr?.isLoaded, rehydratable: sr?.isRehydratable, measurements: (sr?.measurements || []).map(m => ({
      loaded: m.loaded, labels: (m.labels || []).map(l => `${l.label}: ${l.value}`), coordinates: m.coords?.length, uid: m.TrackingUniqueIdentifier })) };
  });
  facts.annotations = await page.evaluate(() => window.cornerstoneTools.annotation.state.getAllAnnotations()
    .filter(a => a.metadata?.toolName !== 'ReferenceLines').map(a => ({ tool: a.metadata.toolName, image: a.metadata.referencedImageId })));
  await page.screenshot({ path: path.join(out, 'measurements.png') });
  await page.close();
}

async function report(browser) {
  const page = await open(browser, 'report');
  await show(page, 'QCT report');
  await page.waitForFunction(() => document.body.innerText.includes('uncertainty'), null, { timeout: PATIENCE });
  await page.waitForTimeout(2000);
  facts.report = await page.evaluate(() => document.body.innerText);
  await page.screenshot({ path: path.join(out, 'report.png') });
  await page.close();
}

(async () => {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM || '/usr/bin/chromium', headless: true,
    args: ['--no-sandbox', '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--disable-background-networking'],
  });
  for (const step of [segmentation, measurements, report]) {
    try { await step(browser); } catch (error) { facts.errors.push(`${step.name}: ${error.message}`); }
    fs.writeFileSync(path.join(out, 'facts.json'), JSON.stringify(facts, null, 1));
  }
  await browser.close();
})();

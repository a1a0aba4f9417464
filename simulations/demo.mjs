/** What moves on the page of `fl-peel demo`: the budget, what stays under it, what it would recommend. */

import { named } from "../../clients/runtime/catalogue.mjs";
import { Peel } from "../../clients/runtime/peel.mjs";

const STEPS = 1000; // of the slider
const CURVE_POINTS = 48; // budgets at which a device's own recall is drawn
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
}

function formatBytes(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  const [unit, scale] = bytes >= 1e6 ? ["MB", 1e6] : ["KB", 1e3];
  const scaled = bytes / scale;
  return `${scaled >= 99.95 ? scaled.toFixed(0) : scaled.toFixed(1)} ${unit}`;
}

const formatCount = (count) => count.toLocaleString("en");

/** A device as it is under its largest budget, and what is known of its items. */
class Device {
  constructor({ name, file, seen, wanted }) {
    this.name = name;
    this.full = new Peel(bytesOf(file));
    this.bytes = bytesOf(file).length;
    this.names = named(this.full, { ...data.items, seen });
    this.seen = seen;
    this.wanted = wanted === null ? null : new Set(wanted.filter((item) => item < this.full.items).map(this.names.rowOf));
    this.numWanted = wanted === null ? 0 : wanted.length;
    const { full } = this; // what holds the header and the first block is where the slider begins
    const [block, , count] = full.ids().next().value;
    this.least = full.leastBytes + 2 * full.sliceColumns * (block % full.slices) + full.idBytes + count * full.pieceBytes;
    this.cells = cellsOf(this.full);
  }

  /** Slider steps are of equal ratios. */
  budgetAt(step) {
    return Math.round(this.least * (this.bytes / this.least) ** (step / STEPS));
  }

  stepOf(bytes) {
    if (this.bytes === this.least) return STEPS;
    return Math.max(0, Math.min(STEPS, (STEPS * Math.log(bytes / this.least)) / Math.log(this.bytes / this.least)));
  }

  under(budget) {
    const peel = new Peel(this.full.shrink(budget));
    const best = peel.top(Math.max(data.shown, data.recallAt), this.names.seenRows);
    const hits = best.rows.slice(0, data.recallAt).filter((row) => this.wanted?.has(row)).length;
    return { peel, best, hits, recall: this.numWanted ? hits / this.numWanted : null };
  }
}

/** Cell of each catalogue row, in the order in which rows come first in the list; of each block, its rows' cells. */
function cellsOf(peel) {
  const cellOf = new Map();
  const blocks = [];
  for (const [block, first, count] of peel.ids()) {
    for (let row = first; row < first + count; row += 1) if (!cellOf.has(row)) cellOf.set(row, cellOf.size);
    blocks.push({ slice: block % peel.slices, first, count });
  }
  return { cellOf, blocks };
}

const devices = data.devices.map((device) => new Device(device));
let device;
let budget = data.curve.length ? data.curve[0].bytes : null; // stays as devices change

function choose(index) {
  device = devices[index];
  device.own ??= ownCurve(device);
  budget = Math.min(Math.max(budget ?? device.budgetAt(STEPS / 2), device.least), device.bytes);
  byId("budget").value = Math.round(device.stepOf(budget));
  byId("list-note").textContent = device.seen.length
    ? `The ${formatCount(device.seen.length)} items that it has interacted with are excluded.`
    : "";
  drawChips();
  show();
}

function ownCurve(one) {
  if (!one.numWanted) return [];
  return Array.from({ length: CURVE_POINTS + 1 }, (_, i) => {
    const bytes = one.budgetAt((STEPS * i) / CURVE_POINTS);
    return { bytes, recall: one.under(bytes).recall };
  });
}

function drawChips() {
  const budgets = data.curve.map(({ bytes }) => bytes).filter((bytes) => bytes >= device.least);
  byId("chips").replaceChildren(
    ...budgets.map((bytes) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = formatBytes(bytes);
      button.dataset.bytes = bytes;
      button.addEventListener("click", () => {
        budget = Math.min(bytes, device.bytes);
        byId("budget").value = Math.round(device.stepOf(budget));
        show();
      });
      return button;
    }),
  );
}

function show() {
  const { full } = device;
  const { peel, best, hits, recall } = device.under(budget);
  const share = `${formatBytes(budget)} of ${formatBytes(device.bytes)}`;
  const rows = new Set();
  for (const [, first, count] of peel.ids()) for (let row = first; row < first + count; row += 1) rows.add(row);
  const stored = peel.idsAt + peel.numBlocks * peel.idBytes + peel.numPieces * peel.pieceBytes;
  byId("bytes").textContent = formatBytes(budget);
  byId("budget").dataset.bytes = budget;
  byId("budget").setAttribute("aria-valuetext", share);
  fill("stored", formatCount(stored), " B");
  fill("kept", formatCount(peel.numBlocks), ` of ${formatCount(full.numBlocks)}`);
  fill("items", formatCount(rows.size), ` of ${formatCount(full.items)}`);
  if (recall === null) fill("recall", "–", "");
  else fill("recall", recall.toFixed(3), ` ${hits} of ${device.numWanted}`);
  byId("told").textContent = `${share}: ${peel.numBlocks} blocks stored${recall === null ? "" : `, recall ${recall.toFixed(3)}`}.`;
  for (const chip of byId("chips").children) {
    chip.setAttribute("aria-pressed", String(Math.min(Number(chip.dataset.bytes), device.bytes) === budget));
  }
  drawBest(best);
  drawMap(peel.numBlocks, best.rows.slice(0, data.shown));
  drawCurve(recall);
}

function fill(id, text, small) {
  const more = document.createElement("small");
  more.textContent = small;
  byId(id).replaceChildren(text, more);
}

function drawBest({ rows, scores }) {
  const [low, high] = [Math.min(0, ...scores), Math.max(0, ...scores)];
  byId("best").replaceChildren(
    ...rows.slice(0, data.shown).map((row, i) => {
      const line = document.createElement("li");
      const part = (name, text = "") => {
        const span = document.createElement("span");
        span.className = name;
        span.textContent = text;
        return span;
      };
      const name = part("name", String(device.names.idOf(row)));
      if (device.wanted?.has(row)) name.append(part("hit", "✓ chosen later"));
      const bar = part("bar");
      bar.style.width = `${Math.max(1, (100 * (scores[i] - low)) / (high - low || 1))}%`;
      line.append(part("rank", String(i + 1)), name, part("score", scores[i].toFixed(3)), bar);
      return line;
    }),
  );
}

function drawMap(kept, bestRows) {
  const canvas = byId("blocks");
  const { slices, items } = device.full;
  const { cellOf, blocks } = device.cells;
  const width = canvas.clientWidth;
  const most = width > 400 ? 430 : 300; // pixels high, or a little more
  let size = 18;
  const tallOf = (wide) => (slices > 1 ? Math.max(wide, 3 * slices + 3) : wide);
  const across = (wide) => Math.max(1, Math.floor(width / wide));
  while (size > 2 && Math.ceil(cellOf.size / across(size)) * tallOf(size) > most) size -= 1;
  const [perLine, tall] = [across(size), tallOf(size)];
  const gap = size > 4 ? 1 : size > 2 ? 0.5 : 0;
  const below = slices > 1 ? 3 : gap;
  const height = Math.ceil(cellOf.size / perLine) * tall;
  const scale = globalThis.devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const [accent, faint, warm] = ["--accent", "--faint", "--warm"].map(color);
  const best = new Set(bestRows);
  const piece = (tall - below) / slices;
  blocks.forEach(({ slice, first, count }, rank) => {
    for (let row = first; row < first + count; row += 1) {
      const cell = cellOf.get(row);
      const [x, y] = [(cell % perLine) * size, Math.floor(cell / perLine) * tall];
      pen.fillStyle = rank >= kept ? faint : best.has(row) ? warm : accent;
      pen.fillRect(x, y + slice * piece, size - gap, slices > 1 ? piece - 0.5 : piece);
    }
  });
  canvas.setAttribute("aria-label", `${kept} of ${blocks.length} blocks stored`);
  const others = items - cellOf.size;
  byId("map-note").textContent = [
    `Each cell is one of the ${formatCount(cellOf.size)} items in its largest file, in the order of its user `,
    `group's block order${slices > 1 ? `; each band is one of ${slices} slices` : ""}.`,
    others ? ` The other ${formatCount(others)} items of the catalogue are not in the file.` : "",
  ].join("");
}

function element(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function ticksBetween(least, most) {
  const found = [];
  for (let decade = 10 ** Math.floor(Math.log10(least)); decade <= most; decade *= 10) {
    for (const step of [1, 2, 5]) if (step * decade >= least && step * decade <= most) found.push(step * decade);
  }
  return found;
}

function drawCurve(recall) {
  const own = device.own;
  byId("curve").hidden = !own.length && !data.curve.length;
  if (byId("curve").hidden) return;
  const points = data.curve.filter(({ bytes }) => bytes >= device.least);
  const width = byId("chart").clientWidth;
  const [height, left, right, top, bottom] = [230, 44, 14, 14, 30];
  const most = Math.max(device.bytes, ...points.map(({ bytes }) => bytes));
  const highest = 1.08 * Math.max(0.01, ...own.map((p) => p.recall), ...points.map((p) => p.high ?? p.recall));
  const x = (bytes) => left + ((width - left - right) * Math.log(bytes / device.least)) / Math.log(most / device.least || 2);
  const y = (value) => height - bottom - ((height - top - bottom) * value) / highest;
  const names = [own.length && `of ${device.name}`, points.length && "mean over devices"].filter(Boolean).join(", ");
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `Recall by budget: ${names}` });
  const steps = [1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005];
  const step = steps.find((one) => highest / one >= 3) ?? 0.002;
  for (let value = 0; value <= highest; value += step) {
    svg.append(element("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), stroke: "var(--line)" }));
    svg.append(element("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(step < 0.01 ? 3 : 2)));
  }
  let free = -Infinity;
  for (const bytes of ticksBetween(device.least, most)) {
    if (x(bytes) < free || x(bytes) > width - right - 8) continue;
    svg.append(element("text", { x: x(bytes), y: height - 8, "text-anchor": "middle" }, formatBytes(bytes).replace(".0 ", " ")));
    free = x(bytes) + 64;
  }
  svg.append(
    element("line", { x1: x(budget), x2: x(budget), y1: top, y2: height - bottom, stroke: "var(--ink)", "stroke-dasharray": "3 3" }),
  );
  const line = (list, color, more = {}) =>
    element("polyline", {
      points: list.map((p) => `${x(p.bytes)},${y(p.recall)}`).join(" "),
      fill: "none", stroke: color, "stroke-width": 2, "stroke-linejoin": "round", ...more,
    });
  for (const { bytes, low, high } of points) {
    if (low === null || high === null) continue;
    svg.append(element("line", { x1: x(bytes), x2: x(bytes), y1: y(low), y2: y(high), stroke: "var(--accent)" }));
  }
  if (points.length) svg.append(line(points, "var(--accent)"));
  for (const p of points) svg.append(element("circle", { cx: x(p.bytes), cy: y(p.recall), r: 3.5, fill: "var(--accent)" }));
  if (own.length) svg.append(line(own, "var(--warm)", { "stroke-dasharray": "6 3" }));
  if (recall !== null) {
    const dot = { cx: x(budget), cy: y(recall), r: 6, fill: "var(--warm)", stroke: "var(--paper)", "stroke-width": 2 };
    svg.append(element("circle", dot));
  }
  byId("chart").replaceChildren(svg);
  const at = `Recall@${data.recallAt}`;
  byId("curve-note").textContent = [
    points.length && `Blue, solid: mean ${at} over all devices of the run, at the same budget for every device.`,
    own.length && `Orange, dashed: ${device.name} alone, over its ${device.numWanted} held-out items (steps of one item).`,
    "Dashed line: the budget now.",
  ].filter(Boolean).join(" ");
}

byId("device").addEventListener("change", (event) => choose(Number(event.target.value)));
byId("budget").addEventListener("input", (event) => {
  budget = device.budgetAt(Number(event.target.value));
  show();
});
globalThis.addEventListener("resize", show);
globalThis.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
choose(0);

"""The pages' templates, by file name.

They are Python text and not `.html` files because a Flower app bundle takes no `.html`: under `flwr run` the
server must find them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PARTS = """\
{% macro table(view, bare=false) %}
{% if view.rows | length == 1 %}{{ sentence(view, bare) }}{% else %}
{% if view.slider %}
<div class="slider" id="budget" hidden>
<label for="share">Budget</label>
<input type="range" id="share" min="0" max="0" step="1">
<output for="share"></output>
</div>
{% endif %}
<div class="scroll"{% if view.slider %} id="budgets"{% endif %} tabindex="0" role="region"
 aria-label="{{ view.title }}">
<table class="{{ 'narrow' if view.columns | length < 4 }}{{ ' wrap' if view.best }}">
<caption{% if bare %} class="hidden"{% endif %}>{{ view.title }}</caption>
<thead><tr>
{% for column in view.columns %}
<th scope="col"{% if loop.index0 >= view.num_labels %} class="number"{% endif %}>{{ column }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in view.rows %}
{% set line = loop.index0 %}
<tr>
{%- for cell in row -%}
{% if loop.first %}<th scope="row">{{ cell }}</th>
{%- else %}<td{% if loop.index0 >= view.num_labels %} class="number
{%- if (line, loop.index0) in view.best %} best{% endif %}"{% endif %}>{{ cell }}</td>{% endif %}
{%- endfor -%}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
{% if view.note %}<p class="note">{{ view.note }}</p>{% endif %}
{% endmacro %}
{% macro sentence(view, bare=false) %}
<p class="one">{% if not bare %}<b>{{ view.title }}.</b> {% endif %}
{% for cell in view.rows[0] %}
{{ view.columns[loop.index0] }} <span class="cell">{{ cell }}</span>
{%- if not loop.last %}{{ ': ' if loop.first else ', ' }}{% else %}.{% endif %}

{% endfor %}
</p>
{% endmacro %}
{% macro key(plot) %}
<style>
{% for one in plot.series %}
figure:has(#{{ plot.name }}-on-{{ one.number }}:not(:checked)) [data-series="{{ one.number }}"] { display: none; }
{% endfor %}
</style>
<fieldset class="key">
<legend>Grey lines</legend>
{% for one in plot.series %}
<label><input type="checkbox" id="{{ plot.name }}-on-{{ one.number }}" checked> {{ one.name }}</label>
{% endfor %}
</fieldset>
{% endmacro %}
{% macro figure(plot, caption) %}
<figure>
{% if plot.narrow %}
<div class="wide">{{ plot | svg }}</div>
<div class="tall">{{ plot | narrow_svg }}</div>
{% else %}
<div class="scroll only" tabindex="0" role="region" aria-label="{{ plot.title }}">{{ plot | svg }}</div>
{% endif %}
{% if plot.series %}{{ key(plot) }}{% endif %}
<figcaption>{{ caption }}</figcaption>
</figure>
{% endmacro %}
"""

BASE = """\
{% from "parts.html" import table %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; {{ colors.light }} }
@media screen and (prefers-color-scheme: dark) {
  :root { {{ colors.dark }} }
}
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .75rem; }
.lead { font-size: 1.08rem; margin: 0 0 .6rem; max-width: 44rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(6.4rem, 1fr)); gap: .75rem 1.5rem;
  margin: 1.1rem 0 0; padding: .9rem 0; border-block: 1px solid var(--line); }
.facts dt { color: var(--muted); font-size: .8rem; }
.facts dd { margin: 0; font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; background:
  linear-gradient(to right, var(--paper) 2rem, transparent) left / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 2rem, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to right, var(--muted), transparent) left / .6rem 100% no-repeat scroll,
  linear-gradient(to left, var(--muted), transparent) right / .6rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; width: 100%;
  margin: 0 0 .25rem; }
caption { text-align: left; font-weight: 600; padding: .75rem 0 .35rem; }
th, td { padding: .32rem .7rem .32rem 0; text-align: left; font-weight: 400; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
thead th { color: var(--muted); font-size: .8rem; border-bottom: 1.5px solid var(--ink); vertical-align: bottom; }
.number { text-align: right; padding: .32rem 0 .32rem .9rem; }
thead .number { white-space: normal; }
.best { font-weight: 700; }
.narrow { width: auto; min-width: 20rem; }
.wrap .number { white-space: normal; }
.hidden { position: absolute; width: 1px; height: 1px; padding: 0; overflow: hidden; clip-path: inset(50%); }
.note, figcaption { color: var(--muted); font-size: .85rem; margin: .25rem 0 1rem; max-width: 46rem; }
figure { margin: 1rem 0 1.5rem; }
figure svg { display: block; width: 100%; height: auto; }
.only svg { min-width: 34rem; }
.tall { display: none; max-width: 26rem; }
.key { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .5rem 0; padding: .3rem .8rem .6rem; font-size: .85rem;
  border: 1px solid var(--line); border-radius: 4px; }
.key legend { color: var(--muted); padding: 0 .3rem; }
.key input { accent-color: var(--accent); margin: 0 .2rem 0 0; }
.key label { white-space: nowrap; padding: .15rem 0; }
progress { accent-color: var(--accent); width: 8rem; }
#figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: 0 1.5rem; }
#figures p { grid-row: auto; margin: .5rem 0 0; font-size: .85rem; }
#figures svg { width: 100%; height: 4rem; }
#figures polyline { fill: none; stroke: var(--blue); stroke-width: 2; vector-effect: non-scaling-stroke; }
#steps ol { font-size: .85rem; font-variant-numeric: tabular-nums; }
.why { border-left: 3px solid var(--blue); padding-left: .8rem; max-width: 44rem; }
.one { font-size: .92rem; margin: .75rem 0 .25rem; }
.cell { font-variant-numeric: tabular-nums; }
.words { position: absolute; z-index: 1; max-width: 20rem; padding: .3rem .55rem; border-radius: 4px; font-size: .82rem;
  color: var(--paper); background: var(--ink); pointer-events: none; }
.tip.at use, .tip.at path { fill: var(--accent) !important; fill-opacity: .3 !important; }
.sort { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; text-align: inherit; }
.sort:hover { text-decoration: underline; }
.sort:focus-visible, input:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
[aria-sort] .sort::after { content: " \\2191"; }
[aria-sort="descending"] .sort::after { content: " \\2193"; }
.slider { margin: 0 0 1.25rem; padding: .7rem .9rem; background: var(--code); border-radius: 4px; font-size: .9rem; }
.slider label { display: block; font-weight: 600; }
.slider input { width: 100%; margin: .5rem 0; accent-color: var(--accent); }
tr.at > * { background: var(--code); }
tr.at > :first-child { box-shadow: inset 3px 0 var(--accent); padding-left: .6rem; }
.scroll:focus-visible { outline: 2px solid var(--accent); }
pre { background: var(--code); padding: .9rem 1rem; overflow-x: auto; font-size: .82rem; line-height: 1.45;
  border-radius: 4px; }
pre, code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
details > summary { cursor: pointer; color: var(--accent); margin: .75rem 0; }
@media (max-width: 34rem) {
  main { padding: 1.25rem .9rem 3rem; }
  h1 { font-size: 1.35rem; }
  table { font-size: .8rem; }
  .wrap .number { white-space: nowrap; }
  .scroll th:first-child { position: sticky; left: 0; background: var(--paper); min-width: 5rem; max-width: 9rem;
    white-space: normal; }
  .facts { grid-template-columns: repeat(2, 1fr); }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
}
@media screen and (max-width: 40rem) {
  .wide { display: none; }
  .tall { display: block; }
}
@media print {
  .slider, .words { display: none; }
  main { max-width: none; padding: 0; }
  figure, table, tr, .why { break-inside: avoid; }
  h2, caption { break-after: avoid; }
  .scroll { overflow: visible; }
  th, td { white-space: normal; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
}
</style>
{% block head %}
{% endblock %}
</head>
<body>
<main>
<h1>{{ title }}</h1>
{% for line in lead.splitlines() %}
<p class="lead">{{ line }}</p>
{% endfor %}
{% if facts %}
<dl class="facts">
{% for name, value in facts %}
<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>
{% endfor %}
</dl>
{% endif %}
{% block content %}{% endblock %}
{% block reproduce %}
<section id="reproduce">
<h2>Reproduce</h2>
{% if command %}
<pre>{{ command }}</pre>
{% endif %}
{% if seed is not none %}
<p>Seed {{ seed }}.</p>
{% endif %}
{% if versions %}
{{ table(versions) }}
{% endif %}
{% if scenario %}
<details open>
<summary>Resolved scenario</summary>
<pre>{{ scenario }}</pre>
</details>
{% endif %}
</section>
{% endblock %}
</main>
{% block script %}
<script>{{ script }}</script>
{% endblock %}
</body>
</html>
"""

PAGE = """\
{% extends "base.html" %}
{% from "parts.html" import table, figure %}
{% block content %}
{% if demo %}
<p class="why"><a href="{{ demo }}">Interactive demo</a>: change a device's budget, and see its blocks and its list.</p>
{% endif %}
{% for section in sections %}
<section id="{{ section.id }}">
{% if section.title %}
<h2>{{ section.title }}</h2>
{% endif %}
{% for kind, part in section.parts %}
{% if kind == "Chart" %}
{{ figure(*part) }}
{% elif kind == "TableView" %}
{{ table(part, bare=part.title == section.title) }}
{% else %}
<p class="{{ 'why' if kind == 'Remark' else 'note' }}">{{ part }}</p>
{% endif %}
{% endfor %}
</section>
{% endfor %}
{% endblock %}
"""


NOTEBOOK = """\
{% from "parts.html" import table %}
<div>
<p>{{ title }}</p>
{% if budgets %}
{{ table(budgets) }}
{% endif %}
{% if image %}
<img style="max-width: 46rem; background: #fff" alt="{{ alt }}" src="data:image/svg+xml;base64,{{ image }}">
{% endif %}
</div>
"""
"""View of a result in a notebook: the budgets and the lead figure."""


SCRIPT = """\
"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (tag, name, text) => Object.assign(document.createElement(tag), { className: name, textContent: text });

  const words = make("div", "words", "");
  words.hidden = true;
  document.body.append(words);
  for (const tip of all("svg .tip")) {
    const title = tip.querySelector("title");
    tip.dataset.words = title.textContent;
    title.remove();
    tip.addEventListener("pointerenter", (event) => {
      words.textContent = tip.dataset.words;
      words.hidden = false;
      const { width, height } = words.getBoundingClientRect();
      const left = Math.min(event.clientX + 12, document.documentElement.clientWidth - width - 8);
      words.style.left = `${Math.max(8, left) + scrollX}px`;
      const above = event.clientY - height - 12;
      words.style.top = `${(above > 12 ? above : event.clientY + 20) + scrollY}px`;
    });
    tip.addEventListener("pointerleave", () => { words.hidden = true; });
  }

  const UNITS = { KB: 1e3, MB: 1e6, GB: 1e9 };
  const number = (text) => {
    const found = /^[<+]?\\s*([-\\u2212]?[\\d.,]+)\\s*(KB|MB|GB)?/.exec(text);
    return found ? Number(found[1].replaceAll(",", "").replace("\\u2212", "-")) * (UNITS[found[2]] ?? 1) : NaN;
  };
  const compare = (one, other) => {
    const [a, b] = [number(one), number(other)];
    if (!Number.isNaN(a) && !Number.isNaN(b)) return a - b;
    return Number.isNaN(a) - Number.isNaN(b) || one.localeCompare(other);
  };
  for (const table of all("table")) {
    const heads = all("thead th", table), body = table.tBodies[0];
    if (heads.length < 3 || body.rows.length < 3) continue;
    heads.forEach((head, place) => {
      const button = make("button", "sort", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.ariaSort === "ascending";
        for (const other of heads) other.ariaSort = null;
        head.ariaSort = down ? "descending" : "ascending";
        const cell = (row) => row.cells[place].textContent.trim();
        const rows = [...body.rows].sort((one, other) => (down ? -1 : 1) * compare(cell(one), cell(other)));
        body.append(...rows);
      });
    });
  }

  const slider = document.querySelector("#budget"), table = document.querySelector("#budgets table");
  if (slider && table) {
    const heads = all("thead th", table).map((head) => head.textContent.trim());
    const column = heads.indexOf("share"), recall = heads.findIndex((head) => head.startsWith("Recall@"));
    const rows = [...table.tBodies[0].rows].map((row) => [row, [...row.cells].map((cell) => cell.textContent.trim())]);
    const shares = [...new Set(rows.map(([, cells]) => cells[column]))].sort(compare);
    const input = slider.querySelector("input"), told = slider.querySelector("output");
    input.max = shares.length - 1;
    const show = () => {
      const share = shares[input.value], lines = [];
      for (const [row, cells] of rows) {
        const here = cells[column] === share;
        row.classList.toggle("at", here);
        if (!here) continue;
        const isRatio = (head) => head.startsWith("relative to ");
        const ratios = heads.map((head, place) => isRatio(head) && `, ${cells[place]} ${head}`);
        lines.push(`${cells[0]}: ${heads[recall]} ${cells[recall]}${ratios.filter(Boolean).join("")}`);
      }
      const size = rows.find(([, cells]) => cells[column] === share)[1][heads.indexOf("budget KB")];
      input.ariaValueText = `${share}, ${size} KB`;
      told.replaceChildren(make("b", "", `${share}, ${size} KB`), ...lines.map((line) => make("div", "", line)));
      for (const tip of all("svg .tip")) {
        tip.classList.toggle("at", tip.dataset.words.includes(` at ${share}, `));
      }
    };
    input.addEventListener("input", show);
    input.value = Math.floor(input.max / 2);
    slider.hidden = false;
    show();
  }
})();
"""


DEMO = """\
{% extends "base.html" %}
{% block head %}
<style>
:root { --warm: #d55e00; --good: #00795a; --faint: #e9eef2; }
@media (prefers-color-scheme: dark) {
  :root { --warm: #f2955a; --good: #4cc9a0; --faint: #262b2f; }
}
.controls { position: sticky; top: 0; z-index: 1; background: var(--paper); padding: .9rem 0 .7rem;
  border-bottom: 1px solid var(--line); }
.controls .line { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; align-items: baseline; }
.controls label { color: var(--muted); font-size: .85rem; }
.controls output { font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; margin-left: auto; }
select { font: inherit; color: inherit; background: var(--code); border: 1px solid var(--line); border-radius: 6px;
  padding: .3rem .5rem; max-width: 100%; }
input[type="range"] { width: 100%; height: 2rem; margin: .1rem 0 0; accent-color: var(--accent); cursor: ew-resize; }
.chips { display: flex; flex-wrap: wrap; gap: .4rem; }
.chips button { font: inherit; font-size: .8rem; color: inherit; background: none; border: 1px solid var(--line);
  border-radius: 999px; padding: .2rem .7rem; cursor: pointer; font-variant-numeric: tabular-nums; }
.chips button[aria-pressed="true"] { border-color: var(--accent); color: var(--accent); font-weight: 600; }
:is(select, button, input):focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.now { border-bottom: none; grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr)); }
.now dd small { font-weight: 400; font-size: .8rem; color: var(--muted); white-space: nowrap; }
.columns { display: grid; grid-template-columns: minmax(0, 1.35fr) minmax(0, 1fr); gap: 0 2.25rem; }
.columns h2 { margin-top: 1.5rem; }
canvas { display: block; width: 100%; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; list-style: none; padding: 0; margin: .6rem 0 0;
  color: var(--muted); font-size: .82rem; }
.legend i { display: inline-block; width: .75rem; height: .75rem; border-radius: 2px; margin-right: .4rem;
  vertical-align: -1px; }
.best { list-style: none; padding: 0; margin: 0; font-weight: 400; }
.best li { display: grid; grid-template-columns: 1.6rem minmax(0, 1fr) auto; gap: 0 .5rem; align-items: center;
  padding: .32rem 0; }
.best .rank { color: var(--muted); font-size: .82rem; text-align: right; }
.best .name { overflow-wrap: anywhere; }
.best .score { font-variant-numeric: tabular-nums; font-size: .85rem; color: var(--muted); }
.best .bar { grid-column: 2 / 4; height: 3px; border-radius: 2px; background: var(--warm); margin-top: .2rem; }
.best .hit { color: var(--good); font-weight: 600; font-size: .82rem; margin-left: .4rem; white-space: nowrap; }
#curve svg { display: block; width: 100%; min-width: 0; background: none; overflow: visible; }
#curve text { fill: var(--muted); font-size: 12px; font-family: inherit; font-variant-numeric: tabular-nums; }
@media (max-width: 46rem) { .columns { grid-template-columns: minmax(0, 1fr); } }
</style>
{% endblock %}
{% block content %}
<noscript><p class="lead">This page ranks in the browser; it needs JavaScript.</p></noscript>
<div class="controls" role="group" aria-label="Device and budget">
<div class="line">
<label for="device">Device</label>
<select id="device">
{% for name in names %}
<option value="{{ loop.index0 }}">{{ name }}</option>
{% endfor %}
</select>
<label for="budget">Memory budget</label>
<output id="bytes" for="budget"></output>
</div>
<input type="range" id="budget" min="0" max="1000" value="500" step="1" aria-describedby="told">
<div class="chips" id="chips" role="group" aria-label="Budgets of the run"></div>
</div>
<p class="hidden" id="told" role="status" aria-live="polite"></p>
<dl class="facts now">
<div><dt>bytes stored</dt><dd id="stored"></dd></div>
<div><dt>blocks stored</dt><dd id="kept"></dd></div>
<div><dt>items it can rank</dt><dd id="items"></dd></div>
<div><dt id="recall-name">recall@{{ recall_at }}</dt><dd id="recall"></dd></div>
</dl>
<div class="columns">
<section id="map">
<h2>Stored blocks</h2>
<canvas id="blocks" role="img"></canvas>
<ul class="legend">
<li><i style="background: var(--accent)"></i>stored</li>
<li><i style="background: var(--faint); box-shadow: inset 0 0 0 1px var(--line)"></i>dropped</li>
<li><i style="background: var(--warm)"></i>recommended now</li>
</ul>
<p class="note" id="map-note"></p>
</section>
<section id="list">
<h2>Recommendations</h2>
<ol class="best" id="best"></ol>
<p class="note" id="list-note"></p>
</section>
</div>
<section id="curve">
<h2>Recall under a budget</h2>
<div id="chart"></div>
<p class="note" id="curve-note"></p>
</section>
<script type="application/json" id="data">{{ data }}</script>
<script type="module">{{ script }}</script>
{% endblock %}
{% block script %}
{% endblock %}
"""


LIVE = """\
{% extends "base.html" %}
{% block content %}
<section id="stages" aria-live="polite">
<h2>Stages</h2>
<div class="scroll">
<table>
<thead><tr><th scope="col">stage</th><th scope="col">done</th><th scope="col">steps</th><th scope="col">last</th></tr>
</thead>
<tbody></tbody>
</table>
</div>
</section>
<section id="figures"></section>
<section id="steps">
<h2>Steps, the last first</h2>
<ol reversed></ol>
</section>
<noscript><p class="note">This page grows by a script. The report that the run leaves needs none.</p></noscript>
{% endblock %}
{% block reproduce %}{% endblock %}
"""

LIVE_SCRIPT = """\
"use strict";
(() => {
  const EVERY_MS = 1000, STEPS = 200;
  const make = (tag, text = "") => Object.assign(document.createElement(tag), { textContent: text });
  const stages = new Map(), curves = new Map();
  const body = document.querySelector("#stages tbody"), steps = document.querySelector("#steps ol");
  const lead = document.querySelector(".lead"), figures = document.querySelector("#figures");
  let next = 0;

  const stage = (event) => {
    if (!stages.has(event.stage)) {
      const row = body.insertRow(), bar = make("progress");
      bar.ariaLabel = event.stage;
      row.insertCell().textContent = event.stage;
      row.insertCell().append(bar);
      stages.set(event.stage, { bar, count: row.insertCell(), last: row.insertCell() });
    }
    const shown = stages.get(event.stage);
    [shown.bar.max, shown.bar.value] = [event.total, event.done];
    shown.count.textContent = `${event.done} of ${event.total}`;
    if (event.text) shown.last.textContent = event.text;
  };

  const curve = (name, step, value) => {
    if (!curves.has(name)) {
      const block = make("div"), heading = make("p");
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("viewBox", "0 0 300 60");
      svg.setAttribute("preserveAspectRatio", "none");
      svg.append(document.createElementNS(svg.namespaceURI, "polyline"));
      block.append(heading, svg);
      figures.append(block);
      curves.set(name, { heading, line: svg.firstChild, points: [] });
    }
    const { heading, line, points } = curves.get(name);
    points.push([step, value]);
    heading.textContent = `${name}: ${value.toPrecision(4)}`;
    const [xs, ys] = [0, 1].map((axis) => points.map((point) => point[axis]));
    const place = (one, all, size) => size * (one - Math.min(...all)) / (Math.max(...all) - Math.min(...all) || 1);
    line.setAttribute("points", points.map(([x, y]) => `${place(x, xs, 300)},${58 - place(y, ys, 56)}`).join(" "));
  };

  const show = (event) => {
    stage(event);
    for (const [name, value] of Object.entries(event.figures ?? {})) curve(name, event.done, value);
    const of = event.total > 1 ? ` ${event.done} of ${event.total}` : "";
    steps.prepend(make("li", `${event.seconds.toFixed(1)} s: ${event.stage}${of}${event.text && ", "}${event.text}`));
    while (steps.childElementCount > STEPS) steps.lastChild.remove();
  };

  const ask = async () => {
    let ended = true;
    try {
      const told = await (await fetch(`/events?since=${next}`, { cache: "no-store" })).json();
      told.events.forEach(show);
      [next, ended] = [told.next, told.ended];
      lead.textContent = `${told.seconds.toFixed(0)} s since the start.`;
    } catch {
      lead.textContent = "The run no longer answers: it has ended, or was stopped.";
      return;
    }
    if (ended) lead.textContent = "The run has ended; its report is in its folder, if it was given one (--out).";
    else setTimeout(ask, EVERY_MS);
  };
  ask();
})();
"""


TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "parts.html": PARTS,
        "base.html": BASE,
        "page.html": PAGE,
        "demo.html": DEMO,
        "notebook.html": NOTEBOOK,
        "live.html": LIVE,
    }
)

"""The page of a run that is under way, and its script, which asks for what is new every second."""

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

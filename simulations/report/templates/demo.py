"""The page of the interactive demo."""

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

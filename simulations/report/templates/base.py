"""What both pages share: head, styles, heading, tables, figures, and the part on how to reproduce."""

PARTS = """\
{% macro table(view, bare=false) %}
<div class="scroll">
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
{% if view.note %}<p class="note">{{ view.note }}</p>{% endif %}
{% endmacro %}
{% macro figure(plot, caption) %}
<figure>
<div class="scroll">{{ plot | svg }}</div>
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
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --ink: #222; --muted: #5c5c5c; --line: #e0e0e0; --accent: #0072b2; --paper: #fff;
  --code: #f6f6f6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --muted: #a8a8a8; --line: #3a3a3a; --accent: #6cb6e8; --paper: #161616; --code: #222; }
  figure svg { background: #fff; border-radius: 4px; }
}
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 56rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .75rem; }
.lead { font-size: 1.08rem; margin: 0 0 1.25rem; max-width: 44rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(6.4rem, 1fr)); gap: .75rem 1.5rem;
  margin: 0; padding: .9rem 0; border-block: 1px solid var(--line); }
.facts dt { color: var(--muted); font-size: .8rem; }
.facts dd { margin: 0; font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
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
figure svg { display: block; width: 100%; min-width: 34rem; height: auto; }
pre { background: var(--code); padding: .9rem 1rem; overflow-x: auto; font-size: .82rem; line-height: 1.45;
  border-radius: 4px; }
pre, code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
details > summary { cursor: pointer; color: var(--accent); margin: .75rem 0; }
@media (max-width: 34rem) {
  main { padding: 1.25rem .9rem 3rem; }
  h1 { font-size: 1.35rem; }
  table { font-size: .8rem; }
}
@media print { main { max-width: none; padding: 0; } figure, table { break-inside: avoid; } }
</style>
{% block head %}
{% endblock %}
</head>
<body>
<main>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
<dl class="facts">
{% for name, value in facts %}
<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>
{% endfor %}
</dl>
{% block content %}{% endblock %}
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
</main>
</body>
</html>
"""

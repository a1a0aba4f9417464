"""The page of one run."""

REPORT = """\
{% extends "base.html" %}
{% from "parts.html" import table, figure %}
{% block content %}
<section id="quality">
<h2>Quality under a budget</h2>
{% if plots.recall %}
{{ figure(plots.recall, "Each point is one budget, the same for every device, without retraining between "
  "points. Dashed: full fp32 item tables, without a budget; the 95 % interval of the best one is grey. Bars: 95 % "
  "intervals over devices, of each point alone; the table below has paired intervals of ratios, which are narrower.") }}
{% endif %}
{% if why %}
<p class="why">{{ why }}</p>
{% endif %}
{% if demo %}
<p class="why"><a href="{{ demo }}">Interactive demo</a>: change a device's budget, and see its blocks and its list.</p>
{% endif %}
{% if budgets %}
{% if budgets.rows | length > 1 %}
<div class="slider" id="budget" hidden>
<label for="share">Budget</label>
<input type="range" id="share" min="0" max="0" step="1">
<output for="share"></output>
</div>
{% endif %}
{{ table(budgets, id="budgets") }}
{% endif %}
{{ table(full_table) }}
</section>
{% if stage1 %}
<section id="stage1">
<h2>Stage 1</h2>
{% for view in stage1 %}
{{ table(view) }}
{% endfor %}
</section>
{% endif %}
{% if kept %}
<section id="kept">
<h2>Refinement</h2>
{% for view in kept %}
{{ table(view, bare=true) }}
{% endfor %}
</section>
{% endif %}
{% if plots.traces %}
<section id="traces">
<h2>{{ plots.traces.title }}</h2>
{{ figure(plots.traces, "Black line: the budget of that round. Blue: bytes stored, never above it. "
  "Green: blocks stored. Hatched: the device was offline.") }}
</section>
{% endif %}
{% if device_classes or plots.classes %}
<section id="classes">
<h2>Device classes</h2>
{% if fleet %}
{{ table(fleet) }}
{% endif %}
{% if plots.fleet %}
{{ figure(plots.fleet, "Range of budgets of each class of the fleet.") }}
{% endif %}
{% if device_classes %}
{{ table(device_classes, bare=true) }}
{% endif %}
{% if plots.classes %}
{{ figure(plots.classes, "Recall@" ~ top_n ~ " under each class's own, changing budgets, with its number of devices "
  "and mean budget. Diamonds and squares: the same devices with full tables; compare within a class, since classes "
  "have different users. Thin lines: 95 % intervals over devices.") }}
{% endif %}
</section>
{% endif %}
{% if plots.groups %}
<section id="groups">
<h2>User groups</h2>
{{ figure(plots.groups, "Recall@" ~ top_n ~ " by user group. Groups differ in how predictable their users are, so "
  "compare runs group by group rather than groups with one another. Thin lines: 95 % intervals over devices.") }}
</section>
{% endif %}
{% if plots.learning %}
<section id="learning">
<h2>{{ plots.learning.title }}</h2>
{{ figure(plots.learning, "Metrics after each round, over the participating devices, without intervals (rounds do not "
  "release sums of squares).") }}
</section>
{% endif %}
{% if times %}
<section id="times">
<h2>Time to recall</h2>
{{ table(times) }}
</section>
{% endif %}
{% if fairness %}
<section id="fairness">
<h2>Fairness</h2>
{% if plots.fairness %}
{{ figure(plots.fairness, "Each class under its own budgets, with elastic tables, full tables and systems whose tables "
  "are not elastic. Classes have different users: compare dots within a line. Thin lines: 95 % intervals "
  "over devices.") }}
{% endif %}
{% for view in fairness %}
{{ table(view) }}
{% endfor %}
</section>
{% endif %}
{% if elasticity %}
<section id="elasticity">
<h2>Elasticity</h2>
{% if plots.falls %}
{{ figure(plots.falls, "All budgets drop at once after training, without retraining; for comparison, tables that were "
  "trained for the reduced budgets from the start. Bars: 95 % intervals over devices.") }}
{% endif %}
{% if plots.moving %}
{{ figure(plots.moving, "Devices followed after training while their budgets change. Rigid devices keep their blocks "
  "while they fit, and store nothing after that until the next round. Shaded: 95 % intervals over "
  "devices.") }}
{% endif %}
{% for view in elasticity %}
{{ table(view) }}
{% endfor %}
</section>
{% endif %}
{% if privacy %}
<section id="privacy">
{% for view in privacy %}
{{ table(view) }}
{% endfor %}
</section>
{% endif %}
<section id="costs">
<h2>Bytes and seconds</h2>
{{ table(costs, bare=true) }}
{% if plots.bytes %}
{{ figure(plots.bytes, "Payload of each round, summed over its devices: download above zero, upload below.") }}
{% endif %}
{% if plots.stages %}
{{ figure(plots.stages, "Wall time of each stage.") }}
{% endif %}
</section>
{% for view in environment %}
{% if loop.first %}
<section id="environment">
<h2>Environment</h2>
{% endif %}
{{ table(view, bare=loop.first) }}
{% if loop.last %}
</section>
{% endif %}
{% endfor %}
{% endblock %}
"""

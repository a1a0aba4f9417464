"""The page of one run."""

REPORT = """\
{% extends "base.html" %}
{% from "parts.html" import table, figure %}
{% block content %}
<section id="quality">
<h2>Quality under a budget</h2>
{{ table(full_table) }}
{% if plots.recall %}
{{ figure(plots.recall, "Each point is one budget that every device is held to; no retraining between points. "
  "Dashed: the full fp32 item table, as pretrained for all users (global) and as refined by the federation.") }}
{% endif %}
{% if budgets %}
{{ table(budgets) }}
{% endif %}
</section>
{% if plots.traces %}
<section id="traces">
<h2>{{ plots.traces.title }}</h2>
{{ figure(plots.traces, "Black line: the budget of that round. Blue: bytes stored, never above it. "
  "Green: blocks kept.") }}
</section>
{% endif %}
{% if device_classes or plots.classes %}
<section id="classes">
<h2>Device classes</h2>
{% if device_classes %}
{{ table(device_classes, bare=true) }}
{% endif %}
{% if plots.classes %}
{{ figure(plots.classes, "Recall@20 under each class's own moving budget; beside each bar its devices and mean "
  "budget.") }}
{% endif %}
</section>
{% endif %}
{% if plots.groups %}
<section id="groups">
<h2>User groups</h2>
{{ figure(plots.groups, "Recall@20 by user group. Groups differ in how predictable their users are, so compare "
  "runs group by group rather than groups with one another.") }}
</section>
{% endif %}
{% if plots.learning %}
<section id="learning">
<h2>{{ plots.learning.title }}</h2>
{{ figure(plots.learning, "Metrics recorded after each round.") }}
</section>
{% endif %}
{% for view in parts %}
{% if loop.first %}
<section id="parts">
<h2>Fairness and elasticity</h2>
{% endif %}
{{ table(view) }}
{% if loop.last %}
</section>
{% endif %}
{% endfor %}
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

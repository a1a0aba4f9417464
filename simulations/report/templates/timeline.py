"""The page of a timeline."""

TIMELINE = """\
{% extends "base.html" %}
{% from "parts.html" import table, figure %}
{% block content %}
<section id="recall">
<h2>Recall over time</h2>
{{ figure(recall, "Solid: the federation. Dashed: other ways of serving the same devices. Bars: 95 % intervals over "
  "devices.") }}
{% for view in tables %}
{{ table(view) }}
{% endfor %}
</section>
<section id="kinds">
<h2>New devices and old</h2>
{{ figure(kinds, "Devices that were there when the first period began, that joined in a period since, and that join in "
  "the period itself, which are asked from their second action on.") }}
</section>
<section id="classes">
<h2>Device classes</h2>
{{ figure(classes, "Devices under their own budgets of the moment. Bars: 95 % intervals over devices.") }}
</section>
<section id="life">
<h2>What it takes, and what becomes of budgets</h2>
{{ figure(life, "From above: recall; what a device is sent before a period under each budget, and moves in stage 1; "
  "what changed; the mean of devices' own budgets and what they hold of it, at every step of the clock; how often a "
  "device re-selected blocks because its budget moved.") }}
{% for view in costs %}
{{ table(view) }}
{% endfor %}
</section>
{% endblock %}
"""

"""The page of a timeline."""

TIMELINE = """\
{% extends "base.html" %}
{% from "parts.html" import table, figure %}
{% block content %}
<section id="recall">
<h2>Recall over time</h2>
{{ figure(recall, "Solid: federated training. Dashed: other methods for the same devices. Bars: 95 % intervals over "
  "devices.") }}
{% for view in tables %}
{{ table(view) }}
{% endfor %}
</section>
<section id="kinds">
<h2>New and old devices</h2>
{{ figure(kinds, "Devices from before the first period, devices that joined in an earlier period, and devices that "
  "join in the period itself, which are evaluated from their second interaction on.") }}
</section>
<section id="classes">
<h2>Device classes</h2>
{{ figure(classes, "Devices under their own, current budgets. Bars: 95 % intervals over devices.") }}
</section>
<section id="life">
<h2>Costs and budgets</h2>
{{ figure(life, "From the top: recall; bytes per device, for downloads before a period at each budget and for stage 1; "
  "changed rows and groups; mean of the devices' own budgets and of their stored bytes, at every step of the clock; "
  "re-selections of blocks per device because of a changed budget.") }}
{% for view in costs %}
{{ table(view) }}
{% endfor %}
</section>
{% endblock %}
"""

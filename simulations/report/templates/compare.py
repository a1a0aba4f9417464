"""The page of a comparison."""

COMPARE = """\
{% extends "base.html" %}
{% from "parts.html" import table, figure %}
{% block content %}
<section id="quality">
<h2>Quality against bytes</h2>
{{ figure(plot, "Solid: each user group has its own table; dashed: one table for all. Error bars: 95 % intervals over "
  "devices (and seeds, where there are several) of each point alone.") }}
{% for view in tables %}
{{ table(view) }}
{% endfor %}
</section>
<section id="refinement">
<h2>Refinement</h2>
{{ table(refinement, bare=true) }}
</section>
<section id="rows">
<h2>All rows</h2>
{{ table(details, bare=true) }}
</section>
{% endblock %}
"""

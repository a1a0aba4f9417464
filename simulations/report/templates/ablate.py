"""The page of an ablation."""

ABLATE = """\
{% extends "base.html" %}
{% from "parts.html" import table, figure %}
{% block content %}
<section id="parts">
<h2>Contribution of each part</h2>
{{ figure(plot, "One mark per budget; right of the dashed line: better than the unchanged scenario.") }}
{{ table(table_of_parts) }}
{{ table(ratios) }}
{% if collected %}
{{ figure(collected, "Dashed: group tables before federated refinement. Solid: after it.") }}
{% endif %}
{% if noise %}
{{ figure(noise, "Group tables before refinement. Epsilon covers everything that devices send, stage 1 included.") }}
{% endif %}
{% if population %}
{{ figure(population, "Group tables before refinement, on synthetic devices: the same noise is smaller relative to a "
  "sum over more devices.") }}
{% endif %}
</section>
{% endblock %}
"""

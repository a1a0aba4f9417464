"""The page of an ablation."""

ABLATE = """\
{% extends "base.html" %}
{% from "parts.html" import table, figure %}
{% block content %}
<section id="parts">
<h2>What each part is worth</h2>
{{ figure(plot, "One mark a budget; right of the dashed line is better than the scenario as it is.") }}
{{ table(table_of_parts) }}
{{ table(ratios) }}
{% if collected %}
{{ figure(collected, "Dashed: as user groups start, before any device has trained. Solid: what is kept of the "
  "refinement.") }}
{% endif %}
{% if noise %}
{{ figure(noise, "As user groups start. All that devices say is within epsilon, stage 1 included.") }}
{% endif %}
{% if population %}
{{ figure(population, "As user groups start, on synthetic devices: the same noise on a sum hides less of it the more "
  "devices there are.") }}
{% endif %}
</section>
{% endblock %}
"""

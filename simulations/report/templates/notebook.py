"""View of a result in a notebook: the budgets and the lead figure."""

NOTEBOOK = """\
{% from "parts.html" import table %}
<div>
<p>{{ title }}</p>
{% if budgets %}
{{ table(budgets) }}
{% endif %}
{% if image %}
<img style="max-width: 46rem; background: #fff" alt="{{ alt }}" src="data:image/svg+xml;base64,{{ image }}">
{% endif %}
</div>
"""

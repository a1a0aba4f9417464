"""The page of an audit."""

AUDIT = """\
{% extends "base.html" %}
{% from "parts.html" import table, figure %}
{% block content %}
<section id="leaks">
<h2>Leakage and cost of each mechanism</h2>
{{ figure(plot, "Left: one mark per attack; right: recall. Bars: 95 % intervals.") }}
{{ table(leaks) }}
</section>
{% endblock %}
"""

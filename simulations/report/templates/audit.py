"""The page of an audit."""

AUDIT = """\
{% extends "base.html" %}
{% from "parts.html" import table, figure %}
{% block content %}
<section id="leaks">
<h2>What each mechanism leaks, and costs</h2>
{{ figure(plot, "One mark an attack; recall beside it. Bars: 95 % intervals.") }}
{{ table(leaks) }}
</section>
{% endblock %}
"""

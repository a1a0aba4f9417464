"""A page of tables and at most one figure: of several seeds, and of a diff."""

TABLES = """\
{% extends "base.html" %}
{% from "parts.html" import table, figure %}
{% block content %}
<section id="tables">
{% for view in tables %}
{{ table(view) }}
{% endfor %}
{% if plot %}
{{ figure(plot, "Right of the dashed line: better than the first run. An interval across it: not significant.") }}
{% endif %}
{% if note %}
<p class="note">{{ note }}</p>
{% endif %}
</section>
{% endblock %}
"""

"""The page of a sweep."""

SWEEP = """\
{% extends "base.html" %}
{% from "parts.html" import table, figure %}
{% block content %}
<section id="settings">
{% if plot %}
{{ figure(plot, caption) }}
{% endif %}
{% for view in tables %}
{{ table(view) }}
{% endfor %}
<p class="note">{{ note }}</p>
</section>
{% endblock %}
"""

"""The page of a comparison with federated rivals."""

LEADERBOARD = """\
{% extends "base.html" %}
{% from "parts.html" import table, figure %}
{% block content %}
<section id="leaderboard">
<h2>Leaderboard</h2>
{{ table(leaderboard) }}
</section>
<section id="quality">
<h2>Quality against stored bytes</h2>
{{ figure(plot, "Solid: PEEL, with a table for each user group; dashed: one table for all, or one for each width. "
  "Error bars: one standard deviation over seeds, where there are several.") }}
</section>
<section id="tuning">
<h2>Tuning</h2>
{{ table(tuning, bare=true) }}
</section>
<section id="rows">
<h2>All rows</h2>
{{ table(details, bare=true) }}
</section>
{% endblock %}
"""

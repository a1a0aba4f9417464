"""What a reader calls the lines and kinds of a timeline."""

from __future__ import annotations

LABELS = {
    "federation": "federation that goes on",
    "federation, all rows": "the same, all rows sent anew",
    "federation, own budgets": "federation, own budgets",
    "retrained": "retrained on everything",
    "refreshed-list": "list refreshed by a server",
    "start-table": "table of the start, own actions",
    "cached-list": "list of the start",
    "cached-list-fresh": "list of the start, of what was new",
    "popularity": "popularity until now",
    "recent-popularity": "popularity of the last period",
}
KINDS = {"start": "there at the start", "since": "joined since", "first": "joining in the period"}
BASES = ("cached-list", "retrained", "recent-popularity")
"""Ways of serving that others are compared with in tables."""

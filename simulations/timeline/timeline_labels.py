"""Names of the serving methods and kinds of devices of a timeline, for readers."""

from __future__ import annotations

LABELS = {
    "federation": "continual federated training",
    "federation, all rows": "continual federated training, all rows sent",
    "federation, own budgets": "continual federated training, own budgets",
    "retrained": "central retraining",
    "refreshed-list": "top-20 list, refreshed by the server",
    "start-table": "static table, local user update",
    "cached-list": "static top-20 list",
    "cached-list-fresh": "static top-20 list, recency-weighted",
    "popularity": "popularity, all periods so far",
    "recent-popularity": "popularity, last period",
}
KINDS = {"start": "before the first period", "since": "joined later", "first": "joining in the period"}
BASES = ("cached-list", "retrained", "recent-popularity")
"""Ways of serving that others are compared with in tables."""

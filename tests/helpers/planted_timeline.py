"""Interactions in time, of which one knows what happens: taste that turns, an item that appears, users that join."""

from __future__ import annotations

import numpy as np

WORLD = 40
"""Items of a world of taste; there are three, and one item more."""
NEW_ITEM = 3 * WORLD
TURNING, STAYING, JOINING = 60, 60, 30


def planted(seed: int = 0) -> list[tuple[int, int, int]]:
    """(user, item, time), oldest first. Until day 100 users below TURNING use world 0, the next STAYING ones world 2.
    From then on the former use world 1, which nobody used much, the latter stay; JOINING further users come on day 130
    or later and use world 1; from day 115 on, everybody of world 2 uses NEW_ITEM once.
    """
    rng = np.random.default_rng(seed)
    rows: list[tuple[int, int, int]] = []

    def uses(user: int, items: np.ndarray, days: np.ndarray) -> None:
        rows.extend((user, int(item), int(day * 86_400)) for item, day in zip(items, days, strict=True))

    for user in range(TURNING + STAYING):
        world = 0 if user < TURNING else 2
        uses(user, rng.permutation(WORLD)[:12] + world * WORLD, np.sort(rng.uniform(0, 100, 12)))
        after = 1 if user < TURNING else 2
        left = np.setdiff1d(np.arange(WORLD) + after * WORLD, [item for who, item, _ in rows if who == user])
        uses(user, rng.permutation(left)[:16], np.sort(rng.uniform(100, 180, 16)))
        if after == 2:
            uses(user, np.array([NEW_ITEM]), rng.uniform(115, 180, 1))
    for user in range(TURNING + STAYING, TURNING + STAYING + JOINING):
        begin = rng.uniform(130, 170)
        uses(user, rng.permutation(WORLD)[:10] + WORLD, np.sort(rng.uniform(begin, 180, 10)))
    return sorted(rows, key=lambda row: (row[2], row[0], row[1]))


def csv_of(rows: list[tuple[int, int, int]]) -> str:
    """As a file that is read by path."""
    return "user,item,rating,timestamp\n" + "".join(f"{user},{item},5,{time}\n" for user, item, time in rows)


TIMELINE = """
data:
  path: {path}
  timeline: {{start: 40%, periods: 8, share: 7%, recency_exponents: [0, 0.5]}}
pretraining: {{model: spectral, source: devices, columns: 8, group_columns: 8, embedding_dim: 8, passes: 4,
  count_exponent: 0.5, value_exponent: 0.3,
  collected: {{share: 0}}}}
user_groups: {{count: 3, min_size: 4}}
blocks: {{precision: int8}}
refinement: {{rounds: 0}}
privacy: {{min_owners: 1}}
controller: {{list_length: 20}}
evaluation: {{budgets: [30%], bootstrap: 50}}
fleet: {fleet}
"""
FLEET = """
profiles:
  - name: small
    population_share: 0.5
    memory: {table_share: 0.3}
  - name: large
    population_share: 0.5
    memory: {table_share: 1.0}
"""

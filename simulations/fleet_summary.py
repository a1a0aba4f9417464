"""What fleet a run was about, in numbers: ``report.json["fleet"]``."""

from __future__ import annotations

from typing import Any

import numpy as np

from clients.profiles import load_fleet
from fl_peel.config import Scenario
from simulations.fleet_view import sample_fleet

MAX_DRAWN = 2000


def fleet_summary(scenario: Scenario, *, num_devices: int, full_table_bytes: int) -> dict[str, Any]:
    """The classes of the scenario's fleet, from its first devices, over the rounds of training and of following.

    Budgets: median, 10th and 90th percentile over devices and rounds; other figures are medians over devices.
    """
    fleet = load_fleet(scenario.fleet)
    if scenario.budget_factor != 1:
        fleet = fleet.with_shock(at_round=0, factor=scenario.budget_factor)
    count, rounds = min(num_devices, MAX_DRAWN), scenario.refinement.rounds + scenario.elasticity.rounds + 1
    sample = sample_fleet(
        fleet, seed=scenario.seed, num_devices=count, rounds=rounds, full_table_bytes=full_table_bytes
    )
    drawn, classes = sample.drawn, []
    for index, name in enumerate(fleet.names):
        mine = drawn["class"] == index
        if not mine.any():
            continue
        budgets = sample.budgets[:, mine]
        low, median, high = (float(value) for value in np.percentile(budgets, [10, 50, 90]))
        rates = ("samples_per_s", "uplink_mbps", "downlink_mbps", "latency_ms", "train_watts", "radio_joules_per_mb")
        classes.append(
            {
                "class": name,
                "population_share": fleet.shares[index],
                "budget_median": median,
                "share_low": low / full_table_bytes,
                "share_median": median / full_table_bytes,
                "share_high": high / full_table_bytes,
                "changes_per_round": float((np.diff(budgets, axis=0) != 0).mean()) if rounds > 1 else 0.0,
                **{key: float(np.median(drawn[key][mine])) for key in rates},
                "available": float(
                    np.mean([fleet.available(scenario.seed, drawn["device"][mine], r).mean() for r in range(rounds)])
                ),
            }
        )
    return {"source": fleet.source, "devices": count, "rounds": rounds, "classes": classes}


__all__ = ["fleet_summary"]

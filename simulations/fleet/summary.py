"""Summary of a run's fleet, in numbers: ``report.json["fleet"]``."""

from __future__ import annotations

import numpy as np

from clients.fleet.fleet import load_fleet
from fl_peel.scenario.scenario import Scenario
from simulations.fleet.fleet_view import sample_fleet
from strategies.figures.schema import FleetClassRow, FleetResult

MAX_DRAWN = 2000
RATES = ("samples_per_s", "uplink_mbps", "downlink_mbps", "latency_ms", "train_watts", "radio_joules_per_mb")


def fleet_summary(scenario: Scenario, *, num_devices: int, full_table_bytes: int) -> FleetResult:
    """The classes of the scenario's fleet, from its first devices, over the rounds of training and of following."""
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
        budgets, devices = sample.budgets[:, mine], drawn["device"][mine]
        low, median, high = (float(value) for value in np.percentile(budgets, [10, 50, 90]))
        medians = {key: float(np.median(drawn[key][mine])) for key in RATES}
        available = [fleet.available(scenario.seed, devices, server_round).mean() for server_round in range(rounds)]
        classes.append(
            FleetClassRow(
                device_class=name,
                population_share=fleet.shares[index],
                budget_median=median,
                share_low=low / full_table_bytes,
                share_median=median / full_table_bytes,
                share_high=high / full_table_bytes,
                changes_per_round=float((np.diff(budgets, axis=0) != 0).mean()) if rounds > 1 else 0.0,
                **medians,
                available=float(np.mean(available)),
            )
        )
    return FleetResult(source=fleet.source, devices=count, rounds=rounds, classes=tuple(classes))


__all__ = ["fleet_summary"]

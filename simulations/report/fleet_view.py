"""A sampled fleet as a table and a figure: what `fl-peel profiles sample` shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clients.fleet.fleet import Fleet, FleetBudgets, load_fleet
from fl_peel.scenario.scenario import Scenario
from simulations.report.table_view import TableView, format_bytes, format_share
from strategies.figures.schema import FleetClassRow, FleetResult

if TYPE_CHECKING:
    from simulations.report.drawing import Plot


MAX_DRAWN_CLASSES = 8
LINES_PER_CLASS = 3
MAX_BARS = 48


@dataclass(frozen=True)
class SampledFleet:
    """Devices drawn from a fleet, and their budgets: ``budgets`` (T, N) bytes over rounds 0..T-1."""

    fleet: Fleet
    seed: int
    full_table_bytes: int
    drawn: dict[str, NDArray[Any]]
    budgets: NDArray[np.int64]


def sample_fleet(fleet: Fleet, *, seed: int, num_devices: int, rounds: int, full_table_bytes: int) -> SampledFleet:
    """Draw devices 0..num_devices-1 and follow their budgets.

    Raises:
        ProfileError: a plugged-in process gives budgets that make no sense.
    """
    devices = np.arange(num_devices, dtype=np.int64)
    budgets = FleetBudgets(fleet, seed, devices, full_table_bytes)
    over_time = np.stack([budgets.at(server_round) for server_round in range(rounds)])
    drawn = fleet.sample(seed, devices, full_table_bytes=full_table_bytes)
    return SampledFleet(fleet, seed, full_table_bytes, drawn, over_time)


RATES = ("samples_per_s", "uplink_mbps", "downlink_mbps", "latency_ms", "train_watts", "radio_joules_per_mb")
SHOWN_RATES = RATES[:3]


def sampled_classes(sample: SampledFleet) -> Iterator[tuple[str, int, FleetClassRow | None]]:
    """Yield each device class: its name, its number of devices, and its figures, None where it has no device."""
    fleet, drawn, full_bytes, rounds = sample.fleet, sample.drawn, sample.full_table_bytes, len(sample.budgets)
    for index, name in enumerate(fleet.names):
        mine = drawn["class"] == index
        if not mine.any():
            yield name, 0, None
            continue
        budgets, devices = sample.budgets[:, mine], drawn["device"][mine]
        low, median, high = (float(value) for value in np.percentile(budgets, [10, 50, 90]))
        available = [fleet.available(sample.seed, devices, server_round).mean() for server_round in range(rounds)]
        medians = {key: float(np.median(drawn[key][mine])) for key in RATES}
        figures = FleetClassRow(
            device_class=name,
            population_share=fleet.shares[index],
            budget_median=median,
            share_low=low / full_bytes,
            share_median=median / full_bytes,
            share_high=high / full_bytes,
            changes_per_round=float((np.diff(budgets, axis=0) != 0).mean()) if rounds > 1 else 0.0,
            **medians,
            available=float(np.mean(available)),
        )
        yield name, int(mine.sum()), figures


def fleet_table(sample: SampledFleet) -> TableView:
    """One line per device class; quantities are medians over its devices, the range from the 10th to the 90th."""
    rows: list[tuple[str, ...]] = []
    for name, devices, row in sampled_classes(sample):
        if row is None:
            rows.append((name, "0", *["–"] * 9))
            continue
        low, high = (share * sample.full_table_bytes for share in (row.share_low, row.share_high))
        rates = [getattr(row, key) for key in SHOWN_RATES]
        rows.append(
            (
                name,
                f"{devices:,}",
                *(format_bytes(value) for value in (low, row.budget_median, high)),
                format_share(row.share_median),
                f"{row.changes_per_round:.2f}",
                *(f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}" for rate in rates),
                format_share(row.available),
            )
        )
    columns = (
        *("class", "devices", "budget p10", "median", "p90", "of table", "changes"),
        *("samples/s", "up", "down", "available"),
    )
    note = (
        f"Seed {sample.seed}. Budgets over {len(sample.budgets)} rounds, for a full fp32 item table of "
        f"{format_bytes(sample.full_table_bytes)}; changes: share of rounds in which a budget is not the one before. "
        "Samples per second and Mbit/s up and down: medians over devices."
    )
    return TableView(f"Fleet {sample.fleet.source}", columns, tuple(rows), 1, note)


def in_json(sample: SampledFleet) -> dict[str, Any]:
    """The same in numbers, by device class: bytes, shares, medians of rates; null for a class without devices."""
    full_bytes = sample.full_table_bytes
    classes: list[dict[str, Any]] = []
    for name, devices, row in sampled_classes(sample):
        classes.append({"class": name, "devices": devices, "budget_bytes": None})
        if row is not None:
            low, high = row.share_low * full_bytes, row.share_high * full_bytes
            classes[-1] |= {
                "budget_bytes": {"p10": low, "median": row.budget_median, "p90": high},
                "share_of_table": row.share_median,
                **{key: getattr(row, key) for key in SHOWN_RATES},
                "available": row.available,
            }
    return {
        "fleet": sample.fleet.source,
        "seed": sample.seed,
        "rounds": len(sample.budgets),
        "full_table_bytes": full_bytes,
        "classes": classes,
    }


def fleet_lines(sample: SampledFleet) -> TableView:
    """The budgets over rounds of the first device of each class, as a line of bars: a plot for the terminal."""
    rows = []
    for index, name in enumerate(sample.fleet.names):
        mine = np.flatnonzero(sample.drawn["class"] == index)
        if len(mine):
            budgets = sample.budgets[:, mine[0]]
            rows.append((name, format_bytes(budgets.min()), format_bytes(budgets.max()), bars(budgets)))
    last = len(sample.budgets) - 1
    note = "The first device of each class; bars reach from zero to the device's own largest budget."
    return TableView("Budgets over time", ("class", "lowest", "highest", f"round 0 to {last}"), tuple(rows), 1, note)


def bars(values: NDArray[np.int64], width: int = MAX_BARS) -> str:
    """Return at most ``width`` bars of heights 0 (a blank) to 8 eighths of the largest value; values: (T,) >= 0.

    Where there are more values than bars, each bar shows the lowest of its stretch: a short fall is not lost.
    """
    lowest = np.array([part.min() for part in np.array_split(values, min(width, len(values)))])
    eighths = np.ceil(8 * lowest / max(int(values.max()), 1)).astype(np.int64)
    return "".join(" \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"[level] for level in eighths)


def fleet_figure(sample: SampledFleet) -> Plot:
    """Budgets of a few devices of each class over rounds (top), and the share of devices below each budget."""
    from simulations.report.drawing import LABEL_PT, PALETTE, darker, finish, new_figure, short_bytes, styled

    with styled():
        figure, (top, bottom) = new_figure(5.6, 2)
        rounds = np.arange(len(sample.budgets))
        drawn_classes = [
            (index, name)
            for index, name in enumerate(sample.fleet.names)
            if index < MAX_DRAWN_CLASSES and (sample.drawn["class"] == index).any()
        ]
        for index, name in drawn_classes:
            color = PALETTE[index % len(PALETTE)]
            mine = np.flatnonzero(sample.drawn["class"] == index)
            for device in mine[:LINES_PER_CLASS]:
                top.step(rounds, sample.budgets[:, device], where="mid", color=color, linewidth=1.1, alpha=0.8)
            values = np.sort(sample.budgets[:, mine].ravel())
            share = np.arange(1, len(values) + 1) / len(values)
            bottom.step(values, share, where="post", color=color, label=name)
        positive = sample.budgets[sample.budgets > 0]
        wide = len(positive) > 0 and positive.max() > 20 * positive.min()
        if wide:
            top.set_yscale("symlog" if (sample.budgets == 0).any() else "log")
            bottom.set_xscale("symlog" if (sample.budgets == 0).any() else "log")
        top.yaxis.set_major_formatter(lambda value, _: short_bytes(value))
        bottom.xaxis.set_major_formatter(lambda value, _: short_bytes(value))
        top.set_xlabel(f"round ({LINES_PER_CLASS} devices of each class)")
        top.set_ylabel("memory budget")
        bottom.set_xlabel("memory budget over all rounds")
        bottom.set_ylabel("share of devices")
        bottom.set_ylim(0, 1.02)
        columns = min(5, max(1, len(drawn_classes)))
        legend = figure.legend(loc="outside upper center", ncols=columns, fontsize=LABEL_PT, frameon=False)
        for text, (index, _) in zip(legend.get_texts(), drawn_classes, strict=True):
            text.set_color(darker(PALETTE[index % len(PALETTE)]))
        largest = int(sample.budgets.max(initial=0))
        alt = (
            f"Memory budgets of {sample.budgets.shape[1]:,} devices in {len(drawn_classes)} classes "
            f"over {len(rounds)} rounds, up to {format_bytes(largest)}."
        )
        return finish(figure, "fleet", f"Fleet {sample.fleet.source}", alt)


# ---- Summary of a run's fleet, in numbers: ``report.json["fleet"]``


MAX_DRAWN = 2000


def fleet_summary(scenario: Scenario, *, num_devices: int, full_table_bytes: int) -> FleetResult:
    """The classes of the scenario's fleet, from its first devices, over the rounds of training and of following."""
    fleet = load_fleet(scenario.fleet)
    if scenario.budget_factor != 1:
        fleet = fleet.with_shock(at_round=0, factor=scenario.budget_factor)
    count, rounds = min(num_devices, MAX_DRAWN), scenario.refinement.rounds + scenario.elasticity.rounds + 1
    sample = sample_fleet(
        fleet, seed=scenario.seed, num_devices=count, rounds=rounds, full_table_bytes=full_table_bytes
    )
    classes = tuple(row for *_, row in sampled_classes(sample) if row is not None)
    return FleetResult(source=fleet.source, devices=count, rounds=rounds, classes=classes)

"""What a round releases: worked out once, for devices and server alike.

In the open a device's user group gets row updates with their counts, losses and signals. Bounded contents are a vector
of parts, each bounded by itself per device:

========== ==================================================== ===============================
part       what a device adds to its user group's sum           bound
========== ==================================================== ===============================
updates    change of every row that was sent                    ``privacy.clipping.norm``
signals    validation hits of every block                       ``privacy.signals_norm``
counts     whether it has train interactions with a row         ``privacy.counts_norm``
quantile   +1/2 or -1/2: its update was within the bound or not 1/2
========== ==================================================== ===============================

and one more for every statistic that ``privacy.statistics`` names (:mod:`fl_peel.exchange.bounded_statistic`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fl_peel.exchange.bounded_statistic import GroupShape, find_statistic
from fl_peel.exchange.counters import ClassCounts, ClockCounts, RoundTotals
from fl_peel.exchange.open_sums import update_fields
from fl_peel.scenario.scenario import Scenario
from fl_peel.secure.vector import CHECK, Bits, Field, VectorLayout, sum_bits

Part = str
"""Name of a part."""
BUILT_IN: tuple[Part, ...] = ("updates", "signals", "counts", "quantile")
SIGNALS: Part = "signals"


@dataclass(frozen=True)
class Release:
    """Contents of one round's release. bounded: whether devices contribute bounded ``parts`` alone, instead of
    everything in the open.

    signals: whether validation signals are part of it; withheld: whether losses, metrics, times and bytes are left out
    (``privacy.counters``).
    """

    bounded: bool
    parts: tuple[Part, ...]
    signals: bool
    withheld: bool

    @staticmethod
    def from_scenario(scenario: Scenario, *, signals: bool) -> Release:
        """Return the contents of a round's release in this scenario; not every round releases signals.

        Without a mechanism there are no counts, which would reveal a lone device's items.
        """
        privacy = scenario.privacy
        if not privacy.sums_only:
            return Release(False, (), signals, False)
        parts = (
            released(shares_of(scenario), signals=signals) if privacy.noised else ("updates", SIGNALS)[: 1 + signals]
        )
        return Release(True, parts, signals, privacy.counters == "withheld")

    def fields(self, group: GroupShape, update_bits: Bits) -> tuple[Field, ...]:
        """Return the fields of a device's contribution to a user group's blocks, as words of a vector."""
        if not self.bounded:
            return update_fields(group, signals=self.signals, update_bits=update_bits)
        sizes = shapes(group, self.parts)
        return tuple(Field(part, size, update_bits if part == "updates" else 64) for part, size in sizes.items())

    def counter_fields(self, num_classes: int) -> tuple[Field, ...]:
        """Return the fields of a device's counters, as words of a vector."""
        if self.withheld:
            return ()
        return (
            Field("classes", (num_classes, len(ClassCounts.names())), 64),
            Field("clock", (num_classes, len(ClockCounts.names())), 64),
            Field("totals", (len(RoundTotals.names()),), 64),
        )


def wants_signals(scenario: Scenario) -> bool:
    """Return whether any selector of the scenario is the learned controller."""
    return "controller" in (scenario.selector, *scenario.evaluation.selectors)


def shares_of(scenario: Scenario) -> dict[Part, float]:
    """Return the parts' shares of a full round's release, which sum to 1; unused parts are left out."""
    privacy = scenario.privacy
    given: dict[Part, float] = privacy.shares.model_dump(exclude={"stage1"})
    if not wants_signals(scenario):
        given[SIGNALS] = 0.0
    if privacy.clipping.kind != "adaptive":
        given["quantile"] = 0.0
    given |= {name: statistic.share for name, statistic in privacy.statistics.items()}
    total = sum(given.values())
    return {part: share / total for part, share in given.items() if share > 0}


def released(shares: Mapping[Part, float], *, signals: bool) -> tuple[Part, ...]:
    """Return the parts of one round; not every round releases signals."""
    return tuple(part for part in shares if signals or part != SIGNALS)


def shapes(group: GroupShape, parts: Iterable[Part]) -> dict[Part, tuple[int, ...]]:
    """Return the shapes of these parts."""
    built_in: dict[Part, tuple[int, ...]] = {
        "updates": (group.rows, group.dim),
        SIGNALS: (group.blocks,),
        "counts": (group.rows,),
        "quantile": (1,),
    }
    return {part: built_in[part] if part in built_in else find_statistic(part).shape(group) for part in parts}


def bounds(scenario: Scenario, clip_norm: float) -> dict[Part, float]:
    """Return the bound of every part, in the mechanism's norm; ``clip_norm``: that of updates in this round."""
    privacy = scenario.privacy
    built_in = {"updates": clip_norm, SIGNALS: privacy.signals_norm, "counts": privacy.counts_norm, "quantile": 0.5}
    return built_in | {name: statistic.norm for name, statistic in privacy.statistics.items()}


def update_bits(scenario: Scenario, num_devices: int) -> Bits:
    """Return the width of the words of block updates: see ``secure_aggregation.word_bits``."""
    privacy = scenario.privacy
    honest = not scenario.poisoning.active  # who lies need not keep to a bound
    bounded = honest and not privacy.noised and privacy.clipping.kind in ("flat", "per-block")
    norm = privacy.clipping.norm if bounded else math.inf  # noise of a device's own has no bound
    return sum_bits(scenario.secure_aggregation.word_bits, num_devices, norm)


def layout_of(
    scenario: Scenario, *, num_devices: int, group: GroupShape, num_classes: int, signals: bool
) -> VectorLayout:
    """Return the layout of the vector of a user group's devices in a round of secure aggregation."""
    release = Release.from_scenario(scenario, signals=signals)
    fields = release.fields(group, update_bits(scenario, num_devices))
    return VectorLayout((*fields, *release.counter_fields(num_classes), Field(CHECK, (1,), 64)), num_devices)

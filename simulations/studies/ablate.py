"""`fl-peel ablate`: what each part of PEEL is worth, by leaving it out or changing it, one at a time.

Every variation is a trial of its own, trained and measured like the scenario itself; one that equals the scenario is
not run twice. Finished variations are kept under ``DIR/checkpoints``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from fl_peel.blocks.precision import row_bytes
from fl_peel.blocks.stored import overhead_bytes
from fl_peel.data.population import Population
from fl_peel.errors import ScenarioError
from fl_peel.figures import Estimate
from fl_peel.scenario.scenario import Scenario
from simulations.run_options import StudyArguments
from simulations.scenario_files import validated
from simulations.studies.ablate_report import ABLATE
from simulations.studies.compare import budget_of, flat
from simulations.studies.study import (
    Frame,
    Study,
    aggregated,
    corrected,
    decisive,
    ratio_of,
    ratios_in_json,
    with_interval,
)
from strategies.evaluation.trials import Trial
from strategies.run.stage1_outcome import given_data

BUDGETS = (0.0025, 0.01, 0.05)
BASELINE = "unchanged scenario"
FULL = ("start", "refined")
"""The full tables of a trial: as user groups start with them, and as refined."""
NOTHING = {"recall@20": 0.0, "ndcg@20": 0.0}
"""Figures of a trial in which devices cannot take part."""
EPSILONS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Values of epsilon of the whole run."""
POPULATION = "population"
POPULATIONS = (1_000, 10_000, 100_000, 1_000_000)
"""Synthetic devices; only where the part is named, as they take a while."""
NUM_ITEMS, WORLDS = 2_000, 16
"""Items and groups of taste of the synthetic populations: as many items as a small shop has."""
GROUP_SHARE = 0.1
"""Share of epsilon for the answer which user group a device is in, where the scenario asks none and so gives none."""


@dataclass(frozen=True)
class Variation:
    """A variation. part: of the method; setting: what it is changed to; scenario: with that change alone."""

    part: str
    setting: str
    scenario: Scenario

    @property
    def name(self) -> str:
        """Return the name of its trial."""
        return f"{self.part}: {self.setting}" if self.setting else self.part


def ablate(
    scenario: str | Path | Scenario,
    budgets: Iterable[float] = BUDGETS,
    *,
    seeds: int = 1,
    parts: Iterable[str] | None = None,
    **arguments: Unpack[StudyArguments],
) -> dict[str, Any]:
    """Measure every variation at every budget and write ablate.json, ablate.csv, ablate.html and ablate.svg.

    parts: only these (None: all); seeds: how many, from the scenario's on; arguments:
    :class:`simulations.run_options.StudyArguments`.

    Raises:
        FlPeelError: a mistake in the scenario, data or profiles, or a failed engine; one line each.
    """
    frame = Frame.from_scenario(scenario, arguments)
    shares = tuple(sorted(set(budgets)))
    chosen = None if parts is None else list(parts)
    by_seed = list(frame.by_seed(seeds, lambda study: _one_seed(study, shares, chosen)).values())
    devices = min(one["devices"] for one in by_seed)
    figures = {
        "full_table": with_interval(aggregated([[one["full_table"]] for one in by_seed])[0], devices),
        "rows": over_scenario(by_seed, devices),
        "seeds": seeds,
    }
    return frame.written(figures, ABLATE)


def _one_seed(study: Study, shares: tuple[float, ...], parts: list[str] | None) -> dict[str, Any]:
    chosen = variations(study, shares)
    if parts is not None and POPULATION in parts:
        chosen += populations(study)
    if parts is not None:
        known = list(
            dict.fromkeys([*(v.part for v in chosen[1:]), *([POPULATION] if _is_noised(study.scenario) else [])])
        )
        unknown = [part for part in parts if part not in known]
        if unknown:
            raise ScenarioError(f"--parts: {unknown[0]!r} is not a part of the method; choose from {', '.join(known)}")
        chosen = [v for v in chosen if v.part in (BASELINE, *parts)]
    trials: list[Trial] = []
    named: dict[str, str] = {}  # variation -> the trial that measures it
    for variation in chosen:
        content = [decisive(variation.scenario), variation.scenario.selector]
        same = next((t for t in trials if [decisive(t.scenario), t.scenario.selector] == content), None)
        if same is None:
            precision = variation.scenario.blocks.precision
            selector = variation.scenario.selector
            same = Trial(variation.name, variation.scenario, shares, (precision,), (selector,), full_tables=True)
            trials.append(same)
        named[variation.name] = same.name
    results = study.trials(trials)
    rows = []
    for variation in chosen:
        result = results[named[variation.name]]
        sizes = result["group_sizes"]
        shape = {"user_groups": len(sizes), "smallest_group": min(sizes, default=0), "blocks": result["num_blocks"]}
        full = {f"{when}_full": result["full_table"].get(when, NOTHING) for when in FULL}
        rows += [
            {"part": variation.part, "setting": variation.setting, **shape, **full}
            | {key: value for key, value in flat(row).items() if key != "seconds"}
            for row in result["rows"]
        ]
    full = results[BASELINE]["full_table"]
    whole = {**full.get("global", full["start"]), "bytes": full["bytes"]}
    return {"rows": rows, "full_table": whole, "devices": study.tested_devices}


def over_scenario(by_seed: Sequence[dict[str, Any]], num_devices: int) -> list[dict[str, Any]]:
    """The rows of all seeds as one, with intervals in place of replicates, and each variation's recall over that of the
    scenario as it is: ``to_scenario`` at the same budget, ``start_full_to_scenario`` and ``refined_full_to_scenario``
    of the full tables ({"value", "low", "high"}, paired), with p-values that are corrected for all of these ratios,
    ``p_holm`` after the same prefixes.
    """
    rows = aggregated([one["rows"] for one in by_seed])
    full = {when: aggregated([[row[f"{when}_full"] for row in one["rows"]] for one in by_seed]) for when in FULL}
    first = {row["share"]: place for place, row in reversed(list(enumerate(rows)))}
    lines: list[dict[str, Any]] = []
    ratios: list[dict[tuple[Any, ...], Estimate | None]] = []
    for place, row in enumerate(rows):
        line = {key: value for key, value in row.items() if key not in {f"{when}_full" for when in FULL}}
        parts = {"": with_interval(line, num_devices)}
        compared = {("", row["share"]): (line, rows[first[row["share"]]])}
        for when, tables in full.items():
            parts[f"{when}_full_"] = with_interval(tables[place], num_devices)
            compared[f"{when}_full_", None] = (tables[place], tables[first[row["share"]]])  # the same at all budgets
        lines.append({f"{prefix}{key}": value for prefix, one in parts.items() for key, value in one.items()})
        variation = row["part"], row["setting"]
        known = compared.items() if row["part"] != BASELINE else ()
        ratios.append({(*variation, *key): ratio_of(*two, num_devices) for key, two in known})
    p_values = corrected({key: ratio for some in ratios for key, ratio in some.items()})
    for line, some in zip(lines, ratios, strict=True):
        for key, ratio in some.items():
            _, _, prefix, _ = key
            line |= ratios_in_json(f"{prefix}to_scenario", ratio)
            line |= {f"{prefix}p_holm": p_values[key]} if key in p_values else {}
    return lines


def variations(study: Study, shares: Sequence[float]) -> list[Variation]:
    """The scenario itself first, then one change at a time."""
    base = study.scenario
    dim, num_users = base.pretraining.embedding_dim, study.splits.num_users
    rows = [Variation(BASELINE, "", base)]

    def add(part: str, setting: str, **changes: Any) -> None:
        rows.append(Variation(part, setting, changed(base, **changes)))

    slices = base.pretraining.diversity_slices
    weight = base.pretraining.diversity_weight or 0.1
    if slices > 1:
        plain = {"diversity_weight": 0.0}
        add("diversity", "principal axes", pretraining=plain | {"diversity_form": "axes"})
        add("diversity", "off", pretraining=plain | {"diversity_form": "none"})
        add("diversity", f"cosine {weight:g}", pretraining={"diversity_weight": weight, "diversity_form": "cosine"})
    add("controller", "off, popularity", selector="popularity")
    add("controller", "off, random", selector="random")
    add("controller", "on", selector="controller")
    add("grouping", "off", user_groups={"count": 1, "min_size": 1})
    add("neighbours", "off", user_groups={"neighbour_weight": 0.0})
    add("refinement", "off", refinement={"rounds": 0})
    add("refinement and neighbours", "off", refinement={"rounds": 0}, user_groups={"neighbour_weight": 0.0})
    for count in (1, 4, 16):
        if dim % count == 0:
            add("slices", str(count), blocks={"num_slices": count})
    for kind in ("contiguous", "popularity", "interest-popularity", "single"):
        count = 1 if kind == "single" else fitting_groups(study, shares)
        setting = kind if kind == "single" else f"{kind}, {count}"
        add("item groups", setting, blocks={"item_groups": kind, "count": count})
    least = base.user_groups.min_size
    for count in (1, 4, 16, 64, 128, 256):
        if count == 1 or count * least <= num_users:
            groups = {"count": count, "min_size": least if count > 1 else 1}
            add("user groups", str(count), user_groups=groups, privacy=_answers(base) if count > 1 else {})
    rows += noises(base)
    rows += collections(study)
    return rows


def _answers(base: Scenario) -> dict[str, float]:
    """Return what devices spend on telling their user group, where the scenario has one group."""
    target = base.privacy.target_epsilon
    asked = base.pretraining.by_devices and base.privacy.group_epsilon is None
    return {"group_epsilon": target * GROUP_SHARE} if asked and target is not None else {}


def noises(base: Scenario) -> list[Variation]:
    """More noise and less, and none, where stage 1 by devices is under a mechanism."""
    if not _is_noised(base):
        return []
    share = (base.privacy.group_epsilon or 0.0) / (base.privacy.target_epsilon or math.inf)
    rows = []
    for epsilon in EPSILONS:
        answer = share * epsilon or base.privacy.group_epsilon
        privacy = {"target_epsilon": epsilon, "noise_multiplier": None, "group_epsilon": answer}
        rows.append(Variation("noise", f"epsilon {epsilon:g}", changed(base, privacy=privacy)))
    return [*rows, Variation("noise", "none", changed(base, privacy=_without_noise()))]


def _is_noised(base: Scenario) -> bool:
    """Whether stage 1 by devices is under a mechanism."""
    return base.privacy.noised and base.pretraining.by_devices


def _without_noise() -> dict[str, Any]:
    """Keys of ``privacy`` that differ where nothing is noised."""
    nothing = dict.fromkeys(("target_epsilon", "noise_multiplier", "group_epsilon"))
    return nothing | {"mechanism": "none", "statistics": {}, "clipping": {"kind": "none"}}


def populations(study: Study) -> list[Variation]:
    """Vary the population from a thousand synthetic devices to a million, under the scenario's noise and without any:
    they are written beside the checkpoints. delta falls with the number of devices: a tenth of one of them.
    """
    base, rows = study.scenario, []
    if not _is_noised(base):
        return []
    for number in POPULATIONS:
        people = Population(base.seed, number, NUM_ITEMS, num_groups=WORLDS)
        folder = study.checkpoints.store.folder / f"population-{number}-{base.seed}"
        people.write(folder)  # each time: nobody has checked what lies there
        data = {"name": None, "path": str(folder.absolute()), "min_rating": None}
        noised = {"delta": min(base.privacy.delta, 0.1 / number)}
        for words, privacy in (
            (f"epsilon {base.privacy.target_epsilon or 0:g}", noised),
            ("no noise", _without_noise()),
        ):
            rows.append(Variation(POPULATION, f"{number:,}, {words}", changed(base, data=data, privacy=privacy)))
    return rows


def collections(study: Study) -> list[Variation]:
    """Vary how much the server collects; for spectral pretraining with the rest from devices, and without it."""
    base, rows = study.scenario, []
    if base.pretraining.model == "spectral":
        shares = (0.0, 0.1, 0.25, 0.5, 1.0)
        sources = [("devices", "and devices"), ("collected", "alone")]
        # alone, devices would choose the filter in the clear
        for source, words in sources[: 1 if base.privacy.noised and base.pretraining.spectral().chooses else 2]:
            for share in shares if source == "devices" else shares[1:]:
                part = base.pretraining.collected.model_copy(update={"share": share})
                scenario = changed(base, pretraining={"collected": part, "source": source})
                if not share or given_data(scenario, study.splits.train)[1].any():
                    rows.append(Variation("collected", f"{share:.0%} {words}", scenario))
        return rows
    target = base.privacy.target_epsilon
    for share in (0.1, 0.25, 0.5, 1.0):
        collected = base.pretraining.collected.model_copy(update={"share": share})
        changes: dict[str, Any] = {"pretraining": {"collected": collected}}
        if share < 1 and target is not None and base.privacy.group_epsilon is None:
            changes["privacy"] = {"group_epsilon": target * GROUP_SHARE}  # others now answer which group they are in
        if given_data(changed(base, **changes), study.splits.train)[1].any():  # else so few that nobody consents
            rows.append(Variation("collected", f"{share:.0%}", changed(base, **changes)))
    return rows


def changed(scenario: Scenario, **changes: Any) -> Scenario:
    """A copy with some keys of some parts changed, validated."""
    content = scenario.model_dump(mode="json")
    for part, change in changes.items():
        if isinstance(change, dict):
            plain = {k: v.model_dump(mode="json") if hasattr(v, "model_dump") else v for k, v in change.items()}
            content[part] = content[part] | plain
        else:
            content[part] = change
    return validated(Scenario, content, scenario.name)


def fitting_groups(study: Study, shares: Sequence[float]) -> int:
    """Return as few item groups as let the least budget that holds anything hold two blocks."""
    scenario, num_items = study.scenario, study.splits.num_items
    dim, precision = scenario.pretraining.embedding_dim, scenario.blocks.precision
    cost = row_bytes(dim // scenario.blocks.num_slices, precision)
    ids = 12
    rooms = [budget_of(study, share) - overhead_bytes(dim) for share in shares]
    room = min((room for room in rooms if room >= 2 * (cost + ids)), default=2 * (cost + ids))
    rows = max(1, (room // 2 - ids) // cost)
    return min(num_items, max(2, -(-num_items // rows)))

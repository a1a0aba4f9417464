"""`fl-peel ablate`: what each part of PEEL is worth, by leaving it out or changing it, one at a time.

Every variation is a trial of its own, trained and measured like the scenario itself; one that equals the scenario is
not run twice. Finished variations are kept under ``DIR/checkpoints``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from matplotlib.ticker import FuncFormatter

from fl_peel.blocks.layout import row_bytes
from fl_peel.blocks.stored import overhead_bytes
from fl_peel.data.datasets import Population
from fl_peel.errors import ScenarioError
from fl_peel.figures import Estimate
from fl_peel.json_codec import from_plain
from fl_peel.scenario.scenario import Scenario
from simulations.report import drawing
from simulations.report.drawing import INK, Plot
from simulations.report.render import Chart, Page, ResultKind, Section
from simulations.report.run_files import SIGNIFICANT, starred
from simulations.report.table_view import TableView, format_bytes, format_margin, format_metric, format_share
from simulations.scenario_files import StudyArguments, validated
from simulations.studies.compare import budget_of, flat
from simulations.studies.schema import AblateResult, AblateRow
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
    :class:`simulations.scenario_files.StudyArguments`.

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


def _lines(rows: Sequence[AblateRow]) -> dict[tuple[str, str], dict[float, AblateRow]]:
    lines: dict[tuple[str, str], dict[float, AblateRow]] = {}
    for row in rows:
        lines.setdefault((row.component, row.setting), {})[row.share] = row
    return lines


def ablate_view(result: AblateResult) -> TableView:
    """One line a variation: groups, blocks, recall at each budget, and of the full tables."""
    shares = sorted({row.share for row in result.rows})
    body = []
    for (component, setting), by_share in _lines(result.rows).items():
        first = next(iter(by_share.values()))
        measured = [*(by_share[share] for share in shares), first.start, first.refined]
        counts = (f"{first.user_groups}", f"{first.smallest_group}", f"{first.blocks:,}")
        body.append((component, setting, *counts, *(format_margin(one.spread("recall@20")) for one in measured)))
    columns = (
        *("part", "setting", "user groups", "smallest group", "blocks"),
        *map(format_share, shares),
        *("full, before refinement", "full, refined"),
    )
    note = "Recall@20 on test, by budget as a share of the fp32 full table; each line changes one part of the scenario."
    return TableView("Contribution of each part", columns, tuple(body), 2, note, terminal=True)


def ratios_view(result: AblateResult) -> TableView:
    """Return every variation's recall over that of the scenario as it is, by budget and of the full tables."""
    shares = sorted({row.share for row in result.rows})
    body = []
    for (component, setting), by_share in list(_lines(result.rows).items())[1:]:
        first = next(iter(by_share.values()))
        ratios = [starred(by_share[share].to_scenario, by_share[share].p_holm) for share in shares]
        ratios.append(starred(first.start_full_to_scenario, first.start_full_p_holm))
        ratios.append(starred(first.refined_full_to_scenario, first.refined_full_p_holm))
        body.append((component, setting, *ratios))
    columns = ("part", "setting", *map(format_share, shares), "full, before refinement", "full, refined")
    note = (
        "Recall@20 on test relative to that of the unchanged scenario. In brackets: paired 95 % intervals. *: differs "
        f"significantly, corrected for all comparisons of this table (Holm, p < {SIGNIFICANT})."
    )
    return TableView("Relative to the unchanged scenario", columns, tuple(body), 2, note)


@drawing.in_both_forms
def ablate_plot(result: AblateResult) -> Plot:
    """Recall of every variation as a ratio to that of the scenario itself, one mark a budget."""
    lines = list(_lines(result.rows).items())
    (_, base), others = lines[0], lines[1:]
    shares = sorted(base)
    figure, (axes,) = drawing.new_figure(1.3 + 0.24 * len(others))
    for index, share in enumerate(shares):
        reference = base[share].recall.value
        if reference <= 0:
            continue
        ratios = [by_share[share].recall.value / reference for _, by_share in others]
        places = [len(others) - i + 0.16 * (index - (len(shares) - 1) / 2) for i in range(len(others))]
        style = drawing.line_kwargs(index) | {"linestyle": "none", "label": format_share(share)}
        axes.plot(ratios, places, **style)
        known = [by_share[share].to_scenario for _, by_share in others]
        shown = [ratio or Estimate(value) for ratio, value in zip(known, ratios, strict=True)]
        drawing.error_bars(axes, places, shown, style["color"], across=True)
    axes.axvline(1.0, color=INK, linewidth=1.1, linestyle=(0, (5, 3)), zorder=2)
    labels = [f"{part}: {setting}" for (part, setting), _ in others]
    axes.set_yticks(range(len(others), 0, -1), labels)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}"))
    # names at the left leave little room below the axes of a telephone
    axes.set_xlabel(
        "Recall@20 (test), relative to the unchanged scenario", loc="right" if drawing.is_narrow() else "center"
    )
    figure.legend(
        title="budget",
        loc="outside upper right",
        ncols=min(max(len(shares), 1), 4 if drawing.is_narrow() else 9),
        frameon=False,
    )
    worst = min(others, key=lambda line: sum(row.recall.value for row in line[1].values()), default=None)
    alt = f"Dot chart of {len(others)} variations by their recall relative to the scenario."
    if worst is not None:
        alt += f" Lowest: {worst[0][0]}, {worst[0][1]}."
    return drawing.finish(figure, "ablate", "Contribution of each part", alt)


Points = list[tuple[float, Estimate]]
"""Recall of full tables, each with its place on the axis across."""


@drawing.in_both_forms
def _full_tables_plot(
    name: str, title: str, across: str, lines: Mapping[str, Points], log: int = 0, level: Estimate | None = None
) -> Plot | None:
    """Recall of the full tables, a line for each name; None where no line has two points. log: base of the axis across,
    where that is logarithmic; level: a line across all, of what has no place on the axis.
    """
    if max((len(points) for points in lines.values()), default=0) < 2:
        return None
    figure, (axes,) = drawing.new_figure(3.1)
    for index, (words, points) in enumerate(lines.items()):
        dashed = words.endswith(WHEN["start"])  # lies over the one after refinement, which has the error bars
        style = drawing.line_kwargs(index // 2 if WHEN["refined"] in "".join(lines) else index, dashed=dashed)
        x, recalls = zip(*points, strict=True)
        shown = [Estimate(recall.value) for recall in recalls] if dashed else recalls
        drawing.draw_line(axes, drawing.Line(words, x, shown), style | {"label": words})
    if level is not None:
        axes.axhline(level.value, color=INK, linewidth=1.1, linestyle=(0, (5, 3)), label="without noise")
    if log:
        axes.set_xscale("log", base=log)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlabel(across)
    axes.set_ylabel("Recall@20 (test), full tables")
    figure.legend(loc="outside upper center", ncols=1 if drawing.is_narrow() else 2, frameon=False)
    last = "; ".join(f"{words} {points[-1][1].value:.4f}" for words, points in lines.items())
    return drawing.finish(figure, name, title, f"{title}, full tables; at the right end: {last}.")


WHEN = {"start": "before refinement", "refined": "refined"}
SOURCES = {"and devices": "the rest by devices", "alone": "collected share alone"}
"""Names for readers."""


def _variations(rows: Sequence[AblateRow], component: str) -> list[tuple[str, AblateRow]]:
    """Return the settings of a component, each with one of its rows: figures of full tables are the same in all."""
    lines = _lines(rows).items()
    return [(setting, next(iter(by_share.values()))) for (part, setting), by_share in lines if part == component]


def collected_plot(rows: Sequence[AblateRow]) -> Plot | None:
    """Recall of the full tables against the share that is collected, before and after refinement, by source."""
    lines: dict[str, Points] = {}
    for setting, row in _variations(rows, "collected"):
        share, _, source = setting.partition("% ")
        for when, quality in (("start", row.start), ("refined", row.refined)):
            name = f"{SOURCES.get(source, source)}, {WHEN[when]}" if source else WHEN[when]
            lines.setdefault(name, []).append((float(share.rstrip("%")), quality.recall))
    return _full_tables_plot("collected", "Recall by collected share", "Collected share, per cent", lines)


def noise_plot(rows: Sequence[AblateRow]) -> Plot | None:
    """Recall of the full tables as stage 1 leaves them against epsilon, next to that without noise."""
    recalls = {setting.partition(" ")[2]: row.start.recall for setting, row in _variations(rows, "noise")}
    lines = {"under noise": [(float(epsilon), recall) for epsilon, recall in recalls.items() if epsilon]}
    across = "Epsilon of the whole run, user level"
    return _full_tables_plot("noise", "Recall by epsilon", across, lines, 2, recalls.get(""))


def population_plot(rows: Sequence[AblateRow]) -> Plot | None:
    """Recall of the full tables as stage 1 leaves them against the number of devices, under noise and without."""
    lines: dict[str, Points] = {}
    for setting, row in _variations(rows, "population"):
        number, _, words = setting.rpartition(", ")
        lines.setdefault(words, []).append((int(number.replace(",", "")), row.start.recall))
    return _full_tables_plot("population", "Recall by number of devices", "Devices (synthetic)", lines, 10)


def ablate_page(result: AblateResult) -> Page:
    """Return the page of an ablation."""
    full, rows = result.full_table, result.rows
    population = (
        "Group tables before refinement, on synthetic devices: the same noise is smaller relative to a sum over more "
        "devices."
    )
    parts = (
        Chart(
            lambda: ablate_plot(result),
            "One mark per budget; right of the dashed line: better than the unchanged scenario.",
        ),
        ablate_view(result),
        ratios_view(result),
        Chart(
            lambda: collected_plot(rows),
            "Dashed: group tables before federated refinement. Solid: after it.",
        ),
        Chart(
            lambda: noise_plot(rows),
            "Group tables before refinement. Epsilon covers everything that devices send, stage 1 included.",
        ),
        Chart(lambda: population_plot(rows), population),
    )
    return Page(
        f"{result.name}: contribution of each part",
        [Section("parts", "Contribution of each part", parts)],
        ["One part of the method at a time is left out or changed; all other keys are those of the scenario."],
        [
            ("full table, fp32", format_bytes(full.bytes)),
            ("Recall@20 of the full table", format_metric(full.recall.value)),
            ("variations", str(len(_lines(rows)) - 1)),
            ("seeds", str(result.seeds)),
        ],
        f"fl-peel ablate {result.name}",
    )


ABLATE = ResultKind("ablate", partial(from_plain, AblateResult), ablate_page)

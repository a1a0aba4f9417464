"""Results as tables of text: one `TableView` each, shown alike by the terminal (rich) and the page (HTML)."""

from __future__ import annotations

from rich.table import Table

from simulations.report.tables.labels import FULL_TABLES, METHODS
from simulations.report.tables.secure import secure_rows
from simulations.report.tables.stages import acceptance_views, stage1_views
from simulations.report.tables.table_view import (
    ABSENT,
    TableView,
    format_bytes,
    format_interval,
    format_kilobytes,
    format_metric,
    format_share,
)
from strategies.figures.schema import FULL_GLOBAL, FULL_REFINED, BudgetRow, Gain, Interval, Ratio, RunResult

NOT_MEASURED = "Not measured (evaluation.full_tables is false), so that ratios are not available."


def full_table_view(result: RunResult) -> TableView:
    """The full fp32 table, as pretrained, as user groups start with it, and as refined; its bytes alone where it was
    not measured.
    """
    full = result.full_table
    tables = (("global", full.globally), ("start", full.start), ("refined", full.refined))
    over_global = any(quality is not None and quality.to_global is not None for _, quality in tables)
    rows = tuple(
        (
            FULL_TABLES[name],
            format_bytes(full.bytes),
            with_interval(quality.recall, quality.recall_interval),
            with_interval(quality.ndcg, quality.ndcg_interval),
            *((format_over(quality.to_global),) if over_global else ()),
        )
        for name, quality in tables
        if quality is not None
    )
    note = _gained(full.gain) if rows else NOT_MEASURED
    rows = rows or (("any", format_bytes(full.bytes), *(format_metric(None),) * 2),)
    columns: tuple[str, ...] = ("table", "size", f"Recall@{result.top_n}", f"NDCG@{result.top_n}")
    columns += ("relative to global",) if over_global else ()
    return TableView("Full item table, fp32", columns, rows, note=note)


def _gained(gain: Gain | None) -> str:
    """Return a sentence on what refinement adds."""
    if gain is None:
        return ""
    return (
        f"Paired gain of refinement in recall: {gain.mean:+.4f} "
        f"[{gain.low:+.4f}, {gain.high:+.4f}] (95 % interval over {gain.devices:,} devices)."
    )


def with_interval(value: float, ends: Interval | None) -> str:
    """A figure and the ends of its interval, if known."""
    low, high = (None, None) if ends is None else (ends.low, ends.high)
    return format_interval(value, low, high)


def format_over(ratio: Ratio | None) -> str:
    """A ratio and the ends of its interval; a dash where there is nothing to compare with."""
    return ABSENT if ratio is None else format_interval(ratio.value, ratio.low, ratio.high, digits=3)


def budgets_view(result: RunResult) -> TableView:
    """Elastic embeddings per budget: recall, and over that of the full global table and of the strongest of the run."""
    named = dict.fromkeys(("global", result.full_table.strongest))
    against = [name for name in named if any(_against(row, name) is not None for row in result.budgets)]
    rows = tuple(
        (
            row.precision,
            row.selector,
            format_share(row.share),
            format_kilobytes(row.budget_bytes),
            format_kilobytes(row.stored_bytes_max),
            with_interval(row.recall, row.recall_interval),
            format_metric(row.ndcg),
            *(format_over(_against(row, name)) for name in against),
        )
        for row in sorted(result.budgets, key=lambda row: (row.precision, row.selector, row.share))
    )
    columns = (
        *("precision", "selector", "share", "budget KB", "stored KB"),
        *(f"Recall@{result.top_n}", f"NDCG@{result.top_n}"),
        *(f"relative to {'global' if name == 'global' else 'best'}" for name in against),
    )
    best = f" ({FULL_TABLES[strongest]})" if (strongest := result.full_table.strongest) is not None else ""
    note = (
        "Share: budget as a share of the fp32 full table. Stored: largest size on any device. 1 KB = 1000 bytes. "
        f"Relative to: ratio of Recall@{result.top_n} to that of the full global table, and of the best full table on "
        f"the test part{best}. In brackets: 95 % intervals over devices, paired for ratios."
    )
    return TableView("Elastic embeddings by budget", columns, rows, 2, note)


def _against(row: BudgetRow, name: str | None) -> Ratio | None:
    """Recall over that of the global table, or of the strongest, by name."""
    return row.to_global if name == "global" else row.to_strongest


def device_classes_view(result: RunResult) -> TableView:
    """Each device class under its own moving budget; a dash for what devices withhold."""
    counters_shown = result.privacy is None or not result.privacy.withholds
    own = own_full_tables(result)
    against = [name for name in (FULL_REFINED, FULL_GLOBAL) if any(name in one for one in own.values())]

    def counted(text: str) -> str:
        return text if counters_shown else ABSENT

    rows = tuple(
        (
            name,
            f"{row.devices:,}",
            format_kilobytes(row.budget_bytes_mean),
            _with_margin(row.recall, row.recall_margin),
            *(format_metric(own.get(name, {}).get(table)) for table in against),
            counted(f"{row.reselections:,}"),
            f"{row.budget_violations:,} / {counted(f'{row.working_violations:,}')}",
            counted(format_kilobytes(row.peak_bytes_mean)),
            counted(format_bytes(row.download_bytes)),
            counted(format_bytes(row.upload_bytes)),
            counted(f"{row.costs.virtual_seconds:,.1f}"),
            counted(f"{row.costs.energy_j:,.1f}"),
            counted(f"{row.costs.dropped:,}"),
        )
        for name, row in result.device_classes.items()
    )
    columns = (
        *("device class", "devices", "budget KB", f"Recall@{result.top_n}"),
        *(METHODS[table] for table in against),
        *("re-selections", "violations"),
        "peak KB",
        *("down", "up", "virtual s", "energy J", "dropped"),
    )
    note = (
        "±: half the width of the 95 % interval over devices. Violations: of budgets / of working memory, over all "
        "rounds. Peak: stored bytes plus the memory of block selection and training."
    )
    if against:
        note += f" Full tables: Recall@{result.top_n} of the same devices with full tables."
    if not counters_shown:
        note += " A dash: not reported by devices during rounds (privacy.counters); the rest comes from the evaluation."
    return TableView("Device classes", columns, rows, note=note)


def own_full_tables(result: RunResult) -> dict[str, dict[str, float]]:
    """Recall of the devices of each class, were they served by full tables, by class and table; where measured."""
    rows = result.fairness.by_class if result.fairness is not None else ()
    return {
        row.device_class: {
            table: value for table in (FULL_REFINED, FULL_GLOBAL) if (value := row.recall.get(table)) is not None
        }
        for row in rows
    }


def _with_margin(value: float | None, margin: float | None) -> str:
    return format_metric(value) + ("" if value is None or margin is None else f" ±{margin:.4f}")


def costs_view(result: RunResult) -> TableView:
    """Bytes and seconds: totals over the rounds, means per device, wall time per stage, peak memory."""
    rounds, moved = result.rounds, result.bytes_per_device
    rows = [
        ("bytes down, all rounds", format_bytes(sum(row.download_bytes for row in rounds))),
        ("bytes up, all rounds", format_bytes(sum(row.upload_bytes for row in rounds))),
    ]
    if moved is not None:
        rows.append(("bytes down per device, mean", format_bytes(moved.download_mean)))
        rows.append(("bytes up per device, mean", format_bytes(moved.upload_mean)))
    rows.append(("rounds", f"{len(rounds):,}"))
    rows.append(("failed devices, all rounds", f"{sum(row.failures for row in rounds):,}"))
    rows += [(f"{stage}, s", f"{seconds:,.1f}") for stage, seconds in result.stages.items()]
    rows.append(("all stages, s", f"{sum(result.stages.values()):,.1f}"))
    if result.peak_rss_bytes is not None:
        rows.append(("peak memory", format_bytes(result.peak_rss_bytes)))
    rows += secure_rows(result.secure_aggregation) if result.secure_aggregation is not None else []
    return TableView("Bytes and seconds", ("quantity", "value"), tuple(rows))


def summary_tables(result: RunResult) -> list[Table]:
    """Return the terminal's closing tables: stage 1, full table, refinement, budgets, device classes, costs."""
    views = (
        *stage1_views(result)[:1],
        full_table_view(result),
        *acceptance_views(result),
        budgets_view(result),
        device_classes_view(result),
        costs_view(result),
    )
    return [view.to_rich() for view in views]

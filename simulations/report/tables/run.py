"""Results as tables of text: one `TableView` each, shown alike by the terminal (rich) and the page (HTML)."""

from __future__ import annotations

from rich.table import Table

from simulations.report.tables.secure import secure_rows
from simulations.report.tables.stages import kept_views, stage1_views
from simulations.report.tables.view import (
    ABSENT,
    TableView,
    format_bytes,
    format_kilobytes,
    format_metric,
    format_ratio,
    format_share,
)
from strategies.figures.schema import Gain, RunResult

NOT_MEASURED = "Not measured (evaluation.full_tables), so that there are no ratios either."


def full_table_view(result: RunResult) -> TableView:
    """The full fp32 table, as pretrained, as user groups start with it, and as refined; its bytes alone where it was
    not measured.
    """
    full = result.full_table
    tables = (("global", full.globally), ("start of the user groups", full.start), ("refined", full.refined))
    rows = tuple(
        (
            name,
            format_bytes(full.bytes),
            format_metric(quality.recall),
            format_metric(quality.ndcg),
            format_ratio(quality.recall, _full_recall(result)),
        )
        for name, quality in tables
        if quality is not None
    )
    note = _gained(full.gain) if rows else NOT_MEASURED
    rows = rows or (("any", format_bytes(full.bytes), *(format_metric(None),) * 3),)
    columns = ("table", "size", f"Recall@{result.top_n}", f"NDCG@{result.top_n}", "ratio")
    return TableView("Full item table, fp32", columns, rows, note=note)


def _gained(gain: Gain | None) -> str:
    """What refinement adds, in a sentence."""
    if gain is None:
        return ""
    return (
        f"Refined less start, device by device: {gain.mean:+.4f} "
        f"[{gain.low:+.4f}, {gain.high:+.4f}] (95 % interval over {gain.devices:,} devices)."
    )


def _full_recall(result: RunResult) -> float | None:
    """What ratios are over."""
    full = result.full_table.globally or result.full_table.start
    return None if full is None else full.recall


def budgets_view(result: RunResult) -> TableView:
    """Elastic embeddings per budget; the ratio is recall over that of the full global table."""
    base = _full_recall(result)
    rows = tuple(
        (
            row.precision,
            row.selector,
            format_share(row.share),
            format_kilobytes(row.budget_bytes),
            format_kilobytes(row.stored_bytes_max),
            format_metric(row.recall),
            format_metric(row.ndcg),
            format_ratio(row.recall, base),
        )
        for row in sorted(result.budgets, key=lambda row: (row.precision, row.selector, row.share))
    )
    columns = (
        *("precision", "selector", "share", "budget KB", "stored KB"),
        *(f"Recall@{result.top_n}", f"NDCG@{result.top_n}", "ratio"),
    )
    over = "global table's" if result.full_table.globally or not result.full_table.start else "tables' at the start"
    note = (
        "Share: of the fp32 full table. Stored: the largest of any device. "
        f"Ratio: Recall@{result.top_n} over the full {over}. 1 KB = 1000 bytes."
    )
    return TableView("Elastic embeddings by budget", columns, rows, 2, note)


def device_classes_view(result: RunResult) -> TableView:
    """Each device class under its own moving budget; a dash for what devices withhold."""
    said = result.privacy is None or not result.privacy.withholds

    def counted(text: str) -> str:
        return text if said else ABSENT

    rows = tuple(
        (
            name,
            f"{row.devices:,}",
            format_kilobytes(row.budget_bytes_mean),
            format_metric(row.recall),
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
        *("device class", "devices", "budget KB", f"Recall@{result.top_n}", "re-selections", "violations"),
        "peak KB",
        *("down", "up", "virtual s", "energy J", "dropped"),
    )
    note = (
        "Violations: of budgets / of working memory, over all rounds. Peak: what devices store, and what choosing and "
        "training take besides."
    )
    if not said:
        note += " Devices withhold what they do in rounds (privacy.counters); the rest is of the evaluation."
    return TableView("Device classes", columns, rows, note=note)


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
    return TableView("Bytes and seconds", ("what", "value"), tuple(rows))


def summary_tables(result: RunResult) -> list[Table]:
    """Return the terminal's closing tables: stage 1, full table, refinement, budgets, device classes, costs."""
    views = (
        *stage1_views(result)[:1],
        full_table_view(result),
        *kept_views(result),
        budgets_view(result),
        device_classes_view(result),
        costs_view(result),
    )
    return [view.to_rich() for view in views]

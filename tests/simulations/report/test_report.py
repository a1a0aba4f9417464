"""A result becomes files: complete, exact, self-contained, the same each time, and all of them or none."""

import csv
import io
import json
import math
import os
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fl_peel.errors import ReportError
from fl_peel.figures import Estimate
from fl_peel.privacy.report import PrivacyReport
from simulations.report.drawing import Plot, spread, themed
from simulations.report.result_files import write_files, write_results
from simulations.report.run_files import read_report, run_page, verdicts
from simulations.report.table_view import TableView, format_bytes, format_share, nested_views
from simulations.studies.compare_report import (
    COMPARE,
    ceilings_view,
    compare_alt,
    compare_details_view,
    compare_plot,
    compare_verdicts,
    compare_view,
    verdict_view,
)
from strategies.figures.schema import FullTableResult, Quality, RunResult, UserGroupRow, from_json
from tests.helpers.reports import write_report
from tests.helpers.runs import report_figures

NASTY = "<b>low & 'end'</b>"  # a device class that must be escaped
LISTS = ("user_groups", "history", "traces", "time_to_recall", "elastic_traces")  # empty where there is nothing
OPTIONAL = (*LISTS, "bytes_per_device", "peak_rss_bytes", "fairness", "elasticity", "environment")
CLOCK = {
    **{"virtual_seconds": 12.5, "sampled": 4, "unavailable": 0, "excluded": 0},
    **{"stragglers": 0, "memory_dropouts": 0, "memory_drops": 0},
}
COSTS = {
    **{"virtual_seconds": 12.5, "energy_j": 0.5, "dropped": 2, "stragglers": 2},
    **{"memory_dropouts": 0, "memory_drops": 0, "unavailable": 0, "excluded": 0},
}


def budget(share: float, precision: str, recall: float) -> dict:
    num_bytes = round(share * 1_000_000)
    return {
        "share": share,
        "budget_bytes": num_bytes,
        "precision": precision,
        "selector": "controller",
        "recall@20": recall,
        "ndcg@20": recall / 3,  # a float without a short decimal form
        "stored_bytes_max": num_bytes - 7,
        "devices": 12,
        "recall@20_interval": {"low": recall - 0.02, "high": recall + 0.03},
        "ndcg@20_interval": {"low": recall / 3 - 0.01, "high": recall / 3 + 0.01},
        "to_global": {"value": recall / 0.2, "low": recall / 0.2 - 0.05, "high": recall / 0.2 + 0.06},
        "to_strongest": {"value": recall / 0.25, "low": recall / 0.25 - 0.05, "high": recall / 0.25 + 0.06},
    }


def by_round(number: int, download_bytes: int, upload_bytes: int, failures: int, seconds: float) -> dict:
    moved = {"download_bytes": download_bytes, "upload_bytes": upload_bytes, "message_bytes": 7}
    return {"server_round": number, **moved, "devices": 4, "failures": failures, "seconds": seconds, **CLOCK}


def by_class(devices: int, recall: float | None, budget_bytes_mean: float, reselections: int) -> dict:
    return {
        "devices": devices,
        "recall@20": recall,
        "ndcg@20": recall,
        "budget_bytes_mean": budget_bytes_mean,
        "stored_bytes_mean": budget_bytes_mean,
        "reselections": reselections,
        "budget_violations": 0,
        "peak_bytes_mean": 8500.0,
        "working_violations": 17,
        "download_bytes": 2500.0,
        "upload_bytes": 250.0,
        **COSTS,
        **({} if recall is None else {"recall@20_margin": 0.03}),
    }


def measured(number: int, loss: float, recall: float | None) -> dict:
    quality = {"validation recall@20": recall, "validation ndcg@20": recall}
    return {"server_round": number, "virtual_seconds": 60.0 * number, "loss": loss, **quality, "controller loss": None}


def plain_result() -> dict:
    """A made-up run of three rounds: 1 MB full table, two classes, two user groups, two traced devices."""
    return {
        "scenario": {
            "name": "tiny",
            "data": {"name": "planted", "note": "</pre><script>alert(1)</script>"},
            "blocks": {"precision": "int8"},
            "selector": "controller",
        },
        "seed": 7,
        "versions": {"fl-peel": "0.1.0", "numpy": "2.0"},
        "budgets": [
            budget(0.01, "int8", 0.15),
            budget(0.05, "int8", 0.21),
            budget(0.01, "fp32", 0.05),
            budget(0.05, "fp32", 0.1),
        ],
        "device_classes": {NASTY: by_class(8, 0.14, 1234.5, 3), "never seen": by_class(0, None, 0.0, 0)},
        "user_groups": [
            {"group": 0, "devices": 5, "recall@20": 0.3, "ndcg@20": 0.2, "recall@20_margin": 0.1},
            {"group": 1, "devices": 3, "recall@20": 0.1, "ndcg@20": 0.05},
        ],
        "full_table": {
            "bytes": 1_000_000,
            "global": {"recall@20": 0.2, "ndcg@20": 0.1},
            "refined": {
                **{"recall@20": 0.25, "ndcg@20": 0.125, "recall@20_interval": {"low": 0.22, "high": 0.28}},
                "to_global": {"value": 1.25, "low": 1.2, "high": 1.3},
            },
            "strongest": "refined",
        },
        "rounds": [by_round(1, 3000, 500, 0, 0.1), by_round(2, 2000, 400, 1, 0.2), by_round(3, 1000, 300, 0, 0.3)],
        "history": [measured(1, 0.7, None), measured(2, 0.6, 0.1), measured(3, 0.5, 0.2)],
        "traces": [
            {
                "device": 3,
                "device_class": NASTY,
                "budget_bytes": [5000, 1000, 2000],
                "stored_bytes": [4900, 990, None],
                "kept_blocks": [49, 9, None],
            },
            {
                "device": 4,
                "device_class": "never seen",
                "budget_bytes": [None, None, None],
                "stored_bytes": [None, None, None],
                "kept_blocks": [None, None, None],
            },
        ],
        "bytes_per_device": {"download_mean": 750.0, "upload_mean": 150.0},
        "time_to_recall": [],
        "fairness": {
            "metric": "recall@20",
            "worst_class": [],
            "gap": [{"method": "peel", "smallest": "a", "largest": "b", "gap": -0.02}],
            "by_class": [
                {"class": "a", "devices": 8, "budget_bytes": 5.5, "peel": 0.1, "mine": None, "ratio_mine": None}
                | {"margin_peel": 0.01, "margin_mine": None}
            ],
            "over_devices": [],
        },
        "elasticity": {
            "metric": "recall@20",
            "falls": [
                {
                    **{"factor": 0.5, "budget_bytes_mean": 9.5, "stored_bytes_mean": 9.0, "elastic": 0.1, "rigid": 0.0},
                    **{"trained_for": None, "elastic_to_trained_for": None, "budget_violations": 0},
                }
            ],
        },
        "elastic_traces": [],
        "stages": {"pretraining": 1.25, "federation": 0.5},
        "environment": {"nodes": 2, "user_groups": 2, "blocks": 9, "devices": 8, "items": 3, "cpus": 2}
        | {"engine": "simulation"},
        "peak_rss_bytes": 123_456_789,
    }


def run_result() -> RunResult:
    """The same, typed."""
    return from_json(plain_result())


@cache
def drawn_figures() -> tuple[Plot, ...]:
    """Its figures, which take seconds to draw."""
    return tuple(report_figures(run_result()))


def compare_row(method: str, share: float, recall: float, **more: object) -> dict:
    row = {
        "method": method,
        "group_aware": method == "peel",
        "precision": "int8",
        "share": share,
        "stored_bytes_max": round(share * 1_000_000) - 9,
        "recall@20": recall,
        "ndcg@20": recall / 2,
        "seconds": 1.5,
        "chosen": True,
        "validation_recall@20": recall,
    }
    return row | more


def compare_result() -> dict:
    return {
        "full_table": {"recall@20": 0.2, "ndcg@20": 0.1, "bytes": 1_000_000},
        "rows": [
            compare_row("random", 0.01, 0.02),
            compare_row("random", 0.1, 0.16),
            compare_row("peel", 0.01, 0.18, **{"recall@20_std": 0.001, "ndcg@20_std": 0.0005}),
            compare_row("peel", 0.1, 0.15, **{"validation_recall@20": 0.17}),
        ],
        "summary": {
            "budgets": [
                {"share": 0.01, "precision": "int8", "recall@20": 0.18, "to_full_table": 0.9, "rival": "random int8"}
                | {"to_best_without_groups": 9.0}
            ]
        },
        "refinement": {
            "none": {"recall@20": 0.2, "ndcg@20": 0.1},
            "federated": {"recall@20": 0.21, "ndcg@20": 0.11},
            "central": None,
        },
        "scenario": {"name": "tiny"},
        "seed": 7,
    }


def minimal() -> RunResult:
    """The same run with every optional part left out."""
    return from_json({key: value for key, value in plain_result().items() if key not in OPTIONAL})


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run")
    write_report(run_result(), out)
    return out


class Page(HTMLParser):
    """What a browser would see: tags with attributes, ids, text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def sections(self) -> set[str]:
        return {attrs["id"] for tag, attrs in self.tags if tag == "section"}


def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


# --- report.json


def test_json_holds_the_result_to_the_last_digit(written):
    assert json.loads((written / "report.json").read_text(encoding="utf-8")) == plain_result()


@pytest.mark.usefixtures("undrawn")
def test_numpy_scalars_and_lists_are_written_as_plain_values(tmp_path):
    result = run_result()
    quality = Quality(Estimate(np.float64(0.2)), Estimate(np.float64(0.1)))
    full = replace(result.full_table, bytes=np.int32(1_000_000), globally=quality)
    write_report(replace(result, seed=np.int64(7), budgets=list(result.budgets), full_table=full), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == plain_result()


def test_read_report_is_the_inverse(written):
    assert read_report(written) == read_report(written / "report.json") == run_result()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a report"),
        ('{"seed": NaN}', "NaN"),
        ('{"seed": 1}', "is missing"),
        ("[1]", "mapping"),
    ],
)
def test_read_report_refuses_what_is_not_a_report(tmp_path, text, message):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ReportError, match=message) as caught:
        read_report(tmp_path)
    assert "report.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_read_report_names_a_missing_file(tmp_path):
    with pytest.raises(ReportError, match=r"nowhere\.json: cannot read"):
        read_report(tmp_path / "nowhere.json")


# --- refusals


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"budgets": ("recall", Estimate(math.nan))}, "result.budgets.2.recall@20 is nan"),
        ({"budgets": ("recall", Estimate(np.float32("nan")))}, "result.budgets.2.recall@20 is nan"),
        ({"stages": {"federation": math.inf}}, "result.stages.federation is inf"),
        ({"scenario": {"when": object()}}, "result.scenario.when is a object"),
        ({"versions": {3: "x"}}, "result.versions has the key 3"),
        ({"budgets": ("recall", Estimate(1.5))}, "report: budgets.2.recall@20: must be at most"),
        ({"budgets": ("share", "1%")}, "report: budgets.2.share: must be a number"),
        ({"rounds": ("upload_bytes", -1)}, "report: rounds.2.upload_bytes"),
        ({"rounds": ("upload_bytes", 1.5)}, "report: rounds.2.upload_bytes"),
        ({"traces": ("kept_blocks", (1,))}, "traces.1: lists of unequal length"),
    ],
)
def test_a_wrong_value_is_refused_by_its_path_and_old_files_stay(tmp_path, changes, named):
    """In a list: of its third or last row."""
    (tmp_path / "report.json").write_text("old")
    result = run_result()
    for key, value in changes.items():
        if isinstance(value, tuple):
            rows = list(getattr(result, key))
            place = min(2, len(rows) - 1)
            rows[place] = replace(rows[place], **{value[0]: value[1]})
            value = tuple(rows)
        result = replace(result, **{key: value})
    with pytest.raises(ReportError) as caught:
        write_report(result, tmp_path)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "old"


# --- metrics.csv, metrics.parquet


def leaves(value):
    """Every number of a JSON document, bar what was set and what is of an interval, which is in its number's row."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from () if key in SET or INTERVALS.search(key) else leaves(part)
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


SET = {"scenario", "seed", "share", "budget_bytes", "group", "server_round", "device", "factor"}
"""Keys of places, which are columns."""
INTERVALS = re.compile(r"(_interval|_margin|^margin_.*|^low|^high)$")


def test_every_number_of_the_json_is_a_row(written):
    rows = list(csv.DictReader(io.StringIO((written / "metrics.csv").read_text(encoding="utf-8"))))
    plain = plain_result()
    numbers = list(leaves(plain))
    extra = [row["budget_bytes"] for row in plain["fairness"]["by_class"]]  # of that name a place elsewhere
    extra += [value for trace in plain["traces"] for value in trace["budget_bytes"] if value is not None]
    assert sorted(float(row["value"]) for row in rows) == sorted(map(float, numbers + extra))
    places = [tuple(value for column, value in row.items() if column not in ("value", "low", "high")) for row in rows]
    assert len(set(places)) == len(rows), "each number has a place of its own"
    table = pyarrow.parquet.read_table(written / "metrics.parquet").to_pylist()
    assert [{name: "" if cell is None else str(cell) for name, cell in row.items()} for row in table] == [
        row | {"value": str(float(row["value"]))} for row in rows
    ]


def test_rows_know_their_places_and_intervals():
    figures = run_result().figures
    (best,) = figures.select(part="budgets", name="recall@20", budget_share=0.05, precision="int8")
    assert (best.value, best.ends, best.where["selector"]) == (0.21, (0.21 - 0.02, 0.21 + 0.03), "controller")
    (mean,) = figures.select(name="budget_bytes_mean", device_class=NASTY)
    assert (mean.value, mean.unit, mean.part) == (1234.5, "B", "device_classes")
    (margin,) = figures.select(name="recall@20", user_group=0)
    assert (margin.low, margin.high) == (0.3 - 0.1, 0.3 + 0.1)
    assert not figures.select(name="recall@20", device_class="never seen"), "None: not measured"
    assert [row.value for row in figures.select(name="loss")] == [0.7, 0.6, 0.5]
    assert figures.select(name="loss", round=3)[0].where == {"seed": 7, "round": 3}
    assert figures.select(name="stages", stage="pretraining")[0].unit == "s"
    assert [row.value for row in figures.select(name="recall@20", table="refined")] == [0.25]
    assert [row.value for row in figures.select(part="traces", name="kept_blocks", device=3)] == [49, 9]
    assert figures.to_pandas().query("name == 'failures'").value.tolist() == [0, 1, 0]


# --- report.html


def test_page_has_every_section_and_figure(written):
    shown = page(written / "report.html")
    assert shown.sections == {
        *(
            "quality",
            "traces",
            "classes",
            "groups",
            "learning",
            "fairness",
            "elasticity",
            "costs",
            "environment",
            "reproduce",
        ),
    }
    twice = [attrs["aria-label"] for tag, attrs in shown.tags if tag == "svg"]
    labels = twice[::2]
    assert labels == twice[1::2]  # wide, narrow
    assert len(labels) == 7  # budgets, traces, classes, groups, learning, bytes, stages
    assert all(len(label) > 30 for label in labels)
    assert "int8 goes from 0.6 at 1% to 0.84 at 5%" in labels[0]  # 0.15 / 0.25 and 0.21 / 0.25
    for sentence in verdicts(run_result()):
        assert sentence in shown.text
    assert "fl-peel run scenario.yaml --seed 7" in shown.text
    assert "0.1.0" in shown.text


def test_page_needs_no_network(written):
    text = (written / "report.html").read_text(encoding="utf-8")
    shown = Page(text)
    links = [value for _, attrs in shown.tags for key, value in attrs.items() if key in ("src", "href", "xlink:href")]
    assert links, "figures refer to their own glyphs"
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"@import|url\((?!#)", text)
    assert [attrs for tag, attrs in shown.tags if tag == "script"] == [{}]  # its own, which it needs for no figure
    assert not {"link", "iframe", "img", "object"} & {tag for tag, _ in shown.tags}
    assert '<meta charset="utf-8">' in text


def test_page_escapes_names(written):
    text = (written / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert NASTY not in text
    assert NASTY in page(written / "report.html").text
    assert "</pre><script>alert(1)</script>" in page(written / "report.html").text


def test_figures_are_well_formed_and_share_a_page_without_clashing_ids(written):
    ids = [attrs["id"] for _, attrs in page(written / "report.html").tags if "id" in attrs]
    assert len(ids) == len(set(ids)) > 100
    for plot in drawn_figures():
        root = ElementTree.fromstring(plot.svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root[0].text == plot.alt
        references = set(re.findall(r'(?:href="|url\()#([^")]+)', plot.svg))
        assert references <= {element.get("id") for element in root.iter()}


@pytest.mark.usefixtures("undrawn")
def test_the_bare_minimum_is_written(tmp_path):
    result = replace(minimal(), budgets=(), device_classes={}, rounds=(), stages={}, scenario={"name": "tiny"})
    write_report(result, tmp_path)
    assert page(tmp_path / "report.html").sections == {"quality", "costs", "reproduce"}
    assert [one.title for one in tables(result)] == ["Full item table, fp32", "Bytes and seconds"]


@pytest.mark.usefixtures("undrawn")
def test_many_user_groups_are_sorted_and_counted():
    recalls = [Estimate((group * 7 % 50) / 100) for group in range(50)]
    groups = tuple(UserGroupRow(group=i, devices=1, recall=recall, ndcg=0.0) for i, recall in enumerate(recalls))
    (plot,) = (plot for plot in report_figures(replace(minimal(), user_groups=groups)) if plot.name == "groups")
    assert "50 user groups: from 0.0000 (0)" in plot.alt


@pytest.mark.usefixtures("undrawn")
def test_curves_run_over_rounds_and_over_the_virtual_clock():
    result = run_result()
    learning = {plot.name: plot for plot in report_figures(result)}["learning"]
    assert "loss goes from 0.7 to 0.5 over the round" in learning.alt
    assert "validation Recall@20 goes from 0.1 to 0.2 over the virtual clock, s" in learning.alt
    assert "controller loss" not in learning.alt  # None in every round
    nothing = tuple(replace(row, loss=None, recall=None, ndcg=None) for row in result.history)
    assert "learning" not in {plot.name for plot in report_figures(replace(result, history=nothing))}


@pytest.mark.usefixtures("undrawn")
def test_without_full_tables_there_are_no_ratios_and_no_yardsticks(tmp_path):
    rows = tuple(replace(row, to_global=None, to_strongest=None) for row in run_result().budgets)
    result = replace(run_result(), full_table=FullTableResult(bytes=1_000_000), budgets=rows)
    write_report(result, tmp_path)
    assert read_report(tmp_path) == result
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["full_table"] == {"bytes": 1_000_000}
    text = page(tmp_path / "report.html").text
    assert "Not measured (evaluation.full_tables is false), so that ratios are not available." in text
    assert "How budgets relate to the full model was not measured (evaluation.budgets, evaluation.full_tables)." in text
    assert "global full table" not in text
    budgets, full, *_ = map(printed, tables(result))
    assert re.search(r"any +1\.00 MB +– +–", full)
    assert re.search(r"int8 controller +1% +0\.1500 \[0\.1300, 0\.1800\] +0\.0500 +10\.0 +10\.0 *\n", budgets)


@pytest.mark.usefixtures("undrawn")
def test_every_label_and_key_names_the_items_looked_at(tmp_path):
    scenario = {"name": "tiny", "evaluation": {"top_n": 5}}
    result = replace(run_result(), scenario=scenario, fairness=None, elasticity=None)
    write_report(result, tmp_path)
    assert read_report(tmp_path) == result
    keys = set(json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["budgets"][0])
    assert {"recall@5", "ndcg@5"} <= keys
    assert not {"recall@20", "ndcg@20"} & keys
    shown = re.sub(r"validation (Recall|NDCG)@20", "", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Recall@5" in shown
    assert "@20" not in shown


def test_figures_have_error_bars_where_intervals_are_known():
    """Classes and groups have one a bar that has a margin."""
    drawn = {plot.name: plot.svg for plot in drawn_figures()}
    plain = plain_result()
    for row in (*plain["budgets"], *plain["device_classes"].values(), *plain["user_groups"]):
        for key in [key for key in row if key.endswith(("_interval", "_margin"))]:
            del row[key]
    bare = {plot.name: plot.svg for plot in report_figures(from_json(plain))}
    collections = {name: [svg.count("LineCollection") for svg in (drawn[name], bare[name])] for name in bare}
    assert {name: one - other for name, (one, other) in collections.items() if one != other} == {
        **{"classes": 1, "groups": 1},
    }


# --- the same result, the same bytes


@pytest.mark.slow
def test_files_are_the_same_each_time_whatever_the_users_plot_settings(tmp_path, written):
    with matplotlib.rc_context({"font.size": 23, "axes.facecolor": "black", "svg.fonttype": "none"}):
        write_report(run_result(), tmp_path)
        assert matplotlib.rcParams["font.size"] == 23
    for name in ("report.json", "metrics.csv", "metrics.parquet", "report.html"):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


# --- all or none


def snapshot(folder: Path) -> dict:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


OLD = [{}, {"a": b"1", "b": b"2", "c": b"3"}, {"b": b"2"}]


@pytest.mark.parametrize(("old", "fails_at"), [(old, at) for old in OLD for at in range(1, 4 + len(old))])
def test_a_failure_between_moves_leaves_the_old_files(tmp_path, monkeypatch, fails_at, old):
    for name, data in (old | {"mine.txt": b"not the report's"}).items():
        (tmp_path / name).write_bytes(data)
    before = snapshot(tmp_path)
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr("simulations.report.result_files.os.replace", replace)
    with pytest.raises(ReportError, match="No space left"):
        write_files(tmp_path, {"a": b"new", "b": b"new", "c": b"new"})
    assert len(calls) == fails_at
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("moves", range(7))
def test_a_process_killed_between_moves_leaves_no_new_file_beside_an_old_one(tmp_path, monkeypatch, moves):
    """Whoever is killed undoes nothing: the folder is looked at as it is after so many moves."""
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"old")
    seen, real = [], os.replace

    def replace(source, target):
        seen.append({file.read_bytes() for file in tmp_path.iterdir() if file.is_file()})
        real(source, target)

    monkeypatch.setattr("simulations.report.result_files.os.replace", replace)
    write_files(tmp_path, {"a": b"new", "b": b"new", "c": b"new"})
    seen.append({file.read_bytes() for file in tmp_path.iterdir() if file.is_file()})
    assert len(seen) == 7
    assert len(seen[moves]) <= 1


def test_a_new_folder_comes_with_one_rename(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "simulations.report.result_files.os.replace", lambda *_: pytest.fail("a file was moved by itself")
    )
    write_files(tmp_path / "deep" / "out", {"a": b"1"})
    assert snapshot(tmp_path / "deep" / "out") == {"a": b"1"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


@pytest.mark.usefixtures("undrawn")
def test_a_failure_while_staging_leaves_the_old_files(tmp_path, monkeypatch):
    write_report(replace(run_result(), seed=1), tmp_path)
    before = snapshot(tmp_path)
    real = Path.write_bytes

    def write_bytes(self, data):
        if self.name == "report.html":
            real(self, data[:100])
            raise OSError(28, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(ReportError, match="as they were"):
        write_report(run_result(), tmp_path)
    assert snapshot(tmp_path) == before


# --- tables


def printed(view: TableView) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(view.to_rich())
    return console.file.getvalue()


def tables(result: RunResult) -> list[TableView]:
    """What the terminal shows of a run, without its sentences."""
    return [part for part in run_page(result).terminal() if isinstance(part, TableView)]


def test_summary_tables_tell_the_numbers():
    budgets, full, classes, costs = map(printed, tables(run_result()))
    assert re.search(
        r"group tables after refinement +1\.00 MB +0\.2500 \[0\.2200, 0\.2800\] +0\.1250 +1\.250 \[1\.200, 1\.300\]",
        full,
    )  # 0.25 / 0.2
    # share 1%, 10,000 B budget, 9,993 B stored, NDCG 0.15 / 3, ratios 0.15 / 0.2 and 0.15 / 0.25
    over = r"0\.600 \[0\.550, 0\.660\] +0\.750 \[0\.700, 0\.810\]"
    recall = r"0\.1500 \[0\.1300, 0\.1800\]"
    assert re.search(rf"int8 controller +1% +{recall} +{over} +0\.0500 +10\.0 +10\.0", budgets)
    assert "relative to global" in budgets
    assert "relative to best" in budgets
    assert "0.1400 ±0.0300" in classes
    assert re.search(r"never seen +0 +0\.0 +– +0 +0", classes)
    assert NASTY in classes
    assert re.search(r"bytes down, all rounds +6\.00 KB", costs)  # 3000 + 2000 + 1000
    assert re.search(r"all stages, s +1\.8", costs)  # 1.25 + 0.5 = 1.75
    assert re.search(r"failed devices, all rounds +1\b", costs)


def test_device_classes_show_what_they_moved_and_took():
    _, _, classes, _ = map(printed, tables(run_result()))
    assert re.search(r" 0 / 17 +8\.5 +2\.50 KB +250 B +12\.5 +0\.5 +2", classes)


def test_what_devices_withhold_is_a_dash_and_not_a_zero():
    hidden = PrivacyReport(
        mechanism="none", epsilon=None, delta=None, rows="all-sent", requests="own-budget", counters="withheld"
    )
    shown = printed(tables(replace(run_result(), privacy=hidden))[2])
    assert re.search(r"low .* – +0 / – +– +– +– +– +– +–", shown)
    assert "A dash: not reported by devices during rounds (privacy.counters)" in shown
    measured = replace(hidden, counters="measured")
    assert tables(replace(run_result(), privacy=measured))[2] == tables(run_result())[2]


def test_free_parts_become_tables():
    scalars, by_class = nested_views("Fairness", {"gap": 0.5, "of": {"all": 3}, "by": [{"a": 1}, {"b": None}]})
    assert scalars.rows == (("gap", "0.5000"), ("of, all", "3"))
    assert by_class.columns == ("a", "b")
    assert by_class.rows == (("1", "–"), ("–", "–"))


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 KB"), (104_911, "104.9 KB"), (10_491_136, "10.49 MB")],
)
def test_bytes_are_written_in_decimal_units(num_bytes, text):
    assert format_bytes(num_bytes) == text


def test_shares_are_written_in_per_cent():
    assert [format_share(share) for share in (0.001, 0.0025, 0.01, 1.0)] == ["0.1%", "0.25%", "1%", "100%"]


# --- labels


@given(
    st.lists(st.floats(-1, 2), min_size=1, max_size=15),
    st.floats(0.001, 0.05),
)
def test_labels_keep_their_order_and_distance_within_bounds(wanted, gap):
    places = spread(wanted, gap, 0.0, 1.0)  # 15 labels x 0.05 always fit
    ordered = [places[index] for index in sorted(range(len(wanted)), key=lambda index: wanted[index])]
    assert all(later - earlier >= gap - 1e-9 for earlier, later in pairwise(ordered))
    assert min(places) >= -1e-9
    assert max(places) <= 1 + 1e-9


def test_labels_that_do_not_clash_stay_where_they_are():
    assert spread([0.9, 0.1, 0.5], 0.1) == pytest.approx([0.9, 0.1, 0.5])
    assert spread([], 0.1, 0.0, 1.0) == []
    assert spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])  # centred on 0.5


# --- comparison


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("compare")
    write_results(out, COMPARE.contents(compare_result()))
    return out


def test_compare_json_and_csv_hold_the_same(compared):
    assert json.loads((compared / "compare.json").read_text(encoding="utf-8")) == compare_result()
    rows = list(csv.DictReader(io.StringIO((compared / "compare.csv").read_text(encoding="utf-8"))))
    recalls = [row for row in rows if (row["part"], row["name"]) == ("rows", "recall@20")]
    for row, expected in zip(recalls, compare_result()["rows"], strict=True):
        assert (row["method"], row["precision"]) == (expected["method"], expected["precision"])
        assert (float(row["budget_share"]), float(row["value"])) == (expected["share"], expected["recall@20"])
    assert [row["value"] for row in rows if row["name"] == "recall@20_std"] == ["0.001"]


def test_compare_page_and_figure(compared):
    shown = page(compared / "compare.html")
    assert shown.sections == {"quality", "refinement", "rows", "reproduce"}
    svg = (compared / "compare.svg").read_text(encoding="utf-8")
    assert themed(svg) in (compared / "compare.html").read_text(encoding="utf-8")
    ElementTree.fromstring(svg)
    assert "at 1% peel with 0.1800; at 10% peel with 0.1500" in svg
    assert all(value.startswith("#") for _, attrs in shown.tags for key, value in attrs.items() if key.endswith("href"))
    assert svg == compare_plot(COMPARE.read(compare_result(), "it")).svg


def test_error_bars_are_drawn_only_where_there_is_a_spread():
    def bars(rows: list[dict]) -> int:
        return compare_plot(COMPARE.read(compare_result() | {"rows": rows}, "it")).svg.count("LineCollection")

    bare = [{key: value for key, value in row.items() if "std" not in key} for row in compare_result()["rows"]]
    assert bars(compare_result()["rows"]) - bars(bare) == 1


def rows_of(rows: list[dict]):
    return COMPARE.read(compare_result() | {"rows": rows}, "it").rows


def test_a_comparison_says_what_it_comes_to_before_its_tables():
    result = COMPARE.read(compare_result(), "it")
    cached = replace(result.rows[0], method="cached-list", peel_over=Estimate(0.99, 0.95, 1.03), chosen=True)
    best, cached = compare_verdicts(replace(result, rows=(*result.rows, cached)))
    assert best == (
        "At 1% of the bytes the Recall@20 of PEEL is 9.000 times that of random int8, the best other method without "
        "user groups."
    )
    assert "0.990 [0.950, 1.030] times the recall of a cached list of 20 item ids: no significant difference" in cached
    assert "docs/timeline.md" in cached
    worse = replace(result.rows[0], method="cached-list", peel_over=Estimate(0.8, 0.7, 0.9), chosen=True, p_holm=0.2)
    (*_, sentence) = compare_verdicts(replace(result, rows=(*result.rows, worse)))
    assert "item ids: no significant difference" in sentence, "corrected for all comparisons"


def test_compare_table_shows_what_validation_chose_whatever_the_test_says():
    better = {"chosen": False, "precision": "int4", "validation_recall@20": 0.01}
    rows = [*compare_result()["rows"], compare_row("peel", 0.1, 0.19, **better)]
    rows = rows_of(rows)
    view = compare_view(rows)
    assert view.columns == ("method", "groups", "trials", "1%", "10%")
    assert view.rows == (
        ("random", "no", "–", "0.0200 int8", "0.1600 int8"),
        ("peel", "yes", "–", "0.1800 ±0.0010 int8", "0.1500 int8"),
    )
    assert view.best == {(1, 3), (1, 4)}  # at 10% random is better on the test, and validation likes peel
    assert "0.0900 ±0.0005" in printed(compare_view(rows, "ndcg@20"))
    assert [row[1] for row in compare_details_view(rows).rows] == [*["int8 (chosen)"] * 4, "int4"]


def test_what_a_server_sends_is_shown_last_and_is_never_the_best():
    sent = compare_row("cached-list", 0.01, 0.9, ceiling=True, trials=4)
    tried = [row | {"trials": 3} for row in compare_result()["rows"]]
    twice = compare_row("peel", 0.01, 0.1, trials=2, precision="int4", chosen=False)
    rows = rows_of([sent, *tried, twice])
    view = compare_view(rows)
    assert [row[:3] for row in view.rows] == [
        ("random", "no", "3"),
        ("peel", "yes", "5"),
        ("cached-list", "server", "4"),
    ]
    assert view.best == {(1, 3), (1, 4)}
    assert "cached-list" not in compare_alt(rows)


def test_ceilings_have_a_table_of_their_own():
    done = {
        "method": "ease",
        "ceiling": True,
        "server_bytes": 1_234_500,
        "seconds": 1.0,
        "trials": 6,
        "note": "lambda 3",
    }
    done |= {"recall@20": 0.3, "ndcg@20": 0.2, "validation_recall@20": 0.4}
    skipped = done | {"server_bytes": 0, "trials": 0, "note": "not done: needs 8.4 GB of free memory"}
    view = ceilings_view(COMPARE.read(compare_result() | {"ceilings": [done, skipped]}, "it"))
    assert view.rows == (
        ("ease", "1,234.5", "6", "0.4000", "0.3000", "0.2000", "lambda 3"),
        ("ease", "–", "0", "–", "–", "–", "not done: needs 8.4 GB of free memory"),
    )


def test_the_verdict_is_a_table():
    view = verdict_view(COMPARE.read(compare_result(), "it"))
    assert view.rows == (("1%", "int8", "0.1800", "0.900", "–", "–", "–", "9.000", "random int8", "–", "–"),)

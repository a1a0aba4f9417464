"""Whatever differs between two reports is named, to the last digit; what is ignored is not."""

import json
import math

import pytest

from tests.golden.values import LONGEST, differences, folded, kept, text_of

REPORT = {
    "seed": 0,
    "full_table": {"recall@20": 0.1502964054236795, "bytes": 430592, "note": None},
    "budgets": [{"share": 0.01, "recall@20": 0.16}, {"share": 0.1, "recall@20": 0.25}],
    "rounds": [{"server_round": 1, "seconds": 2.4, "virtual_seconds": 0.3}],
    "over_time": [{"hours": n / 4, "recall": n / 100} for n in range(LONGEST + 1)],
    "hours": [n / 4 for n in range(LONGEST + 1)],
    "elastic_traces": [{"device": 3, "stored": [1, 2, 3]}],
    "versions": {"torch": "2.13.0"},
    "stages": {"refinement": 6.02},
    "command": "fl-peel run --out /tmp/a",
    "peak_rss_bytes": 1,
    "environment": {"nodes": 2, "cpus": 2},
}


def recorded(report):
    """A report as it is read from a golden file."""
    return json.loads(text_of(folded(kept(report))))


def changed(change):
    """The report after a change to a copy of it."""
    report = json.loads(json.dumps(REPORT))
    change(report)
    return kept(report)


def test_equal_reports_do_not_differ():
    assert list(differences(recorded(REPORT), kept(REPORT))) == []
    assert list(differences(kept(REPORT), kept(REPORT))) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda report: report["full_table"].update({"recall@20": math.nextafter(0.1502964054236795, 1)}),
            "full_table.recall@20: expected 0.1502964054236795, measured 0.15029640542367953",
        ),
        (lambda report: report["budgets"][1].update(share=0.2), "budgets[1].share: expected 0.1, measured 0.2"),
        (lambda report: report.update(seed=0.0), "seed: expected 0, measured 0.0"),
        (lambda report: report.update(seed=False), "seed: expected 0, measured false"),
        (lambda report: report.update(seed=math.nan), "seed: expected 0, measured NaN"),
        (lambda report: report["full_table"].pop("bytes"), "full_table.bytes: expected 430592, is missing"),
        (lambda report: report["full_table"].update(new=[1]), "full_table.new: is new, [1]"),
        (lambda report: report["full_table"].update(note="a"), 'full_table.note: expected null, measured "a"'),
        (lambda report: report["budgets"].pop(), "budgets: expected 2 entries, measured 1"),
        (
            lambda report: report["rounds"][0].update(virtual_seconds=1),
            "rounds[0].virtual_seconds: expected 0.3, measured 1",
        ),
    ],
)
def test_a_difference_is_named(change, line):
    assert list(differences(recorded(REPORT), changed(change))) == [line]


def test_what_was_not_a_number_still_is_not():
    assert list(differences({"loss": math.nan}, {"loss": math.nan})) == []
    assert list(differences({"loss": math.nan}, {"loss": 0.5})) == ["loss: expected NaN, measured 0.5"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda report: report["over_time"][3].update(recall=0.030000000000000002), "over_time.digests.recall"),
        (lambda report: report["over_time"][3].pop("recall"), "over_time.digests.recall"),
        (lambda report: report["hours"].reverse(), "hours.digests."),
        (lambda report: report["elastic_traces"][0].update(stored=[1, 2, 4]), "elastic_traces.digests.stored[]"),
        (lambda report: report["elastic_traces"][0].update(stored=[]), "elastic_traces.digests.stored"),
    ],
)
def test_a_difference_in_what_is_large_is_named_by_its_key(change, key):
    lines = list(differences(recorded(REPORT), changed(change)))
    assert key in [line.partition(": ")[0] for line in lines]
    assert all(line.startswith(key) for line in lines)


def test_a_long_list_that_became_short_is_named():
    lines = list(differences(recorded(REPORT), changed(lambda report: report["hours"].pop())))
    assert f"hours.entries: expected {LONGEST + 1}, measured {LONGEST}" in lines


def test_a_list_that_became_long_is_named():
    lines = list(differences(recorded({"rows": [1]}), {"rows": [1] * (LONGEST + 1)}))
    assert lines == [f"rows: expected 1 entries, measured {LONGEST + 1}"]


@pytest.mark.parametrize(
    "change",
    [
        lambda report: report["rounds"][0].update(seconds=9.0),
        lambda report: report.update(stages={}, command=None, peak_rss_bytes=2, versions={"torch": "3"}),
        lambda report: report["environment"].update(cpus=64),
    ],
)
def test_times_and_the_machine_are_ignored(change):
    assert list(differences(recorded(REPORT), changed(change))) == []


def test_a_key_is_ignored_where_it_is_wall_time_alone():
    assert kept({"environment": {"nodes": 2, "cpus": 8}, "cpus": 8}) == {"environment": {"nodes": 2}, "cpus": 8}


def test_the_text_does_not_depend_on_the_order_of_keys():
    assert text_of({"b": {"y": 1, "x": 2}, "a": 0.1}) == text_of({"a": 0.1, "b": {"x": 2, "y": 1}})
    assert json.loads(text_of({"a": 0.1, "b": "é"})) == {"a": 0.1, "b": "é"}

"""Runs against one another: the figures by hand, pairs that are pairs, and refusals of what cannot be compared."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from fl_peel.errors import ReportError
from fl_peel.json_codec import to_plain
from fl_peel.ranking.bootstrap import Replicates, holm, interval
from simulations.report.diff import diff, diff_page, missing_note
from simulations.report.render import templates
from simulations.report.seeds import SeedRuns
from simulations.report.table_view import TableView
from strategies.figures.per_device import PerDevice
from tests.helpers.reports import write_report
from tests.simulations.report.test_report import run_result

pytestmark = pytest.mark.usefixtures("without_figures")
TABLES = ("global", "1% int8 controller", "own budget")


def per_device(recall, *, tables=TABLES, items=None, seed=0, test_items="same", top_n=20) -> PerDevice:
    count = len(recall)
    numbers = np.arange(count)
    items = np.ones(count, np.int64) if items is None else items
    classes = ("phone",) * count
    return PerDevice(tables, numbers, classes, numbers % 2, items, recall, recall / 2, top_n, seed, test_items)


def folder(path, result: PerDevice, **scenario):
    """A run's output folder."""
    plain = {"name": path.name, "evaluation": {"top_n": result.top_n}, **scenario}
    write_report(replace(run_result(), seed=result.seed, scenario=plain), path)
    result.write(path / "per-device.parquet")
    return path


@pytest.fixture
def recalls():
    rng = np.random.default_rng(0)
    first = rng.beta(0.6, 2.4, (400, 3))
    return first, np.clip(first + 0.004 + 0.05 * rng.standard_normal((400, 3)), 0, 1)


def test_figures_side_by_side_with_paired_intervals_and_corrected_p_values(tmp_path, recalls):
    first, second = recalls
    result = diff([folder(tmp_path / "a", per_device(first)), folder(tmp_path / "b", per_device(second))])
    assert [row.table for row in result.rows] == [*TABLES, *TABLES]
    assert [row.metric for row in result.rows] == ["recall@20"] * 3 + ["ndcg@20"] * 3
    row = result.rows[1]
    (other,) = row.others
    assert row.figure.value == pytest.approx(first[:, 1].mean())
    assert other.figure.value == pytest.approx(second[:, 1].mean())
    expected = stats.ttest_rel(second[:, 1], first[:, 1])
    assert other.difference.value == pytest.approx((second - first)[:, 1].mean())
    assert other.p == pytest.approx(expected.pvalue, rel=0.5)
    ends = expected.confidence_interval()
    assert (other.difference.low, other.difference.high) == pytest.approx((ends.low, ends.high), abs=8e-4)
    alone = row.figure.high - row.figure.low
    assert other.difference.high - other.difference.low < alone / 3, "strangers would differ by more than either varies"
    sums = Replicates.from_devices(
        np.arange(400), np.stack([first[:, 1], second[:, 1]], 1), np.zeros((400, 2)), first[:, 1] >= 0, 1000
    )
    one, two = sums.means()[0]
    counted = int((first[:, 1] >= 0).sum())
    assert (other.ratio.low, other.ratio.high) == pytest.approx(interval(two / one, counted))
    assert (row.figure.low, row.figure.high) == pytest.approx(interval(one, counted)), "as the run's own report has it"
    assert [o.p_holm for r in result.rows for o in r.others] == holm([o.p for r in result.rows for o in r.others])


def test_a_run_and_itself_differ_by_nothing(tmp_path, recalls):
    a = folder(tmp_path / "a", per_device(recalls[0]))
    for row in diff([a, a / "report.json"]).rows:
        (other,) = row.others
        assert (other.difference.value, other.difference.low, other.difference.high) == (0.0, 0.0, 0.0)
        assert (other.ratio.value, other.ratio.low, other.ratio.high) == (1.0, 1.0, 1.0)
        assert (other.p, other.p_holm) == (1.0, 1.0)


def test_devices_without_test_items_do_not_count(tmp_path, recalls):
    first, second = recalls
    items = (np.arange(400) % 4 > 0).astype(np.int64)
    kept = items > 0
    first, second = (np.where(kept[:, None], values, 0.0) for values in (first, second))
    paths = [folder(tmp_path / n, per_device(v, items=items)) for n, v in (("a", first), ("b", second))]
    result = diff(paths)
    assert result.rows[0].figure.value == pytest.approx(first[kept, 0].mean())
    assert result.runs[0].devices == 300


def test_other_data_another_split_or_other_cut_offs_are_refused(tmp_path, recalls):
    first = recalls[0]
    a = folder(tmp_path / "a", per_device(first))
    strangers = {
        "digest": per_device(first, test_items="other"),
        "items": per_device(first, items=np.full(400, 2)),
        "fewer": per_device(first[:300]),
    }
    for name, other in strangers.items():
        with pytest.raises(
            ReportError, match=rf"{name}: its devices or test items differ from those of .*a; only runs"
        ):
            diff([a, folder(tmp_path / name, other)])
    with pytest.raises(ReportError, match=r"of the first 10 items, those of .*a of the first 20"):
        diff([a, folder(tmp_path / "ten", per_device(first, top_n=10))])
    with pytest.raises(ReportError, match=r"no table in common"):
        diff([a, folder(tmp_path / "apart", per_device(first, tables=("x", "y", "z")))])
    with pytest.raises(ReportError, match=r"1 run\(s\) given"):
        diff([a])


def test_a_run_without_single_devices_names_the_remedy(tmp_path, recalls):
    a = folder(tmp_path / "a", per_device(recalls[0]))
    write_report(run_result(), tmp_path / "b")
    with pytest.raises(ReportError, match=r"per-device.parquet: not there; run again with --per-device"):
        diff([a, tmp_path / "b"])
    (tmp_path / "b" / "per-device.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ReportError, match=r"not a file of --per-device"):
        diff([a, tmp_path / "b"])
    with pytest.raises(ReportError, match=r"nowhere: cannot read .*give the --out folder of a run"):
        diff([a, tmp_path / "nowhere"])


def seeds_folder(path, by_seed):
    """As `fl-peel run --seeds` leaves it. by_seed: what devices get, by seed."""
    for seed, recall in by_seed.items():
        folder(path / f"seed-{seed}", per_device(recall, seed=seed))
    (path / "seeds.json").write_text(json.dumps({"seeds": list(by_seed)}))
    return path


def test_seeds_are_averaged_and_their_spread_is_in_the_interval(tmp_path, recalls):
    """Every seed shifts all devices of the second run by as much as the runs differ: one seed alone would be sure."""
    first, shifts = recalls[0] * 0.9, (0.0, 0.02, 0.04)
    a = seeds_folder(tmp_path / "a", dict.fromkeys(range(3), first))
    b = seeds_folder(tmp_path / "b", {seed: first + shift for seed, shift in enumerate(shifts)})
    row = diff([a, b]).rows[0]
    (other,) = row.others
    half = stats.t.ppf(0.975, 2) * np.std(shifts, ddof=1) / np.sqrt(3)
    assert other.seeds
    assert other.difference.value == pytest.approx(0.02)
    assert (other.difference.low, other.difference.high) == pytest.approx((0.02 - half, 0.02 + half), rel=1e-3)
    assert other.p == pytest.approx(stats.ttest_1samp(shifts, 0).pvalue, rel=1e-3)
    (alone,) = diff([a / "seed-1", b / "seed-1"]).rows[0].others
    assert alone.p < 1e-6
    assert not alone.seeds
    (mixed,) = diff([a / "seed-0", b]).rows[0].others
    assert mixed.difference.value == pytest.approx(0.02)
    assert not mixed.seeds, "of one of them nothing is known over seeds"
    assert "The runs have different seeds" in diff_views(diff([a / "seed-0", b]))[-1].note


def diff_views(result):
    """The tables that the terminal shows of a diff."""
    return [part for part in diff_page(result).terminal() if isinstance(part, TableView)]


def test_runs_are_read_by_folder_or_file(tmp_path, recalls):
    whole = seeds_folder(tmp_path / "a", {4: recalls[0], 5: recalls[1]})
    assert SeedRuns.read(whole).seeds == SeedRuns.read(whole / "seeds.json").seeds == (4, 5)
    assert SeedRuns.read(whole / "seed-5" / "report.json").seeds == (5,)
    (whole / "seeds.json").write_text("{}")
    with pytest.raises(ReportError, match=r"seeds.json: not a file of --seeds"):
        SeedRuns.read(whole)


def test_what_differs_between_scenarios_and_tables_is_said(tmp_path, recalls):
    one = folder(tmp_path / "a", per_device(recalls[0]), seed=0, engine={"nodes": 1}, blocks={"precision": "int8"})
    more = per_device(recalls[1], tables=("global", "1% int8 controller", "5% int8 controller"))
    other = folder(tmp_path / "b", more, seed=0, engine={"nodes": 9}, blocks={"precision": "int4"})
    result = diff([one, other, one])
    assert result.changed == {"blocks.precision": ("int8", "int4", "int8")}
    assert result.missing == {"own budget": ("B",), "5% int8 controller": ("A", "C")}
    assert "own budget (not in B)" in missing_note(result)
    assert [other.run for other in result.rows[0].others] == ["B", "C"]


def test_the_page_stands_alone_and_the_json_holds_it_all(tmp_path, recalls):
    name = "<b>run & 'a'</b>"
    paths = [folder(tmp_path / n, per_device(v)) for n, v in ((name.replace("/", ""), recalls[0]), ("b", recalls[1]))]
    result = diff(paths)
    page = diff_page(result, {"numpy": "2"}).html()
    assert "<b>run" not in page
    assert page.count("<script") == page.count(f"<script>{templates()['page.js']}</script>") == 1  # its own
    assert not re.search(r'(src|href)="(?!#)|@import|url\((?!#)', page)
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport" content="width=device-width' in page
    assert page.count("<svg") == 2  # wide, narrow
    assert diff_page(diff(paths), {"numpy": "2"}).html() == page
    plain = json.loads(json.dumps(to_plain(result)))
    assert [row["table"] for row in plain["rows"][:3]] == list(TABLES)
    assert set(plain["rows"][0]["others"][0]) >= {"difference", "ratio", "p", "p_holm"}
    shown = "\n".join(cell for view in diff_views(result) for row in view.rows for cell in row)
    assert f"{result.rows[0].others[0].difference.value:.4f}" in shown


def test_columns_have_the_names_in_which_folders_differ(tmp_path, recalls):
    one, other, long = (
        folder(tmp_path / name / "seed-0", per_device(recalls[0])) for name in ("a.b=1,c=2", "a.b=1,c=3", "x" * 40)
    )
    views = {view.title: view for view in diff_views(diff([one, other]))}
    assert views["Recall@20"].columns[:4] == ("table", "b=1,c=3 − b=1,c=2", "b=1,c=2", "b=1,c=3")
    assert views["Recall@20"].rows[0][1].startswith("+0.0000 [+0.0000")
    assert diff_views(diff([one, long]))[-1].columns[:3] == ("table", "B − A", "A")
    assert diff_views(diff([one, other, long]))[-1].columns[:3] == ("table", "run", "run − A")


def test_per_device_files_are_read_as_they_were_written(tmp_path, recalls):
    written = per_device(recalls[0], seed=9)
    written.write(tmp_path / "x.parquet")
    read = PerDevice.read(tmp_path / "x.parquet")
    for name in written.__dataclass_fields__:
        one, other = getattr(written, name), getattr(read, name)
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other, name

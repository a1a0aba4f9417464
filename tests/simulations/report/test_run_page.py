"""The page of a run for readers: what it explains, what it says in words, what becomes of devices that are away."""

import re
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest

from fl_peel import plugins
from fl_peel.figures import Estimate
from simulations.report.contracts import SectionContract, example_results
from simulations.report.drawing import INK, EndLabel, finish, label_ends, new_figure, styled
from simulations.report.render import page
from simulations.report.run_files import run_page
from simulations.report.section import SECTIONS, Section
from simulations.report.sections.classes import device_classes_view, recall_by_class
from simulations.report.sections.quality import budgets_plot, why_less
from simulations.report.sections.rounds import device_traces
from simulations.report.table_view import TableView
from strategies.figures.schema import FULL_GLOBAL, FULL_REFINED, ClassFairness
from tests.simulations.report.test_report import NASTY, Page, run_result


def better_than(result, *, strongest: bool, low: float = 1.001):
    """The same run; at 5% it is better than the strongest full table, or than the global one alone."""
    name = "to_strongest" if strongest else "to_global"
    results = Estimate(value=1.01, low=low, high=1.02)
    rows = tuple(replace(row, **{name: results}) if row.share == 0.05 else row for row in result.budgets)
    return replace(result, budgets=rows)


def test_why_less_can_be_more_is_said_where_it_is():
    assert why_less(run_result()) == ""
    events = why_less(better_than(run_result(), strongest=True))
    assert events.startswith(
        "At budgets of 5% the smaller table is significantly better than the best full table. An item without"
    )
    assert why_less(better_than(run_result(), strongest=True, low=0.999)) == ""


def test_why_less_can_be_more_than_the_global_table_is_the_groups_own():
    events = why_less(better_than(run_result(), strongest=False))
    assert (
        "At budgets of 5% the smaller table is significantly better than the full global table, because each user "
        "group has" in events
    )
    assert "already reach 1.250 [1.200, 1.300] times" in events
    full = run_result().full_table
    as_good = replace(full, refined=replace(full.refined, to_global=Estimate(1.0, 0.99, 1.01)))
    assert why_less(replace(better_than(run_result(), strongest=False), full_table=as_good)) == ""


def test_the_lead_figure_is_the_ratio_to_the_full_model_around_the_data():
    plot = budgets_plot(run_result())
    assert plot.alt.endswith("global table: 0.8; group tables after refinement: 1.")
    assert plot.narrow
    assert plot.svg.count('class="tip"') == plot.narrow.count('class="tip"') == 4
    assert (
        "int8: 0.1500 [0.1300, 0.1800] at 1%, 10.00 KB, 0.600 [0.550, 0.660] times the full model&#x27;s" in plot.svg
        or "int8: 0.1500 [0.1300, 0.1800] at 1%, 10.00 KB, 0.600 [0.550, 0.660] times the full model's" in plot.svg
    )
    heights = {
        words[:12]: float(y) for words, y in re.findall(r"<title>([^<]*)</title>.*?y=\"([\d.]+)\"", tips(plot.svg))
    }
    assert heights["fp32: 0.0500"] > heights["fp32: 0.1000"] > heights["int8: 0.1500"] > heights["int8: 0.2100"]


def test_at_most_six_lines_are_coloured_and_others_can_be_switched_off():
    """Devices' own blocks come first, in bold."""
    (first, *_) = run_result().budgets
    rows = [
        replace(first, precision=precision, selector=selector, share=share)
        for precision in ("fp16", "fp32", "int8", "int4")
        for selector in ("controller", "energy")
        for share in (0.01, 0.05)
    ]
    plot = budgets_plot(replace(run_result(), budgets=tuple(rows)))
    assert [one.name for one in plot.series] == ["int4, by energy", "int8, by energy"]
    assert plot.alt.index("int8, by the controller") < plot.alt.index("fp16, by the controller")


def tips(svg: str) -> str:
    """A line a point that says something."""
    return "\n".join(" ".join(tip.split()) for tip in re.findall(r'<g class="tip">.*?</g>', svg, flags=re.DOTALL))


def with_own_tables():
    own = {"peel": Estimate(0.14), FULL_REFINED: Estimate(0.21), FULL_GLOBAL: Estimate(0.19)}
    row = ClassFairness(device_class=NASTY, devices=8, budget_bytes=5.5, recall=own)
    return replace(run_result(), fairness=replace(run_result().fairness, by_class=(row,)))


def test_classes_stand_beside_their_own_full_tables():
    alone, extra = recall_by_class(run_result()), recall_by_class(with_own_tables())
    assert "full table" not in alone.alt
    assert (
        "the same devices with the refined full table 0.2100 to 0.2100, global full table 0.1900 to 0.1900" in extra.alt
    )
    view = device_classes_view(with_own_tables())
    assert view.columns[4:6] == ("refined full table", "global full table")
    assert [row[4:6] for row in view.rows] == [("0.2100", "0.1900"), ("–", "–")]


def test_rounds_away_are_hatched_and_said():
    plot = device_traces(run_result())
    assert plot.alt.endswith("device 4 (never seen) stores 0 to 0 blocks in 3 rounds, offline in 3 of them.")
    assert plot.svg.count("<pattern") == 1
    there = [replace(trace, budget_bytes=(5000, 1000, 2000)) for trace in run_result().traces]
    assert "<pattern" not in device_traces(replace(run_result(), traces=tuple(there))).svg


def words_of(result) -> str:
    """What a reader reads, without what is typed and the scenario."""
    text = run_page(result)
    return Page(re.sub(r"<pre>.*?</pre>|<script>.*?</script>|<style>.*?</style>", "", text, flags=re.DOTALL)).text


@pytest.mark.usefixtures("undrawn")
def test_no_key_is_shown():
    result = re.findall(r"\b\w+_\w+\b", words_of(with_own_tables()))
    assert set(result) <= {"x86_64", "learning_rate", "full_tables"}, "of these, only keys that a remedy names"
    assert "user groups 2" in words_of(run_result())


def test_one_row_is_a_sentence():
    several = TableView("Sizes", ("what", "size"), (("a", "1"), ("b", "2")), note="Of all.")
    one = replace(several, rows=(("a<", "1"),))
    texts = [page([Section("sizes", "", (view,))], title="t", lead="l", facts=[], source={}) for view in (one, several)]
    assert "Sizes. what a< : size 1 . Of all." in Page(texts[0]).text
    assert ["<table" in text for text in texts] == [False, True]


@pytest.mark.usefixtures("undrawn")
def test_there_is_no_slider_of_one_budget():
    several, one = run_result(), replace(run_result(), budgets=run_result().budgets[:1])
    assert 'id="budget"' in run_page(several)
    assert 'id="budget"' not in run_page(one)


def test_no_two_leaders_cross():
    """They start at the edge in the order of the lines' ends, and labels keep it."""
    ends = [(1, 0.5), (9, 0.52), (10, 0.51), (4, 0.9), (10, 0.1), (10, 0.1)]
    with styled():
        _, (axes,) = new_figure(3.0)
        axes.set(xlim=(0, 10), ylim=(0, 1))
        label_ends(axes, [EndLabel(f"{y}", x, y, INK) for x, y in ends])
        leaders = [(words.xy, words.xyann) for words in axes.texts]
    assert all(start[0] >= 0.97 and stop[0] > 1 for start, stop in leaders)
    order = sorted(range(len(ends)), key=lambda place: leaders[place][0][1])
    assert order == sorted(range(len(ends)), key=lambda place: leaders[place][1][1])
    assert len(axes.lines) == 3  # of those that end before the edge, level with their ends
    assert all(len(set(line.get_ydata())) == 1 for line in axes.lines)


def test_names_of_axes_are_in_line_and_clear_of_tick_labels_within_the_figure():
    """Of two panels, one above the other, whose tick labels are of different widths."""
    with styled():
        figure, panels = new_figure(3.0, 2, 1)
        for axes, top in zip(panels, (1, 2_000_000), strict=True):
            axes.set(ylim=(0, top), ylabel="name", xlabel="other name")
            axes.ticklabel_format(style="plain")
        finish(figure, "names", "Names", "Names.")
        names = [axes.yaxis.label.get_window_extent() for axes in panels]
        assert names[0].x0 == pytest.approx(names[1].x0)
        for axes, name in zip(panels, names, strict=True):
            assert 0 < name.x1 < min(label.get_window_extent().x0 for label in axes.get_yticklabels())
            assert axes.xaxis.label.get_window_extent().y1 < min(
                label.get_window_extent().y0 for label in axes.get_xticklabels()
            )
        over, under = (axes.xaxis.label.get_window_extent() for axes in panels)
        assert names[1].x0 > 0
        assert under.y0 > 0
        assert over.y0 > panels[1].bbox.y1


@pytest.fixture(params=SECTIONS.shipped)
def shipped(request):
    return SECTIONS.get(request.param)


@pytest.mark.usefixtures("undrawn")
class TestShipped(SectionContract):
    results = (*example_results(), run_result())

    @pytest.fixture(autouse=True)
    def one_of_them(self, shipped, monkeypatch):
        monkeypatch.setattr(type(self), "section", staticmethod(shipped), raising=False)


def added(result):
    return Section("added", "Added", ["of an installed package"])


def broken(result):
    raise ZeroDivisionError("no devices")


@pytest.mark.usefixtures("undrawn")
def test_sections_of_installed_packages_come_last_and_cost_no_report(monkeypatch, caplog):
    points = [EntryPoint(name, f"{__name__}:{name}", SECTIONS.group) for name in ("added", "broken", "missing")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == SECTIONS.group else [])
    text = run_page(run_result())
    assert text.index('<section id="costs">') < text.index('<section id="added">') < text.index('id="reproduce"')
    assert "of an installed package" in text
    assert [record.message for record in caplog.records] == [
        "the section 'broken' is left out of the report: ZeroDivisionError: no devices",
        *(record.message for record in caplog.records if "'missing'" in record.message),
    ]
    assert len(caplog.records) == 2

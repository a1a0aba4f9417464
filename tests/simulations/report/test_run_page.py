"""The page of a run for readers: what it explains, what it says in words, what becomes of devices that are away."""

import re
from dataclasses import replace
from importlib.metadata import EntryPoint
from itertools import pairwise

import pytest

from fl_peel import plugins
from fl_peel.figures import Estimate
from simulations.report import render
from simulations.report.contracts import SectionContract, example_results
from simulations.report.drawing import (
    GRAPHICS,
    INK,
    NARROW_IN,
    PLAIN,
    WIDTH_IN,
    EndLabel,
    css,
    finish,
    label_ends,
    new_figure,
    share_axis,
    styled,
    themed,
    variables,
)
from simulations.report.render import SECTIONS, Section
from simulations.report.run_files import (
    best_budget,
    classes_below,
    own_rows,
    refinement_helped,
    run_page,
    seen_data,
    significance,
    verdicts,
)
from simulations.report.sections.classes import device_classes_view, recall_by_class
from simulations.report.sections.costs import stage1_views
from simulations.report.sections.quality import budgets_plot, why_less
from simulations.report.sections.rounds import device_traces
from simulations.report.table_view import TableView
from simulations.scenario_files import load_scenario
from strategies.figures.schema import (
    FULL_GLOBAL,
    FULL_REFINED,
    ClassFairness,
    Gain,
    RefinementResult,
    Stage1Filter,
    Stage1Result,
)
from tests.simulations.report.test_report import NASTY, Page, drawn_figures, run_result


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
    text = run_page(result).html(result)
    return Page(re.sub(r"<pre>.*?</pre>|<script>.*?</script>|<style>.*?</style>", "", text, flags=re.DOTALL)).text


@pytest.mark.usefixtures("undrawn")
def test_no_key_is_shown():
    result = re.findall(r"\b\w+_\w+\b", words_of(with_own_tables()))
    assert set(result) <= {"x86_64", "learning_rate", "full_tables"}, "of these, only keys that a remedy names"
    assert "user groups 2" in words_of(run_result())


def test_one_row_is_a_sentence():
    several = TableView("Sizes", ("what", "size"), (("a", "1"), ("b", "2")), note="Of all.")
    one = replace(several, rows=(("a<", "1"),))
    texts = [render.Page("t", [Section("sizes", "", (view,))]).html() for view in (one, several)]
    assert "Sizes. what a< : size 1 . Of all." in Page(texts[0]).text
    assert ["<table" in text for text in texts] == [False, True]


@pytest.mark.usefixtures("undrawn")
def test_there_is_no_slider_of_one_budget():
    several, one = run_result(), replace(run_result(), budgets=run_result().budgets[:1])
    assert 'id="budget"' in run_page(several).html()
    assert 'id="budget"' not in run_page(one).html()


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


@pytest.mark.parametrize("width", [WIDTH_IN, NARROW_IN])
@pytest.mark.parametrize("shares", [(1e-4, 2e-4, 5e-4, 1e-3, 1.5e-3, 0.01, 0.1, 1), (0.001, 0.0025, 0.005, 0.01)])
def test_budgets_on_one_axis_have_names_that_do_not_touch(shares, width):
    """From 1 to 16 KB of 10 MB beside the whole of it: the ends and powers of ten keep theirs, as bytes do above."""
    with styled(width):
        figure, (axes,) = new_figure(3.0)
        share_axis(axes, shares, 10_491_136)
        finish(figure, "budgets", "Budgets", "Budgets.")
        figure.draw_without_rendering()
        for one in (axes, *axes.child_axes):
            named = [label for label in one.get_xticklabels() if label.get_text()]
            boxes = [label.get_window_extent() for label in named]
            assert len(one.get_xticks()) == len(shares)
            assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
            assert len(named) >= 3
        words = [label.get_text() for label in axes.get_xticklabels()]
    assert all(words[place] for place, share in enumerate(shares) if share in (shares[0], 0.001, 0.01, 0.1, 1))


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
    text = run_page(run_result()).html()
    assert text.index('<section id="costs">') < text.index('<section id="added">') < text.index('id="reproduce"')
    assert "of an installed package" in text
    assert [record.message for record in caplog.records] == [
        "the section 'broken' is left out of the report: ZeroDivisionError: no devices",
        *(record.message for record in caplog.records if "'missing'" in record.message),
    ]
    assert len(caplog.records) == 2


# --- What a run says first, in words: who has seen what, and what its figures come to.


OWN = {"blocks": {"precision": "int8"}, "selector": "mine"}


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("ml-100k", [], "Pretraining: on the server, from 100% of the interactions (as in the paper); in refinement"),
        ("ml-100k", ["pretraining.collected.share=10%"], "on the server, from 10% of the interactions; in"),
        ("ml-100k", ["pretraining.collected={mode: oldest, share: 20%}"], "on the server, from the oldest 20% of"),
        ("nothing-collected", [], "Fully federated: no interaction leaves a device; the server sees sums over"),
        ("nothing-collected", ["pretraining.collected.share=5%"], "from sums over devices, begun with 5% of the"),
        ("secure-aggregation", [], "the server sees masked sums over each node's devices."),
        ("nothing-collected-private", [], "no interaction leaves a device; the server sees masked sums"),
        ("local-dp", [], "the server sees sums over each node's devices, with noise."),
    ],
)
def test_who_has_seen_what(name, changes, words):
    assert words in seen_data(load_scenario(name, changes).model_dump(mode="json"))


@pytest.mark.parametrize(("exponent", "apart"), [(0.3, True), (0.0, False)])
def test_the_cost_of_stage_1_says_whether_owners_of_an_item_may_be_told_apart(exponent, apart):
    costs = {"rounds": 9, "devices": 30.0, "items": 40, "bytes_down_mean": 1e5, "bytes_up_mean": 1e3, "seconds": 1.0}
    chosen = Stage1Filter(columns=8, count_exponent=0.5, value_exponent=0.1, recall=None)
    stage1 = Stage1Result(**costs, virtual_seconds=1.0, filter=chosen, steps=(), classes={})
    scenario = load_scenario("nothing-collected", [f"pretraining.user_exponent={exponent}"]).model_dump(mode="json")
    note = stage1_views(replace(run_result(), scenario=scenario, stage1=stage1))[0].note
    assert "No sum of fewer than 5 devices was opened: 40 items have" in note
    assert ("tell these owners apart" in note) == apart


def test_the_headline_is_of_what_devices_are_sent_whatever_is_best_on_the_test():
    """An order of blocks that nobody chose is far better on the test; the sentence is not about it."""
    mine, better = run_result().budgets[:2], []
    for row in mine:
        better.append(replace(row, selector="lucky", to_strongest=Estimate(1.5, 1.4, 1.6)))
    result = replace(run_result(), budgets=(*better, *mine))
    assert own_rows(result) == sorted(mine, key=lambda row: row.share) or len(own_rows(result)) == 1
    assert "ranked by the controller have 0." in verdicts(result)[0]
    assert "1.5" not in verdicts(result)[0]


def test_the_smallest_budget_that_keeps_up_is_named():
    ratios = {
        "1%": Estimate(0.9, 0.85, 0.95),
        "5%": Estimate(0.99, 0.97, 1.01),
        "10%": Estimate(1.02, 1.01, 1.03),
    }
    assert best_budget(ratios, OWN, "refined") == (
        "At 5%, int8 blocks ranked by “mine” have 0.990 [0.970, 1.010] times the Recall@20 of the full model (group "
        "tables after refinement): equal within 5%."
    )
    del ratios["5%"]
    assert best_budget(ratios, OWN, "start").endswith("before refinement): significantly better.")
    del ratios["10%"]
    assert best_budget(ratios, OWN, "global").endswith("(global table): significantly worse.")
    assert "not measured" in best_budget({"1%": None}, OWN, None)


@pytest.mark.parametrize(
    ("low", "high", "p_value", "words"),
    [
        (0.99, 1.01, None, ": equal within 5%"),
        (0.95, 1.01, None, ": no significant difference, and not shown to be equal within 5%"),  # .95 is 5% below 1
        (0.99, 1.053, None, ": no significant difference, and not shown to be equal within 5%"),  # 1 is 5% below
        (1.01, 1.04, None, ": significantly better"),
        (1.01, 1.04, 0.051, ": equal within 5%"),  # corrected for others
        (1.01, 1.2, 0.051, ": no significant difference, and not shown to be equal within 5%"),
        (0.8, 1.01, 0.049, ": significantly worse"),
        (None, None, None, ""),
    ],
)
def test_a_ratio_is_called_equal_only_where_its_whole_interval_is_near_1(low, high, p_value, words):
    value = 1.0 if low is None else (low + high) / 2
    assert significance(Estimate(value, low, high), p_value) == words


@pytest.mark.parametrize(
    ("gain", "rounds", "accepted", "words"),
    [
        (Estimate(0.01, 0.005, 0.015), 2, 3, "helped: +0.0100 [+0.0050, +0.0150] Recall@20."),
        (Estimate(-0.125, -0.14, -0.11), 2, 3, "did harm: -0.1250 [-0.1400, -0.1100] Recall@20; lower"),
        (Estimate(0.0, -0.01, 0.01), 2, None, "no significant difference: +0.0000 [-0.0100, +0.0100] Recall@20; lower"),
        (Estimate(0.0, 0.0, 0.0), 2, 0, "no user group accepted it on validation; lower"),
        (None, 0, None, "There was no federated refinement (refinement.rounds: 0)."),
        (None, 2, 1, "was not measured"),
    ],
)
def test_whether_refinement_helped_and_what_to_do_where_it_did_not(gain, rounds, accepted, words):
    assert words in refinement_helped(gain, rounds, accepted)


def test_classes_far_below_their_full_tables_are_named():
    result = run_result()
    (row, *_) = result.fairness.by_class
    rows = tuple(
        replace(row, device_class=name, ratio={FULL_REFINED: ratio})
        for name, ratio in (("watch", 0.6), ("phone", 0.95))
    )
    said = classes_below(replace(result, fairness=replace(result.fairness, by_class=rows)))
    assert said.startswith("Far below the recall of their own full tables: watch 0.60 times it; raise")
    assert "phone" not in said
    assert classes_below(replace(result, fairness=None)) == ""


def test_a_run_says_all_of_it_in_this_order():
    scenario = load_scenario("ml-100k").model_dump(mode="json")
    stage = RefinementResult(groups=2, groups_kept=1, rounds_kept={}, bytes_down_mean=0.0, comparisons=())
    full = replace(run_result().full_table, gain=Gain(Estimate(0.01, 0.005, 0.015), 9))
    result = replace(run_result(), scenario=scenario, refinement=stage, full_table=full)
    first, second, third = verdicts(result)
    assert first == seen_data(scenario)
    assert second.startswith("At 5% of the bytes (50.00 KB), int8 blocks ranked by the controller have 0.840 [")
    assert third.startswith("Federated refinement helped")


# --- Colours that can be read, on light paper and on dark, and figures that take those of their page.


LIGHT, DARK = 0, 1


def contrast(one, other):
    """The contrast of two colours, 1 to 21, as WCAG 2.2 defines it."""
    lighter, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (dark + 0.05)


def _luminance(color):
    parts = (int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_contrast_is_that_of_wcag():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=1e-3)  # the well-known grey that just fails


@pytest.mark.parametrize("paper", ["paper", "code"])
@pytest.mark.parametrize("mode", [LIGHT, DARK])
@pytest.mark.parametrize("words", ["ink", "muted", "accent", *(name for name in variables() if name.endswith("-text"))])
def test_words_stand_out_by_four_and_a_half(words, mode, paper):
    assert contrast(variables()[words][mode], PLAIN[paper][mode]) >= 4.5


@pytest.mark.parametrize("mode", [LIGHT, DARK])
@pytest.mark.parametrize("name", [*GRAPHICS, "muted"])
def test_graphics_stand_out_by_three(name, mode):
    assert contrast(variables()[name][mode], PLAIN["paper"][mode]) >= 3


@pytest.mark.parametrize("mode", [LIGHT, DARK])
@pytest.mark.parametrize("bar", ["blue", "green-text"])
def test_figures_at_the_foot_of_bars_can_be_read(bar, mode):
    assert contrast(PLAIN["paper"][mode], variables()[bar][mode]) >= 4.5


def test_every_colour_of_a_figure_is_one_of_the_pages():
    for plot in drawn_figures():
        for svg in (plot.svg, plot.narrow):
            assert "#222222" in svg
            assert ": #" not in themed(svg).replace("#000000", "")  # matplotlib's default of what is not drawn
            assert "var(--paper, #ffffff)" in themed(svg)


def test_no_two_variables_are_alike_on_light_paper():
    """Or a figure's colour could be taken for another's."""
    assert len({light for light, _ in variables().values()}) == len(variables())
    assert css(dark=False).count("--") == css(dark=True).count("--") == len(variables())

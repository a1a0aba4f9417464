"""A planted timeline: what the federation and its rivals find when taste turns, an item appears and users join."""

import dataclasses

import numpy as np
import pytest

from fl_peel.errors import ScenarioError
from simulations.scenario_files import load_scenario
from strategies.run.place import Place
from strategies.timeline.serve import FULL, WHOLE, check_timeline, published, serve_timeline
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.planted_timeline import FLEET, NEW_ITEM, TIMELINE, csv_of, planted


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "fleet.yaml").write_text(FLEET)
    return tmp_path


def scenario_of(folder, rows, *changes):
    (folder / "rows.csv").write_text(csv_of(rows))
    (folder / "timeline.yaml").write_text(TIMELINE.format(path=folder / "rows.csv", fleet=folder / "fleet.yaml"))
    return load_scenario(folder / "timeline.yaml", changes)


def served(folder, rows, *changes, nodes=2, name="run"):
    return serve_timeline(LoopbackGrid(nodes), scenario_of(folder, rows, *changes), Place("", str(folder / name)))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    (folder / "fleet.yaml").write_text(FLEET)
    return served(folder, planted())


def recall(result, period, line, kind="all"):
    return result.periods[period].lines[line][kind].recall


def test_taste_that_turns_is_followed(result):
    """Half of the devices turn to 40 items that nobody used. By hand: who knows the world of a device, and no more,
    finds 20 of the some 30 that are left of it; a list of the old world finds nothing of the new one.
    """
    last = result.last
    assert last[FULL].lines["start"].recall > 0.4
    assert last["cached-list"].lines["start"].recall < 0.45 * last[FULL].lines["start"].recall
    assert last[FULL].over["cached-list"].low > 1.5
    assert recall(result, 0, FULL) < last[FULL].lines["all"].recall, "nobody knew of the turn before"


def test_a_federation_that_goes_on_is_as_good_as_one_that_starts_anew(result):
    for line in (FULL, WHOLE):
        assert result.last[line].over["retrained"].value == pytest.approx(1.0, abs=0.08)


def test_who_joins_is_served_from_the_first_action_on(result):
    joining = [one for one in result.periods if "first" in one.lines[FULL]]
    assert sum(one.joining for one in result.periods) == 30
    assert joining
    assert result.whole[FULL].lines["first"].recall > 1.5 * result.whole["popularity"].lines["first"].recall


def test_an_item_is_recommended_once_somebody_used_it(result):
    """The new item and the world that nobody used have no row at first; tables grow."""
    items = [one.items for one in result.periods]
    assert items == sorted(items)
    assert items[-1] > items[0]
    assert [one.new_items for one in result.periods[1:]] == np.diff(items).tolist()
    assert result.periods[0].new_items == items[0]


def test_bytes_are_counted(result):
    first, *later = result.periods
    held = first.reads["federation at 30%"]
    overhead = 44 + 2 * 8
    assert held.sent_mean == pytest.approx(held.held_mean - overhead), "who comes first reads all that it then holds"
    assert all(one.reads[FULL].sent_mean < 0.5 * one.reads[FULL].held_mean for one in later)
    assert all(read.violations == 0 for one in result.periods for read in one.reads.values())
    assert all(read.held_mean <= result.full_table_bytes for one in result.periods for read in one.reads.values())
    limit = [int(0.15 * one.items) for one in later]
    changed = [one.changed_rows for one in later]
    assert all(rows <= max(most, one.new_items) for rows, most, one in zip(changed, limit, later, strict=True))


def test_it_is_the_same_on_any_number_of_nodes(result, folder):
    other = served(folder, planted(), nodes=5)
    for ours, theirs in zip(result.periods, other.periods, strict=True):
        assert dataclasses.replace(ours, virtual_seconds=0.0) == dataclasses.replace(theirs, virtual_seconds=0.0)
    assert other.last == result.last


def test_nothing_that_comes_later_is_read(result, folder):
    """From the fourth period on everything is another: what was found until then is the same to the last digit."""
    rows = planted()
    place = round(0.4 * len(rows)) + round(3 * 0.07 * len(rows))
    until = rows[place][2]
    other = [row for row in rows if row[2] < until]
    rest = len(rows) - len(other)
    other += [(500 + number // 50, 300 + number % 50, until + number) for number in range(rest)]
    changed = served(folder, other)
    for period in range(3):
        ours, theirs = (dataclasses.replace(one.periods[period], ends=0) for one in (result, changed))
        assert ours == theirs, f"period {period}"
    assert changed.periods[4].lines != result.periods[4].lines


def test_lists_of_what_is_retrained_find_what_it_ranks(result):
    """For devices that are there; who joins has no list yet."""
    for one in result.periods:
        for kind in ("start", "since"):
            if kind in one.lines["retrained"]:
                assert one.lines["refreshed-list"][kind].recall == pytest.approx(one.lines["retrained"][kind].recall)


def test_the_rows_that_change_most_are_published_new_ones_first():
    before = np.zeros((4, 2), np.float32)
    table = np.array([[3, 0], [0, 1], [2, 0], [0, 0], [9, 9]], np.float32)
    now, changed = published(before, table, 0.6)  # 3 of 5 rows: the new one and two more
    assert changed.tolist() == [1, 0, 1, 0, 1]
    assert now.tolist() == [[3, 0], [0, 0], [2, 0], [0, 0], [9, 9]]
    assert published(None, table, 0.2)[1].tolist() == [1] * 5
    assert published(before, table[:4], 1.0)[1].tolist() == [1, 1, 1, 0], "what did not move is not sent"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("refinement.rounds=1", "refinement.rounds"),
        ("pretraining.columns=16", "pretraining.columns"),
        ("secure_aggregation.enabled=true", "secure_aggregation.enabled"),
        ("selector=random", "selector"),
    ],
)
def test_what_a_timeline_knows_nothing_of_is_refused(folder, change, key):
    with pytest.raises(ScenarioError, match=rf"^{key}: a timeline does not go with it yet; set it to "):
        check_timeline(scenario_of(folder, planted(), change))


def test_the_planted_item_appears(result):
    assert any(item == NEW_ITEM for _, item, _ in planted())

"""Rivals in time are as strong as they may be, and no stronger."""

import numpy as np
import pytest

from fl_peel.data.interactions import UserItems
from fl_peel.data.timeline import Timeline
from strategies.timeline import period
from strategies.timeline.timeline_rivals import PeriodDevices, RecentUses, ScoredTables, StaticLists
from tests.helpers.planted_timeline import FLEET, planted
from tests.strategies.timeline.test_serve import served


def rows(*items):
    return UserItems(np.cumsum([0, *map(len, items)]).astype(np.int64), np.concatenate(items).astype(np.int32))


def test_a_cached_list_is_used_up():
    """By hand: device 0 has used two of its three items, device 1 none; device 2 was not there and has the common list,
    of which it has used the first.
    """
    none = [-1] * 17
    lists = StaticLists(np.array([[4, 5, 6, *none], [7, 8, 9, *none]], np.int32), np.array([1, 2, 3, *none], np.int32))
    used, wanted = rows([4, 5], [], [1]), rows([6, 4], [8], [2, 1])
    recall, ndcg = lists.metrics(PeriodDevices(np.arange(3), used, wanted, "start"), 10)
    assert recall.tolist() == [0.5, 1.0, 0.5]  # 4 and 1 were used already and are not recommended again
    best, second = 1.0, 1 / np.log2(3)
    # what is left moves up: item 6 and item 2 come first, item 8 second
    assert ndcg == pytest.approx([best / (1 + second), second, best / (1 + second)])


def test_lists_leave_out_what_a_device_had():
    scored = ScoredTables.from_popularity(np.array([5, 9, 7, 1]))
    made = StaticLists.from_scored(scored, np.array([5, 9, 7, 1]), rows([1], []))
    assert made.lists[:, :4].tolist() == [[2, 0, 3, -1], [1, 2, 0, 3]]
    assert made.common[:4].tolist() == [1, 2, 0, 3]


OLD, YOUNG = list(range(20)), list(range(20, 40))
TURNS = OLD * 3 + YOUNG * 2
"""Of these uses one after the other, in quarters of 25, old items have most and young ones the latest."""


def cut(*periods):
    """A timeline in whose periods, of which two are before the first one, each item is used by another user."""
    items, places = np.concatenate(periods), np.cumsum([1, *map(len, periods)])
    items = np.append(0, items)
    return Timeline(np.arange(len(items)), items, np.arange(len(items)), places[2:], places[:2])


def test_recent_popularity_is_of_late_where_that_found_more():
    """By hand, half-life half a period: three uses of an old item count at most 2^-1.5 + 2^-1 + 2^-.5 < 1.6, two of a
    young one at least 2^-.5 + 1. What is done next decides which line is taken, not what comes later.
    """
    for following, later, best in ((OLD, YOUNG, 0), (YOUNG, OLD, 1)):
        timeline = cut(TURNS, following * 4 + TURNS, later)
        uses = RecentUses.from_timeline(timeline, 0, 0.5)
        before = uses.before
        assert before.last.tolist() == [3] * 20 + [2] * 20
        assert before.faded[:20].max() < 1.6
        assert before.faded[20:].min() > 1.7
        assert uses.faded.sum() > before.faded.sum() / 4
        first, second = uses.lines(timeline)
        assert not np.array_equal(first.table, second.table)
        assert np.array_equal(uses.better(timeline, timeline.splits(0, "choose")).table, (first, second)[best].table)


@pytest.mark.slow
def test_what_is_static_has_no_freshness(tmp_path, monkeypatch):
    """The first tables and their lists, which serve for all time, do not favour what was in use that week."""
    (tmp_path / "fleet.yaml").write_text(FLEET)
    made, ranked = [], []
    from_scored, metrics = StaticLists.from_scored, ScoredTables.metrics
    monkeypatch.setattr(
        period.StaticLists,
        "from_scored",
        staticmethod(lambda scored, *rest: (made.append(scored), from_scored(scored, *rest))[1]),
    )
    monkeypatch.setattr(ScoredTables, "metrics", lambda self, asked: (ranked.append(self), metrics(self, asked))[1])
    changes = ["data.timeline.recency_exponents=[1.0]", "data.timeline.periods=1"]
    served(tmp_path, planted(), *changes)
    first, fresh = made[:2]  # cached-list, cached-list-fresh
    assert any(one is first for one in ranked), "start-table"
    assert not any(one is fresh for one in ranked)
    norms = [np.linalg.norm(one.table, axis=1) for one in (first, fresh)]
    factors = norms[1][norms[0] > 0] / norms[0][norms[0] > 0]
    assert factors.max() > 2 * factors.min(), "freshness is in the other"
    assert np.allclose(first.table[norms[0] > 0] * factors[:, None], fresh.table[norms[0] > 0])

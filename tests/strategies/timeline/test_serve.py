"""A planted timeline: what the federation and its rivals find when taste turns, an item appears and users join."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import norm

from fl_peel import wire
from fl_peel.errors import ScenarioError
from fl_peel.privacy.noise_plan import Stage1Scales
from fl_peel.steps.choice import ChoiceStep
from simulations.scenario_files import load_scenario
from strategies.rounds.masked_exchange import MaskedExchange
from strategies.run.run_paths import RunPaths
from strategies.timeline.period import FULL, WHOLE, PublishedTables, check_timeline, published, serve_timeline
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.planted_timeline import FLEET, TIMELINE, csv_of, planted


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "fleet.yaml").write_text(FLEET)
    return tmp_path


def scenario_of(folder, rows, *changes):
    (folder / "rows.csv").write_text(csv_of(rows))
    (folder / "timeline.yaml").write_text(TIMELINE.format(path=folder / "rows.csv", fleet=folder / "fleet.yaml"))
    return load_scenario(folder / "timeline.yaml", changes)


def served(folder, rows, *changes, nodes=2, name="run"):
    return serve_timeline(LoopbackGrid(nodes), scenario_of(folder, rows, *changes), RunPaths("", str(folder / name)))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    (folder / "fleet.yaml").write_text(FLEET)
    return served(folder, planted())


def recall(result, period, line, kind="all"):
    return result.periods[period].lines[line][kind].recall.value


def test_taste_that_turns_is_followed(result):
    """Half of the devices turn to 40 items that nobody used. By hand: who knows the world of a device, and no more,
    finds 20 of the some 30 that are left of it; a list of the old world finds nothing of the new one.
    """
    last = result.last
    assert last[FULL].lines["start"].recall > 0.4
    assert last["cached-list"].lines["start"].recall < 0.45 * last[FULL].lines["start"].recall.value
    assert last[FULL].over["cached-list"].low > 1.5
    assert recall(result, 0, FULL) < last[FULL].lines["all"].recall, "nobody knew of the turn before"


def test_a_federation_that_goes_on_is_as_good_as_one_that_starts_anew(result):
    for line in (FULL, WHOLE):
        assert result.last[line].over["retrained"].value == pytest.approx(1.0, abs=0.08)


def test_who_joins_is_served_from_the_first_action_on(result):
    joining = [one for one in result.periods if "first" in one.lines[FULL]]
    assert sum(one.joining for one in result.periods) == 30
    assert joining
    assert result.whole[FULL].lines["first"].recall > 1.5 * result.whole["popularity"].lines["first"].recall.value


def test_an_item_is_recommended_once_somebody_used_it(result):
    """The new item and the world that nobody used have no row at first; tables grow."""
    items = [one.items for one in result.periods]
    assert items == sorted(items)
    assert items[-1] > items[0]
    assert [one.new_items for one in result.periods[1:]] == np.diff(items).tolist()
    assert result.periods[0].new_items == items[0]


def test_what_devices_said_before_counts_half(folder, monkeypatch):
    """Of the exponents 0 and 1/2: 100 against 0, then twice 0 against 40. By hand, 50 : 40 and 25 : 60."""
    answers = iter([[100, 0], [0, 40], [0, 40]])
    asked = []

    def ask(channel, request, panel):
        asked.append(panel)
        return np.array(next(answers)), 5

    monkeypatch.setattr(ChoiceStep, "ask", ask)
    result = served(folder, planted(), "data.timeline.periods=3", "data.timeline.popularity_weights=[0]")
    assert [one.exponents["fresh"] for one in result.periods] == [0, 0, 0.5]
    assert asked == [one.devices for one in result.periods], "everybody is asked"


def test_devices_rank_with_as_much_of_the_mean_as_was_chosen(result, folder):
    """With nearly nothing else, all devices rank alike, wherever tables come from, and taste is lost."""
    alike = served(folder, planted(), "data.timeline.popularity_weights=[1000]")
    assert alike.last[WHOLE].over["retrained"].value == pytest.approx(1.0, abs=0.1)
    assert alike.last[FULL].lines["all"].recall < 0.8 * result.last[FULL].lines["all"].recall.value
    assert alike.last["start-table"].lines["all"].recall < 0.9 * result.last["start-table"].lines["all"].recall.value
    assert all(one.exponents["mean"] == 1000 for one in alike.periods)
    alone = served(folder, planted(), "data.timeline.popularity_weights=[0]", name="alone")
    sent = [one.periods[2].stage1_down * (one.periods[2].devices + one.periods[2].joining) for one in (alike, alone)]
    vectors = (sent[0] - sent[1]) / (4 * 8 * alike.periods[2].devices)
    assert 1 < vectors <= 2, "the mean vector, of eight numbers: to rank with, and to those that choose"


def test_films_that_come_and_go_are_followed(folder):
    """Everybody uses what came out of late, whatever it is, and its taste is noise: what is popular of the day says
    all, and a federation that may follow it is not below it.
    """
    rng, rows = np.random.default_rng(3), []
    for user in range(150):
        for day in np.sort(rng.uniform(0, 180, 16)):
            rows.append((user, int(max(day - rng.exponential(8), 0)), int(day * 86_400)))
    rows = sorted({(user, item): (user, item, time) for user, item, time in rows}.values(), key=lambda row: row[2])
    follows = served(folder, rows, "data.timeline.recency_exponents=[0, 0.5, 1]")
    stays = "data.timeline.recency_exponents=[0, 0.5, 1]", "data.timeline.popularity_weights=[0]"
    alone = served(folder, rows, *stays, name="alone")
    assert follows.last[FULL].lines["all"].recall > 1.05 * alone.last[FULL].lines["all"].recall.value
    assert follows.last[FULL].lines["all"].recall > 0.99 * follows.last["recent-popularity"].lines["all"].recall.value


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
                listed, ranked = (one.lines[line][kind].recall.value for line in ("refreshed-list", "retrained"))
                assert listed == pytest.approx(ranked)


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
        ("refinement.aggregation.robust.rule=median", "refinement.aggregation.robust.rule"),
        ("pretraining.columns=16", "pretraining.columns"),
        ("pretraining.columns=null", "pretraining.columns"),
        ("selector=random", "selector"),
    ],
)
def test_what_a_timeline_knows_nothing_of_is_refused(folder, change, key):
    with pytest.raises(ScenarioError, match=rf"^{key}: timelines do not support it yet; set it to "):
        check_timeline(scenario_of(folder, planted(), change))


def test_groups_with_tables_of_their_own_publish_each_by_itself():
    exact = [np.array([[4, 0], [0, 2]], np.float32), np.array([[8, 0], [0, 6]], np.float32)]
    first = PublishedTables.from_exact(exact, np.array([2.0, 1.0]), None, np.array([-1, -1]), 0.5)
    assert first.changed.tolist() == [[1, 1], [1, 1]]
    assert first.scored(1).tolist() == exact[1].tolist()
    # of what was group 1 and is group 0 by now, the first row moved most; the scale of the second is another
    second = PublishedTables.from_exact([exact[1] + 2, exact[0]], np.array([2.0, 2.0]), first, np.array([1, -1]), 0.5)
    assert second.changed.tolist() == [[0, 1], [1, 1]]
    assert second.scored(0).tolist() == [[8, 0], [2, 8]]
    third = PublishedTables.from_exact([second.scored(0)], np.array([2.0, 1.0]), second, np.array([0]), 0.0)
    assert third.changed.tolist() == [[0, 2]], "no row may change, one is rescaled"


MASKED = "secure_aggregation={enabled: true, devices_per_group: null, min_devices: 4}"


@pytest.mark.slow
def test_masks_change_no_figure_and_no_two_sums_have_the_same_number(folder, monkeypatch):
    numbers, settle = [], MaskedExchange.settle

    def settled(exchange, replies, searches=None):
        numbers.append(exchange.server_round)
        settle(exchange, replies, searches)

    monkeypatch.setattr(MaskedExchange, "settle", settled)
    changes = (
        "data.timeline.periods=2",
        "refinement.rounds=1",
        "refinement.acceptance.rule=always",
        "privacy.min_owners=1",
    )
    clear, masked = (served(folder, planted(), *changes, *more, name=f"{len(more)}") for more in ((), (MASKED,)))
    for ours, theirs in zip(clear.periods, masked.periods, strict=True):
        assert ours.lines == theirs.lines
        assert ours.reads == theirs.reads
        assert ours.exponents == theirs.exponents
        assert ours.refinement_rounds == theirs.refinement_rounds == 1
        assert 4 * ours.stage1_up < theirs.stage1_up, "of every device: all rows and shares of its keys"
    assert len(numbers) > 10
    assert len(set(numbers)) == len(numbers)


PRIVATE = "user_groups={count: 1, min_size: 4}", "data.timeline.periods=2", "pretraining.passes=2"
CLEAR, FEW = "secure_aggregation.enabled=false", MASKED.replace("min_devices", "neighbours: 4, min_devices")


def noised(mechanism):
    rows = "rows: all-sent, requests: group-prefix, min_owners: 1"
    return f"privacy={{mechanism: {mechanism}, target_epsilon: 8, delta: 1e-3, clipping: {{kind: flat}}, {rows}}}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mechanism", "masks"),
    [("central-gaussian", CLEAR), ("central-gaussian", FEW), ("local-gaussian", CLEAR)],
)
def test_all_noise_of_all_periods_together_costs_the_epsilon_of_the_report(mechanism, masks, folder, monkeypatch):
    """What is drawn, by step and part, is put together anew: Gaussian noise of std s on what differs by b is
    sum of (b / s)^2 in all, of which epsilon follows in closed form (Balle and Wang, ICML 2018).
    """
    drawn, steps = {}, {}
    whole, shared = Stage1Scales.whole, Stage1Scales.shared

    def seen(scales, number, draw):
        def one(part, shape, piece):
            steps[part, number] = scales.releases[part].bound * scales.mechanism.range / scales.std(part)
            return draw(part, shape, piece)

        return one

    def of_shares(scales, count, *identity):
        drawn.setdefault(identity, 0)
        return seen(scales, identity[0], shared(scales, count, *identity))

    monkeypatch.setattr(Stage1Scales, "whole", lambda one, *who: seen(one, who[who[0] == "server"], whole(one, *who)))
    monkeypatch.setattr(Stage1Scales, "shared", of_shares)
    result = served(folder, planted(), *PRIVATE, noised(mechanism), masks)
    assert bool(drawn) == (masks == FEW)
    report = result.privacy
    mu = np.sqrt(sum(ratio**2 for ratio in steps.values()))

    def delta_at(epsilon):
        return norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)

    assert report.epsilon <= 8
    assert delta_at(report.epsilon) <= report.delta
    assert delta_at(0.98 * report.epsilon) > report.delta, "and no more noise than that"
    times = {release.part.removeprefix("stage 1, "): release.rounds for release in report.accounted.releases}
    assert times == {"counts": 3 + 3, "pass": 2 * 2 + 1, "choice": 2} | dict.fromkeys(MOMENTS, 3)
    assert {part: sum(name == part for name, _ in steps) for part in times} == times, "each as often as accounted"
    assert "over all steps of 2 periods" in report.accounted.covers
    assert any("who and which items come, and when" in line for line in report.accounted.not_covered)


MOMENTS = "moment sizes", "moment vectors", "moment products", "moment items"


def test_under_noise_nothing_is_asked_that_nothing_accounts_for(folder):
    one = PRIVATE[0]
    for change, key in (("refinement.rounds=1", "refinement.rounds"), ("user_groups.count=2", "user_groups.count")):
        scenario = scenario_of(folder, planted(), one, noised("central-gaussian"), change)
        with pytest.raises(ScenarioError, match=rf"^{key}: .* set it to [01] under a mechanism$"):
            check_timeline(scenario)
    many = scenario_of(folder, planted(), one, noised("central-gaussian"), "privacy.delta=0.0067")
    with pytest.raises(ScenarioError, match=r"^privacy\.delta: 0.0067 is above one of 150 devices"):
        serve_timeline(LoopbackGrid(1), many, RunPaths("", str(folder / "run")))


MOVING = """
clock: {step_s: 600, steps_per_round: 2}
profiles:
  - name: moving
    memory: {table_share: 1.0}
    budget:
      process: markov
      states: {high: 1.0, low: 0.25}
      transitions_per_step: {high: {low: 1.0}, low: {high: 1.0}}
"""


@pytest.mark.slow
def test_budgets_that_move_are_followed(folder):
    """Half of the steps leave a quarter of the table: devices re-select at every one, and no byte is over."""
    (folder / "fleet.yaml").write_text(MOVING)
    result = served(folder, planted(), "data.timeline.periods=3", "data.timeline.rounds=60")
    first, second, last = (one.followed for one in result.periods)
    for one in (first, second, last):
        results, steps = one.figures, len(one.moments)
        assert results.devices >= 120
        assert results.grew + results.shrank == results.devices * (steps - 1)
        assert results.budget_violations == 0
        assert results.growth_bytes > 0
        assert results.floor_recall > 0
        assert results.floor_bytes_mean < results.stored_bytes_mean
    assert len(second.moments) == len(last.moments) == 120, "60 rounds of 2 steps a period"
    assert len(first.moments) < 120, "its own steps took longer: devices chose a filter"


def test_everybody_is_followed_those_that_join_as_well(result):
    assert sum(one.joining for one in result.periods) > 0
    for one in result.periods:
        assert one.followed.figures.devices == one.devices + one.joining


def test_devices_stay_where_no_other_group_is_near_enough(result, folder):
    stays = served(folder, planted(), "data.timeline.regroup_margin=0.9")
    moved = [sum(one.reads["federation at 30%"].moved for one in run.periods[1:]) for run in (result, stays)]
    assert moved[0] > moved[1], "those that move download another list"


def test_users_that_leave_fade_from_the_tables(folder):
    """Those of the third world stop on day 100: as they speak of less and less, nobody recommends it any more."""
    rows = [row for row in planted() if not (60 <= row[0] < 120 and row[2] >= 100 * 86_400)]
    result = served(folder, rows, "data.timeline={inactivity_half_life: 0.3, start: 55%, periods: 5, share: 7%}")
    assert result.periods[0].left < 10
    assert result.periods[-1].left >= 60
    # half of the devices are asked nothing from then on, and so say nothing
    assert result.periods[2].left == 60
    assert result.periods[2].stage1_up < 0.72 * result.periods[1].stage1_up
    assert result.periods[-1].user_groups < result.periods[0].user_groups, "theirs is dissolved"


@pytest.mark.slow
def test_refinement_is_rehearsed_one_period_earlier_and_done_with_everything(folder):
    changes = "refinement.rounds=2", "data.timeline.periods=2", "refinement.local.learning_rate=0.05"
    result = served(folder, planted(), *changes)
    assert all(0 <= one.refinement_rounds <= 2 for one in result.periods)
    assert all(one.refinement_down > 0 and one.refinement_up > 0 for one in result.periods)
    always = (*changes, "refinement.acceptance.rule=always")
    one, other = (served(folder, planted(), *always, nodes=nodes, name=f"{nodes}") for nodes in (2, 5))
    for ours, theirs in zip(one.periods, other.periods, strict=True):
        assert dataclasses.replace(ours, virtual_seconds=0.0) == dataclasses.replace(theirs, virtual_seconds=0.0)
        assert ours.refinement_rounds == 2
    harmful = served(folder, planted(), *changes[:2], "refinement.local.learning_rate=9", name="harmful")
    assert [period.refinement_rounds for period in harmful.periods] == [0, 0], "nobody kept what harms"
    assert harmful.periods[1].refinement_down > 0


def refining(folder, *changes):
    """What crossed, and the result of two periods with refinement, each of which selects its rounds first."""
    (folder / "fleet.yaml").write_text(FLEET)
    grid = LoopbackGrid(1)
    changes += "refinement.rounds=2", "data.timeline.periods=2", "data.timeline.start=65%"  # devices join from then on
    result = serve_timeline(grid, scenario_of(folder, planted(), *changes), RunPaths("", str(folder / "run")))
    return grid.crossed, result


def replies_of(crossed, kind, reply):
    return [wire.unpack(reply, one) for name, one in crossed if name == f"reply to {kind}"]


@pytest.fixture(scope="module")
def refined(tmp_path_factory):
    """The same, where every round is kept."""
    return refining(tmp_path_factory.mktemp("refined"), "refinement.acceptance.rule=always")


def test_all_that_happens_is_on_one_clock(refined):
    """Steps of stage 1, rounds of refinement and reading come one after the other; no two share a round."""
    asked = []
    for kind, content in refined[0]:
        if kind == wire.ROUND:
            asked.append((kind, wire.unpack(wire.RoundRequest, content).server_round))
        elif kind == wire.STEP and content["config"]["step"] != "vectors":  # which devices make whenever they come
            asked.append((kind, wire.unpack(wire.StepRequest, content).time))
    times = [time for _, time in asked]
    assert times == sorted(times)
    assert {time for kind, time in asked if kind == wire.ROUND}.isdisjoint(
        {time for kind, time in asked if kind != wire.ROUND}
    )
    assert len({time for kind, time in asked if kind == wire.ROUND}) == 2 * 2 * 2, "rehearsed and done, twice 2 rounds"


def test_every_byte_that_nodes_count_is_in_the_figures(refined):
    """Those of vectors that joining devices make, and of what is done once more to select rounds, as well."""
    crossed, result = refined
    assert all(one.joining for one in result.periods)
    for stage, kind, reply in (("stage1", wire.STEP, wire.StepReply), ("refinement", wire.ROUND, wire.RoundReply)):
        moved = [one.counts.classes.total() for one in replies_of(crossed, kind, reply)]
        for way, counter in (("down", "download_bytes"), ("up", "upload_bytes")):
            reported = sum(getattr(one, f"{stage}_{way}") * (one.devices + one.joining) for one in result.periods)
            assert reported == pytest.approx(sum(int(getattr(one, counter)) for one in moved))


def test_bytes_that_select_rounds_are_in_the_figures(tmp_path):
    """What devices fetch to compare tables is in no round, and counts as refinement all the same."""
    crossed, result = refining(tmp_path)
    rounds = replies_of(crossed, wire.ROUND, wire.RoundReply)
    moved = [int(one.counts.classes.total().download_bytes) for one in rounds]
    fetched = [int(one.download_bytes) for one in replies_of(crossed, wire.COMPARE, wire.CompareReply)]
    assert sum(fetched) > 0
    reported = sum(one.refinement_down * (one.devices + one.joining) for one in result.periods)
    assert reported == pytest.approx(sum(moved) + sum(fetched))

"""Central noise inside masked sums: every sum that is opened has all of it, the server adds none, no message names a
device's class, and nodes make no difference.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.node.round_context import answering
from fl_peel import wire
from fl_peel.exchange.counters import ClockCounts
from fl_peel.exchange.release import update_bits
from fl_peel.kernels import FIXED_POINT
from fl_peel.privacy.noise_plan import make_plan, noise_devices_of
from fl_peel.privacy.sources import SeededNoise, with_noise_shares
from fl_peel.scenario.scenario import Scenario
from fl_peel.secure.device_protocol import needed_of
from simulations.scenario_files import load_scenario
from strategies.rounds.federation import OpenedSum
from strategies.rounds.noised import PrivateRounds
from tests.conftest import plant
from tests.helpers.runs import figures, hosted_by, served
from tests.strategies.rounds.test_clear_steps import changed

PRIVATE = {
    "mechanism": "central-gaussian",
    "noise_multiplier": 30.0,
    "clipping": {"kind": "flat", "norm": 0.5},
    "rows": "all-sent",
    "requests": "group-prefix",
    "shrinkage": False,
}
SECURE = {"enabled": True, "devices_per_group": None, "min_devices": 4, "neighbours": 4, "threshold": 0.75}


def private(scenario: Scenario, privacy=(), secure=(), **sections) -> Scenario:
    parts = {"privacy": PRIVATE | dict(privacy), "secure_aggregation": SECURE | dict(secure)}
    return changed(scenario, **parts, **sections)


@pytest.fixture
def releases(monkeypatch):
    """What server code makes of every opened sum: (total as opened, release, opened)."""
    seen = []
    real = PrivateRounds.released

    def spied(self, total, server_round, group, num_devices, opened=None):
        release = real(self, total, server_round, group, num_devices, opened)
        seen.append((server_round, group, {part: values.copy() for part, values in total.items()}, release, opened))
        return release

    monkeypatch.setattr(PrivateRounds, "released", spied)
    return seen


@pytest.mark.parametrize(("devices", "threshold", "colluding", "fewest"), [(20, 0.75, 1, 14), (9, 0.55, 0, 5)])
def test_survivors_at_the_threshold_reach_the_planned_noise(devices, threshold, colluding, fewest):
    """20 x 0.75 = 15 must last, one of which may tell; 9: half and more is 5, and 0.55 x 9 = 4.95."""
    scenario = load_scenario(
        "private",
        [f"secure_aggregation.threshold={threshold}", f"privacy.colluding_devices={colluding}"],
    )
    assert noise_devices_of(scenario, devices) == fewest
    nothing = {"updates": np.zeros((400, 250), np.int64)}
    for count in (fewest, devices):
        noised = (
            with_noise_shares(nothing, {"updates": 3.0}, fewest, SeededNoise(0), 1, np.arange(count))["updates"]
            / FIXED_POINT
        )
        # standard error of a deviation over 100,000 numbers: 0.22 %
        assert noised.std() == pytest.approx(3.0 * math.sqrt(count / fewest), rel=0.01)
        assert abs(noised.mean()) < 0.06


@given(st.integers(3, 2000), st.floats(0.501, 1.0), st.integers(0, 1))
def test_no_sum_that_is_opened_has_less_noise(devices, threshold, colluding):
    scenario = load_scenario(
        "private", [f"secure_aggregation.threshold={threshold}", f"privacy.colluding_devices={colluding}"]
    )
    _, quorum = needed_of(scenario, devices)
    honest = quorum - colluding  # of the smallest sum that the server opens
    assert honest / noise_devices_of(scenario, devices) >= 1


def test_the_server_adds_nothing_and_knows_how_much_there_is(tiny_scenario):
    scenario = private(tiny_scenario)
    plan = make_plan(scenario)
    rounds = PrivateRounds.start(scenario, plan)
    total = {"updates": np.arange(12).reshape(3, 4), "signals": np.zeros(5, np.int64)}
    release = rounds.released(total, 1, 0, 20.0, OpenedSum(20, 18))
    assert (release.sums["updates"] * FIXED_POINT).tolist() == total["updates"].tolist()
    # shares of 14, of which 18 came; 0.5 is the bound of updates, 1 that of signals
    assert release.std["updates"] == pytest.approx(plan.scale("updates", 0.5) * math.sqrt(18 / 14))
    assert release.std["signals"] == pytest.approx(plan.scale("signals", 1.0) * math.sqrt(18 / 14))


def test_noise_is_inside_the_masked_sum(tiny_scenario, tmp_path, releases):
    """Updates are bounded by 0.5 in norm, noise has 15.8 in every number: what is opened is as noisy as planned."""
    served(private(tiny_scenario, secure={"dropout_share": 0.1, "neighbours": 18}), tmp_path / "run")
    assert len(releases) == 4
    for _, _, total, release, opened in releases:
        assert 15 <= opened.survivors <= opened.announced == 20
        assert np.array_equal(release.sums["updates"] * FIXED_POINT, total["updates"])
        assert release.std["updates"] >= 30 / math.sqrt(0.9) * 0.5
        numbers = release.sums["updates"]
        assert numbers.std() == pytest.approx(release.std["updates"], rel=4 / math.sqrt(2 * numbers.size))
    first, second = (release.sums["updates"].ravel() for _, group, _, release, _ in releases if group == 0)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15  # another round, other noise


VARIANTS = {
    "dropouts": {"secure": {"dropout_share": 0.1, "neighbours": 12}},
    "adaptive": {"privacy": {"clipping": {"kind": "adaptive", "norm": 0.5}}},
    "equal answers": {"privacy": {"answer_share": 0.6}},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_nodes_make_no_difference(tiny_scenario, tmp_path, variant):
    keys = VARIANTS[variant]
    scenario = private(tiny_scenario, **keys)
    unmasked = private(tiny_scenario, **(keys | {"secure": {**keys.get("secure", {}), "masked": False}}))
    one, three = (served(scenario, tmp_path / str(nodes), nodes=nodes)[0] for nodes in (1, 3))
    clear, _ = served(unmasked, tmp_path / "clear")
    assert figures(one) == figures(three)
    for key in ("full_table", "budgets", "user_groups"):
        assert getattr(one, key) == getattr(clear, key)
    assert one.privacy.epsilon == three.privacy.epsilon
    assert one.privacy.accounted.clip_norms == three.privacy.accounted.clip_norms


def test_of_a_void_group_nothing_is_released(tiny_scenario, tmp_path, releases):
    result, _ = served(private(tiny_scenario, secure={"dropout_share": 0.9}), tmp_path / "run")
    assert result.secure_aggregation.counts.void_groups == 4
    assert not releases


@pytest.mark.slow
def test_no_message_of_a_lone_device_names_its_class(tiny_scenario, tmp_path):
    """12 nodes with a device each. Outside masks there are only numbers of devices, always in the same place."""
    plant(tmp_path / "planted.csv", users_per_group=6, items_per_group=30, per_user=12, noise=0.1)
    _, grid = served(private(tiny_scenario, refinement={"rounds": 1}), tmp_path / "run", nodes=12)
    joined = [wire.unpack(wire.JoinReply, content) for kind, content in grid.crossed if kind == f"reply to {wire.JOIN}"]
    assert len(joined) == 12
    assert len({tuple(reply.ceilings.tolist()) for reply in joined}) == 1  # not its own, which is its class's
    kinds = {str(kind): kind.reply for kind in (wire.SECURE_KEYS, wire.SECURE_ROUND)}
    result = dict.fromkeys(kinds, 0)
    for kind, content in grid.crossed:
        what = kind.removeprefix("reply to ")
        if what == kind or what not in kinds:
            continue
        reply = wire.unpack(kinds[what], content)
        result[what] += 1
        expected = ClockCounts.zeros(len(reply.clock.sampled))
        if what == wire.SECURE_KEYS:
            expected.sampled[0] = 1
        else:
            assert not reply.classes.stacked().any()
            assert reply.slowest_us == 0
        assert np.array_equal(reply.clock.stacked(), expected.stacked())
    assert set(result.values()) == {12}


def test_devices_of_all_classes_answer_equally_often(tiny, tmp_path):
    """Phones that are there in 0.7, 0.8 or 0.9 of the rounds all answer in 0.6 of them."""
    often = {}
    for share in ("null", "0.6"):
        scenario = load_scenario(tiny, ["fleet=default", f"privacy.answer_share={share}"])
        cohort = hosted_by(scenario, tmp_path)
        there = np.mean([answering(cohort, np.arange(40), number) for number in range(1, 301)], axis=0)
        often[share] = [there[cohort.classes == kind].mean() for kind in range(3)]
    assert often["null"] == pytest.approx([0.7, 0.8, 0.9], abs=0.03)
    assert often["0.6"] == pytest.approx([0.6] * 3, abs=0.03)  # standard error below 0.01


def test_noised_words_are_wide(tiny_scenario):
    """Noise has no bound that would prove 32 bits enough."""
    assert update_bits(private(tiny_scenario), 4) == 64

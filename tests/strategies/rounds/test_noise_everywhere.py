"""Noise is on every row and block that was sent to every user group, whoever took part; means are over numbers that are
known beforehand.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from fl_peel import wire
from fl_peel.blocks.ranked_blocks import RowOrder
from fl_peel.privacy.noise_plan import make_plan
from simulations.scenario_files import load_scenario
from strategies.rounds import noised
from strategies.rounds.noised import GroupRelease, NoisedServerContents, PrivateRounds, take_release, take_signals
from tests.clients.node.test_bounded import CENTRAL
from tests.clients.node.test_cohort import LAYOUT
from tests.helpers.runs import served

RAW = (*CENTRAL, "privacy.shrinkage=false", "privacy.shares.counts=0.3")
COINS = (*RAW, "refinement.sampling=poisson")
FEW = (*COINS, "refinement.cohort_share=5%")
NOBODY = (*COINS, "refinement.cohort_share=0.000001")
ALL_AWAY = (*RAW, "fleet=[away.yaml]")
AWAY = "profiles: [{name: away, memory: {table_share: 1.0}, availability: {probability: 0.000001}}]"


@pytest.fixture
def taken(monkeypatch):
    """Of every round and user group: what was released, the number it was divided by, and how many were asked."""
    seen, asked = [], []

    def take(state, layout, blocks, release, num_devices, scenario):
        before = state.table.copy()
        take_release(state, layout, blocks, release, num_devices, scenario)
        seen.append(SimpleNamespace(blocks=blocks, release=release, by=num_devices, changed=state.table != before))

    real = NoisedServerContents.take

    def note(self, sent, sums, opened):
        asked.append((sent, self.federation.members.groups))
        real(self, sent, sums, opened)

    monkeypatch.setattr(noised, "take_release", take)
    monkeypatch.setattr(NoisedServerContents, "take", note)
    return seen, asked


@pytest.mark.parametrize("overrides", [RAW, FEW, NOBODY, ALL_AWAY], ids=["all", "few", "nobody", "all away"])
def test_every_number_of_every_user_group_is_noised_whoever_took_part(tiny, tmp_path, taken, overrides):
    (tmp_path / "away.yaml").write_text(AWAY)
    _, grid = served(load_scenario(tiny, overrides), tmp_path / "run")
    seen, _ = taken
    assert len(seen) == 2 * 2, "two rounds of two user groups"
    assert any(kind == wire.ROUND for kind, _ in grid.crossed) == (overrides is not NOBODY)
    for one in seen:
        assert set(one.release.sums) == {"updates", "signals", "counts"}
        for part, values in one.release.sums.items():
            noise = np.abs(values) / one.release.std[part]
            assert (values != 0).all(), part
            assert np.median(noise) > 0.3, part  # of a normal number: 0.67; few numbers, and sums besides
        assert one.changed.any(axis=1).sum() == len(one.release.sums["updates"]), "every row that was sent moves"


@pytest.mark.parametrize("overrides", [RAW, FEW, ALL_AWAY], ids=["all", "few", "all away"])
def test_means_are_over_the_number_that_was_known_beforehand(tiny, tmp_path, taken, overrides):
    """Devices asked, whether they answered or not; under Poisson sampling a share of all, whoever was drawn."""
    (tmp_path / "away.yaml").write_text(AWAY)
    served(load_scenario(tiny, overrides), tmp_path / "run")
    seen, asked = taken
    sizes = np.bincount(asked[0][1])
    expected = 0.05 * sizes if overrides is FEW else sizes
    assert [one.by for one in seen] == pytest.approx([*expected, *expected])


class Remembers:
    """An optimizer that keeps what it is given."""

    def apply(self, table, items, updates, changed):
        self.updates, self.changed = updates, changed


def test_a_mean_by_hand():
    """Sums of 10 over 5 devices are 2 each; hits of 10 were seen by 5 for every item of a block."""
    scenario = load_scenario("ml-100k", RAW)
    blocks = np.arange(LAYOUT.num_blocks)
    order = RowOrder.from_blocks(LAYOUT, blocks)
    rows, dim = len(order.items), LAYOUT.embedding_dim
    events = {}
    statistics = SimpleNamespace(add_signals=lambda hits, exposure, memory: events.update(hits=hits, exposure=exposure))
    optimizer = Remembers()
    state = SimpleNamespace(table=np.zeros((rows, dim), np.float32), optimizer=optimizer, statistics=statistics)
    sums = {"updates": np.full((rows, dim), 10.0), "signals": np.full(len(blocks), 10.0)}
    release = GroupRelease(sums, dict.fromkeys(sums, 1.0))
    take_release(state, LAYOUT, blocks, release, 5.0, scenario)
    assert optimizer.updates.tolist() == np.full((rows, dim), 2.0).tolist()
    assert optimizer.changed.all()
    take_signals(state, LAYOUT, blocks, release, 5.0, 0.0)
    assert events["hits"].tolist() == [10.0] * len(blocks)
    assert events["exposure"].tolist() == (5.0 * np.repeat(LAYOUT.group_sizes, LAYOUT.num_slices)).tolist()


def test_the_quantile_is_over_the_number_that_was_known_beforehand():
    """20 of 40 devices answered, all within the bound: 10 / 40 + 1/2 is a share of 3/4."""
    scenario = load_scenario(
        "ml-100k", [*CENTRAL, "privacy.noise_multiplier=0.0001", "privacy.clipping={kind: adaptive, norm: 1.0}"]
    )
    rounds = PrivateRounds.start(scenario, make_plan(scenario))
    rounds.end_round(np.array([20 << 23]), 1, 40.0)
    assert rounds.clip_norm == pytest.approx(np.exp(-0.2 * 0.25), rel=1e-3)

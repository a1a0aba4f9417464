"""Contents and statistics of one's own: the examples of docs/contents.md are run as a user would run them."""

import re
import types
from importlib.metadata import EntryPoint
from typing import ClassVar

import numpy as np
import pytest

from clients.node.contents import BoundedDeviceContents, OpenDeviceContents
from clients.node.contracts import DeviceContentsContract
from fl_peel import plugins
from fl_peel.contracts import StatisticContract
from fl_peel.errors import ScenarioError
from fl_peel.exchange.release import bounded, find_statistic
from fl_peel.kernels import FIXED_POINT
from simulations.engine.inputs import checked
from simulations.scenario_files import load_scenario
from strategies.rounds.contents import BucketedServerContents, OpenServerContents
from strategies.rounds.contracts import ServerContentsContract
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers.examples import but_one_slow
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.root import ROOT

DOCUMENT = (ROOT / "docs" / "contents.md").read_text()
EXAMPLES = [code for code in re.findall(r"```python\n(.*?)```", DOCUMENT, re.S) if "Contract" not in code]
MINE = types.ModuleType("my_package")
for code in EXAMPLES:
    exec(compile(code, "docs/contents.md", "exec"), vars(MINE))
ROBUST = "refinement.aggregation.robust.rule=median"
NOISE = [
    "pretraining.diversity_form=none",
    "privacy.mechanism=central-gaussian",
    "privacy.noise_multiplier=1",
    "privacy.clipping={kind: flat, norm: 1.0}",
]


class TestProximal(DeviceContentsContract):
    contents = MINE.Proximal


class TestSignOfMean(ServerContentsContract):
    contents = MINE.SignOfMean


class TestTopBlock(StatisticContract):
    statistic = MINE.TopBlock


class TestOpenOnDevices(DeviceContentsContract):
    contents = OpenDeviceContents


class TestBoundedOnDevices(DeviceContentsContract):
    contents = BoundedDeviceContents
    keys: ClassVar = {"privacy": {"rows": "all-sent"}}


class TestOpenOnTheServer(ServerContentsContract):
    contents = OpenServerContents


class TestBucketedOnTheServer(ServerContentsContract):
    contents = BucketedServerContents
    keys: ClassVar = {"refinement": {"aggregation": {"robust": {"rule": "median", "buckets": 3}}}}

    def contribution(self, seed, blocks):
        arrays = super().contribution(seed, blocks)
        holders = np.zeros((3, blocks), np.int64)
        holders[seed % 3] = arrays["holders"]
        wide = {"wide_rows": np.zeros(0, np.int64), "wide_sums": np.zeros((0, 4), np.int64)}
        numbers = {"buckets": np.full(len(arrays["rows"]), seed % 3), "wide_buckets": np.zeros(0, np.int64)}
        return arrays | wide | numbers | {"bucket_holders": holders}


@pytest.fixture
def installed(monkeypatch):
    """As if a package with the examples' entry points were installed."""
    groups = {
        "fl_peel.device_contents": {"proximal": MINE.Proximal, "both": MINE.Proximal, "nonsense": int},
        "fl_peel.server_contents": {"sign": MINE.SignOfMean, "both": MINE.SignOfMean},
        "fl_peel.statistics": {"top-block": MINE.TopBlock, "nonsense": int},
    }

    class Point(EntryPoint):
        def load(self):
            return groups[self.group][self.name]

    real = plugins.entry_points

    def result(*, group, **wanted):
        mine = [Point(name, f"my_package:{name}", group) for name in groups.get(group, ())]
        return [*real(group=group, **wanted), *mine]

    monkeypatch.setattr(plugins, "entry_points", result)
    find_statistic.cache_clear()
    yield
    find_statistic.cache_clear()


def served(tiny, folder, *overrides, nodes=2):
    scenario = load_scenario(tiny, [*overrides, f"engine.nodes={nodes}", "elasticity.rounds=0"])
    grid = LoopbackGrid(nodes)
    return serve(grid, scenario, RunPaths("", str(folder))), grid


def qualities(result):
    return [(row.recall, row.ndcg) for row in result.budgets], result.full_table.refined


def test_every_example_is_short():
    assert len(EXAMPLES) == 3
    for code in EXAMPLES:
        assert len(code.splitlines()) <= 30


@pytest.mark.parametrize("name", but_one_slow("both", ["proximal", "sign", "both"]))
def test_a_run_with_ones_own_contents(tiny, tmp_path, installed, name):
    kept = "refinement.acceptance.rule=always"
    plain, _ = served(tiny, tmp_path / "plain", kept)
    mine, _ = served(tiny, tmp_path / "mine", kept, f"refinement.contribution={name}")
    again, _ = served(tiny, tmp_path / "again", kept, f"refinement.contribution={name}", nodes=3)
    assert qualities(mine) != qualities(plain)
    assert qualities(mine) == qualities(again)  # on any number of nodes


def test_a_statistic_is_noised_accounted_and_taken(tiny, tmp_path, installed):
    alone, _ = served(tiny, tmp_path / "alone", *NOISE)
    statistic = "privacy.statistics={top-block: {share: 0.5, norm: 2.0}}"
    mine, _ = served(tiny, tmp_path / "mine", *NOISE, statistic)
    assert mine.privacy.epsilon == alone.privacy.epsilon  # the same noise multiplier, divided anew
    parts = {row.part: row for row in mine.privacy.accounted.releases}
    assert set(parts) == {"updates", "signals", "top-block"}
    assert parts["top-block"].share == pytest.approx(0.5 / 1.5)
    assert parts["top-block"].bound == 2.0
    assert parts["top-block"].noise_std == pytest.approx(2.0 * (1.5 / 0.5) ** 0.5)  # central: multiplier 1
    assert qualities(mine) != qualities(alone)


def test_a_statistic_goes_through_secure_aggregation_unchanged(tiny, tmp_path, installed):
    secure = [
        *NOISE,
        "privacy.statistics={top-block: {share: 0.5}}",
        "privacy.rows=all-sent",
        "secure_aggregation={enabled: true, min_devices: 3, neighbours: 4, devices_per_group: null}",
    ]
    masked, _ = served(tiny, tmp_path / "masked", *secure)
    clear, _ = served(tiny, tmp_path / "clear", *secure, "secure_aggregation.masked=false")
    assert qualities(masked) == qualities(clear)
    assert masked.secure_aggregation.counts.devices > 0


def test_contributions_are_bounded_by_the_framework():
    values = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    assert bounded(values[:1], 1.0, l1=False).tolist() == pytest.approx([0.6 * FIXED_POINT, 0.8 * FIXED_POINT], abs=2)
    assert bounded(values[1:2], 1.0, l1=False).tolist() == pytest.approx([0.3 * FIXED_POINT, 0.4 * FIXED_POINT], abs=2)
    assert bounded(values[:1], 1.0, l1=True).tolist() == pytest.approx(
        [3 / 7 * FIXED_POINT, 4 / 7 * FIXED_POINT], abs=2
    )
    total = bounded(values, 1.0, l1=False)
    assert total.tolist() == sum(bounded(values[[i]], 1.0, l1=False) for i in range(3)).tolist()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["refinement.contribution=proximall"], "unknown contribution 'proximall'; did you mean 'proximal'?"),
        (["privacy.statistics={top-blok: {share: 1}}", *NOISE], "unknown statistic 'top-blok'; did you mean 'top-b"),
        (["privacy.statistics={top-block: {share: 1}}"], "statistics are noised sums; set privacy.mechanism"),
        (["privacy.statistics={top-block: {share: 0}}", *NOISE], "greater than 0"),
    ],
)
def test_mistakes_are_told_when_the_scenario_is_read(tiny, installed, overrides, message):
    with pytest.raises(ScenarioError, match=re.escape(message)) as caught:
        load_scenario(tiny, overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["refinement.contribution=nonsense"], "'nonsense' is no DeviceContents"),
        (["refinement.contribution=proximal", ROBUST], "'proximal' does not support sub-cohorts, .*: median needs;"),
        (["refinement.contribution=sign", ROBUST], "'sign' does not support sub-cohorts, .*: median needs; subclass"),
        (["refinement.contribution=proximal", *NOISE], "'proximal' is not held to what privacy"),
        (["refinement.contribution=sign", *NOISE], "'sign' is not held to what privacy"),
        (["privacy.statistics={nonsense: {share: 1}}", *NOISE], "is not a BoundedStatistic"),
    ],
)
def test_plug_ins_are_looked_at_before_anything_runs(tiny, installed, overrides, message):
    with pytest.raises(ScenarioError, match=message):
        checked(load_scenario(tiny, overrides), None)

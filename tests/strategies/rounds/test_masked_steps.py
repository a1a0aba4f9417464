"""Stage 1 under secure aggregation on the real messages: the sums are those in the clear, and all that is learned."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from flwr.app import Error, Message

from clients.node.cohort import Cohort
from fl_peel import wire
from fl_peel.device_storage import device_splits
from fl_peel.errors import SecureAggregationError
from fl_peel.pretraining.stage1 import GroupPlan, PooledSums, run_stage1
from fl_peel.scenario.scenario import Scenario
from fl_peel.secure.device_protocol import DropoutStage, vanishing
from fl_peel.steps.base import AnswerCost, HeldItems, StepTerms, hidden
from fl_peel.steps.passes import PassStep
from strategies.nodes import failure
from strategies.run.prepare import prepare
from strategies.run.run import Run
from strategies.run.run_paths import RunPaths
from tests.conftest import plant
from tests.helpers.loopback import LoopbackGrid, let_through
from tests.helpers.runs import connected
from tests.strategies.rounds.test_clear_steps import AT_HOME, SPECTRAL, changed, fleet

MASKED = ("counts", "pass", "choice", "groups", "moments")
CHEAP = {"passes": 2}


@pytest.fixture
def clear(tiny_scenario, tmp_path) -> Scenario:
    """Nothing is collected, everybody is there, and nothing is refined."""
    home = fleet(tmp_path, AT_HOME, "home.yaml")
    everything = {"min_owners": 1}  # test_counted_steps.py has sums that stay closed
    keys = SPECTRAL | CHEAP
    return changed(tiny_scenario, pretraining=keys, fleet=home, refinement={"rounds": 0}, privacy=everything)


def secure(scenario: Scenario, **keys) -> Scenario:
    return changed(scenario, secure_aggregation={"enabled": True, "min_devices": 3, "neighbours": 4} | keys)


def prepared(scenario, folder, nodes=2, interfere=let_through):
    run = connected(scenario, folder, nodes, interfere)
    return prepare(run), run.grid


def same(one, other) -> bool:
    """Tables, maps, centroids: all that stage 1 leaves."""
    assert np.array_equal(one.start.own, other.start.own)
    assert np.array_equal(one.start.centroids, other.start.centroids)
    assert np.array_equal(one.start.counts, other.start.counts)
    assert one.start.chosen == other.start.chosen
    for mine, theirs in zip(one.start.groups, other.start.groups, strict=True):
        for field in dataclasses.fields(mine):
            assert np.array_equal(getattr(mine, field.name), getattr(theirs, field.name)), field.name
    return True


def sent(grid, *kinds):
    """The replies of these kinds, in order."""
    wanted = {f"reply to {kind}" for kind in kinds}
    return [wire.unpack(wire.SecureSumsReply, content) for kind, content in grid.crossed if kind in wanted]


@pytest.mark.slow
def test_dropouts_leave_the_sums_of_those_who_stayed(clear, tmp_path):
    scenario = secure(clear, dropout_share=0.2, neighbours=16)
    splits = device_splits(scenario, "", str(tmp_path / "run"))

    def stayed(step):
        return ~np.isin(vanishing(scenario, -step, np.arange(40)), [DropoutStage.SHARES, DropoutStage.VECTOR])

    run, _ = prepared(scenario, tmp_path / "run", 5)
    devices = [int(record.counts.classes.devices.sum()) for record in run.steps if record.step in MASKED]
    assert devices == [int(stayed(step).sum()) for step in range(1, len(devices) + 1)]
    assert len(set(devices)) > 1
    assert min(devices) < 40
    first = splits.train.select(np.flatnonzero(stayed(1)))
    assert run.start.counts.tolist() == first.popularity(59).tolist()

    class Staying(PooledSums):
        """Over whoever stayed in each step."""

        step = 0

        def ask(self, step, sent, opened=None):
            if not step.sums(self.terms):
                yield from super().ask(step, sent, opened)
                return
            self.step += 1
            everybody, there = self.devices, stayed(self.step)
            made = None if everybody.made is None else everybody.made[there]
            rows = splits.train.select(np.flatnonzero(there))
            self.devices = dataclasses.replace(everybody, contributed=rows, made=made)
            sums = list(super().ask(step, sent, opened))
            self.devices = everybody
            yield from sums

    config = scenario.pretraining.spectral()
    there = Staying(splits.train, StepTerms(59, config.user_exponent))
    start = run_stage1(there, config, GroupPlan(8, 2, 4, 0))
    assert np.array_equal(start.own, run.start.own)
    assert np.array_equal(start.maps, run.start.maps)
    unmasked, _ = prepared(changed(scenario, secure_aggregation={"masked": False}), tmp_path / "open", 5)
    assert same(unmasked, run)
    for one, other in zip(run.steps, unmasked.steps, strict=True):
        assert one.virtual_seconds == other.virtual_seconds
        assert one.counts.classes.stacked().tolist() == other.counts.classes.stacked().tolist()
        assert one.counts.clock.stacked().tolist() == other.counts.clock.stacked().tolist()


@pytest.mark.slow
def test_a_node_that_fails_between_two_parts_has_dropped_out(clear, tmp_path, monkeypatch):
    """What its devices sent before is in no sum, and it is asked no more."""
    monkeypatch.setattr("strategies.rounds.step_channels.PART_BYTES", 12_000)
    scenario = secure(clear, neighbours=16)

    failed = []

    def fail_later(partition, message):
        if partition != 3 or message.metadata.message_type != wire.SECURE_SUMS:
            return None
        request = wire.unpack(wire.SecureSumsRequest, message.content)
        if not request.first or request.time != 2 or failed:
            return None
        failed.append(request.first)
        return Message(Error(0, "out of memory"), reply_to=message)

    run, _ = prepared(scenario, tmp_path / "run", 5, fail_later)
    devices = [int(record.counts.classes.devices.sum()) for record in run.steps]
    assert devices[:3] == [40, 32, 40]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Cohort,
            "available",
            lambda self, places, time: (self.devices[places] % 5 != 3) | (time != 2),
        )
        other, _ = prepared(scenario, tmp_path / "other", 5)
    assert same(run, other)


def swapped(folder) -> str:
    """The same data, but for four items of one device, in place of which it has others; all items are still there."""
    rows = [line.split(",") for line in (folder / "planted.csv").read_text().split()[1:]]
    owners = Counter(item for _, item in rows)
    own = [item for user, item in rows if user == "u0007"]
    free = sorted(set(owners) - set(own))
    other = dict(zip((item for item in own if owners[item] > 1), free[:4], strict=False))
    lines = [f"{user},{other.get(item, item) if user == 'u0007' else item}" for user, item in rows]
    (folder / "other.csv").write_text("user,item\n" + "\n".join(lines) + "\n")
    return str(folder / "other.csv")


@pytest.mark.slow
def test_what_crosses_of_a_lone_device_is_masked_and_the_same_in_form_whatever_it_has(clear, tmp_path, monkeypatch):
    """12 nodes with a device each: what one says in the clear is in no masked reply, which looks drawn at random. No
    mask is used for two parts or steps: their difference would be that of what was said.
    """
    monkeypatch.setattr("strategies.rounds.step_channels.PART_BYTES", 9000)
    plant(tmp_path / "planted.csv", users_per_group=6, items_per_group=30, per_user=12, noise=0.1)
    masked, grid = prepared(secure(clear), tmp_path / "masked", 12)
    plain, open_grid = prepared(secure(clear, masked=False), tmp_path / "clear", 12)
    assert same(masked, plain)
    hidden_, shown = (sent(each, wire.SECURE_SUMS) for each in (grid, open_grid))
    assert len(hidden_) == len(shown) == 12 * (1 + 2 * 2 + 1 + 1 + 1)  # a pass in two parts
    words = np.concatenate([reply.sum.wide for reply in hidden_])
    for one, other in zip(hidden_, shown, strict=True):
        assert one.sum.devices.tolist() == other.sum.devices.tolist()
        assert len(one.sum.wide) == len(other.sum.wide) > 40
        assert not (one.sum.wide == other.sum.wide).any()
        assert not one.classes.stacked().any()
        assert not one.clock.stacked().any()
        assert (other.sum.wide == 0).mean() > 0.1
    bits = np.unpackbits(words.view(np.uint8))
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(bits))
    masks = words - np.concatenate([reply.sum.wide for reply in shown])
    assert len(np.unique(masks)) == len(masks)

    others = changed(secure(clear), data={"path": swapped(tmp_path)})
    _, other_grid = prepared(others, tmp_path / "others", 12)
    forms = [
        [
            (kind, {name: (array.shape, len(array.data)) for name, array in content["arrays"].items()})
            for kind, content in each.crossed
            if "secure" in kind or "sums" in kind
        ]
        for each in (grid, other_grid)
    ]
    assert forms[0] == forms[1]
    one, other = (
        device_splits(scenario, "", str(tmp_path / folder)).train
        for scenario, folder in ((secure(clear), "masked"), (others, "others"))
    )
    assert sorted(one.row(7)) != sorted(other.row(7))
    assert one.counts().tolist() == other.counts().tolist()


def test_little_memory_costs_exchanges_and_each_costs_latency():
    items = np.array([10, 10, 10])
    budgets = np.array([10**6, 488 + 60, 35])
    step = PassStep(20).cost(StepTerms(60, 0.3, all_rows=True), HeldItems(items, items, items), budgets)
    cost = hidden(step, AnswerCost(8 * 1235, 100, 200, 4), budgets)
    assert cost.download_bytes.tolist() == [20 * (2 * 60 + 1) + 100] * 3
    assert cost.upload_bytes.tolist() == [8 * 1235 + 200] * 3
    assert cost.least_bytes.tolist() == [28 + 8] * 3  # a column of the rows it has, its sum, and a word
    # parts of (548 - 28) / 8 = 65 words; 19 columns of 28 bytes at a time
    assert cost.exchanges.tolist()[:2] == [4, 4 + 1 + 18]
    assert (budgets < cost.least_bytes).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"dropout_share": 0.95}, r"stage 1, counts: \d+ of 40 devices sent their vector, 22 must .*raise pretraining"),
        ({"dropout_share": 0.95, "masked": False}, r"stage 1, counts: \d+ of 40 devices sent their vector, 22 must"),
        ({"min_devices": 41}, r"counts: 40 devices announced keys, secure_aggregation.min_devices is 41"),
    ],
)
def test_too_few_devices_end_the_run_with_one_clear_line(clear, tmp_path, keys, why):
    with pytest.raises(SecureAggregationError, match=why) as caught:
        prepared(secure(clear, **keys), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run" / "nodes").glob("*/secure/*")), "and leave no secret behind"


@pytest.mark.slow
def test_a_late_device_has_dropped_out_and_its_masks_are_recovered(clear, tmp_path):
    slow = AT_HOME.replace("share: 0.5, memory: {table_share: 0.6}}", "share: 0.2, memory: {table_share: 0.6}, "
                           "network: {downlink_mbps: 0.05}}").replace("share: 0.5, memory: {table_share: 1.0}",
                           "share: 0.8, memory: {table_share: 1.0}")  # fmt: skip
    late = secure(changed(clear, fleet=fleet(tmp_path, slow), pretraining={"deadline_s": 1.0}), neighbours=16)
    run, _ = prepared(late, tmp_path / "late")
    clocks = {record.step: record.counts.clock.total() for record in run.steps}
    assert 0 < clocks["pass"].stragglers < 18
    passes = next(record for record in run.steps if record.step == "pass")
    assert passes.counts.classes.devices.sum() + passes.counts.clock.stragglers.sum() == 40


def test_a_part_is_sent_once_and_no_secret_is_left(clear, tmp_path):
    """Two vectors under one mask would give their difference away."""
    caught = []

    def again(partition, message):
        if message.metadata.message_type == wire.SECURE_UNMASK and not caught:
            request = next(content for kind, content in grid.crossed if kind == wire.SECURE_SUMS)
            caught.append(True)
            (reply,) = grid.send_and_receive(
                [Message(request, dst_node_id=message.metadata.dst_node_id, message_type=wire.SECURE_SUMS)]
            )
            caught.append(failure(reply, "node"))

    grid = LoopbackGrid(1, again)
    scenario = secure(clear)
    prepare(Run.connect(grid, scenario, RunPaths("", str(tmp_path / "run"))))
    assert "stage 1, step 1: devices refuse: after stage round a different one follows" in str(caught[1])
    stores = list((tmp_path / "run" / "nodes").glob("*/secure"))
    assert len(stores) == 1
    assert not [path for store in stores for path in store.iterdir()]


def test_a_choice_is_masked_where_the_rest_is_collected(clear, tmp_path):
    free = changed(
        clear,
        pretraining={
            "source": "collected",
            "collected": {"mode": "users", "share": 1.0},
            "count_exponent": None,
            "value_exponent": None,
        },
    )
    plain, _ = prepared(free, tmp_path / "plain")
    masked, grid = prepared(secure(free), tmp_path / "masked")
    assert same(masked, plain)
    kinds = (wire.STEP, wire.SECURE_SUMS)
    steps = {kind: content["config"]["step"] for kind, content in grid.crossed if kind in kinds}
    assert steps == {wire.STEP: "vectors", wire.SECURE_SUMS: "choice"}

"""Whole runs under secure aggregation, on the real messages: the figures are those of a run in the clear."""

import dataclasses
import json

import numpy as np
import pytest

from clients.node.masked import FILE_KEY_BYTES, KEY_VARIABLE, SecretStore
from fl_peel import wire
from fl_peel.errors import SecureAggregationError
from fl_peel.exchange.release import update_bits
from fl_peel.scenario.scenario import Scenario
from fl_peel.secure.device_protocol import DropoutStage, vanishing
from fl_peel.secure.vector import MaskWords
from fl_peel.wire import OpenedShares
from simulations.scenario_files import load_scenario
from strategies.figures.schema import from_json, to_json
from strategies.rounds import strategy as peel
from strategies.rounds.masked_exchange import AnnouncedKeys, SecureGroup
from tests.conftest import plant
from tests.helpers.loopback import failing
from tests.helpers.runs import figures, served
from tests.strategies.rounds.test_clear_steps import changed

EVERYBODY = {"enabled": True, "devices_per_group": None, "min_devices": 3, "neighbours": 4}


@pytest.fixture
def tiny_scenario(tiny_scenario):
    """Everything that is refined is kept: with masks, nobody says what helps. test_counted_owners.py has rows that stay
    closed.
    """
    return changed(tiny_scenario, refinement={"acceptance": {"rule": "always"}}, privacy={"min_owners": 1})


@pytest.fixture(autouse=True)
def without_coverage(monkeypatch):
    """With masks, nobody says which items are on lists; nor here in the runs without that they are compared with."""
    monkeypatch.setattr(Scenario, "shown_bytes", lambda self, num_items: 0)


def secure(scenario: Scenario, **keys) -> Scenario:
    return changed(scenario, secure_aggregation=EVERYBODY | keys)


def without_bytes(result) -> dict:
    """Figures that do not depend on what the protocol itself moves, and for how long."""
    figures_ = figures(result)
    moved = ("download_bytes", "upload_bytes", "virtual_seconds", "energy_j")
    rows = [*figures_["rounds"], *figures_["device_classes"].values(), *figures_["history"]]
    for row in rows:
        for key in moved:
            row.pop(key, None)
    for key in ("traces", "bytes_per_device", "time_to_recall"):
        del figures_[key]
    return figures_


def test_the_figures_are_those_of_a_run_without(tiny_scenario, tmp_path):
    """Everybody takes part and nobody drops out, so the difference is that of the sums: none at all."""
    plain, _ = served(tiny_scenario, tmp_path / "plain")
    masked, grid = served(secure(tiny_scenario), tmp_path / "masked")
    assert without_bytes(masked) == without_bytes(plain)
    assert masked.history[0].loss > 0  # something was learned
    events = masked.secure_aggregation.counts
    assert (events.announced, events.devices, events.dropped, events.void_groups) == (80, 80, 0, 0)
    assert masked.secure_aggregation.devices_per_second > 0
    assert not [kind for kind, _ in grid.crossed if kind.endswith(wire.ROUND)]
    asked = [wire.unpack(wire.SecureRoundRequest, one) for kind, one in grid.crossed if kind == wire.SECURE_ROUND]
    assert asked
    assert not any(len(one.traced) for one in asked), "budgets and signals of single devices are not sent"
    assert masked.traces == ()
    no_secret_is_left(tmp_path / "masked")


def no_secret_is_left(folder):
    stores = list((folder / "nodes").glob("*/secure"))
    assert len(stores) == 2
    assert not [path for store in stores for path in store.iterdir()]


def test_dropouts_leave_the_sum_of_those_who_stayed(tiny_scenario, tmp_path):
    """Those that vanish before they send a vector are as if they had not been sampled; of the rest, nothing is lost."""
    scenario = secure(tiny_scenario, dropout_share=0.25, neighbours=16)
    result, _ = served(scenario, tmp_path / "run", nodes=2)
    devices = np.arange(40)
    for number, row in enumerate(result.secure_aggregation.rounds, start=1):
        when = vanishing(scenario, number, devices)
        assert (np.bincount(when, minlength=4) > 0).all(), "each stage loses somebody in this example"
        gone = np.isin(when, [DropoutStage.SHARES, DropoutStage.VECTOR])
        assert row.counts.void_groups == 0
        assert row.counts.devices == 40 - gone.sum() == 40 - row.counts.dropped
        assert row.counts.recovered == (when == DropoutStage.VECTOR).sum()
        assert result.rounds[number - 1].devices == row.counts.devices

    def only_survivors(seed, server_round, cohort, share, **_):
        when = vanishing(scenario, server_round, devices)
        return np.flatnonzero(np.isin(when, [DropoutStage.NEVER, DropoutStage.OPENING]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peel, "sample_cohort", only_survivors)
        plain, _ = served(tiny_scenario, tmp_path / "plain")
    for key in ("full_table", "budgets", "user_groups"):
        assert getattr(result, key) == getattr(plain, key)
    losses = [[row.loss for row in each.history] for each in (result, plain)]
    assert losses[0] == losses[1]


def test_too_few_survivors_void_the_group_and_say_so(tiny_scenario, tmp_path, caplog):
    scenario = secure(tiny_scenario, dropout_share=0.9)
    result, _ = served(scenario, tmp_path / "run")
    events = result.secure_aggregation
    assert events.counts.void_groups == 4
    assert events.counts.devices == 0
    untouched, _ = served(changed(tiny_scenario, refinement={"rounds": 0}), tmp_path / "untouched")
    assert result.full_table == untouched.full_table
    assert [row.devices for row in result.rounds] == [0, 0]
    assert "devices sent their vector" in events.rounds[0].void[0].why
    assert "user group 0 is void" in caplog.text
    no_secret_is_left(tmp_path / "run")


def test_groups_with_few_devices_sit_out(tiny_scenario, tmp_path):
    scenario = changed(tiny_scenario, user_groups={"count": 3})
    sizes = [row.devices for row in served(scenario, tmp_path / "plain")[0].user_groups]
    larger = [size for size in sizes if size > min(sizes)]
    assert larger, "one group is smaller in this example"
    result, _ = served(secure(scenario, min_devices=min(sizes) + 1), tmp_path / "run")
    assert result.secure_aggregation.counts.sat_out_groups == 2 * (len(sizes) - len(larger))  # in each of two rounds
    assert [row.devices for row in result.rounds] == [sum(larger)] * 2


def test_a_node_that_fails_in_a_round_has_dropped_out(tiny_scenario, tmp_path):
    """A fifth of the devices, those of node 3, is lost with what it holds; the others' sum is recovered."""
    fail_once = failing(wire.SECURE_ROUND, lambda partition, request: partition == 3 and request.server_round == 1)
    scenario = secure(tiny_scenario, neighbours=12)
    result, _ = served(scenario, tmp_path / "run", nodes=5, interfere=fail_once)
    rows = [row.counts for row in result.secure_aggregation.rounds]
    assert [(row.devices, row.recovered, row.void_groups) for row in rows] == [
        (32, 8, 0),
        (40, 0, 0),
    ]


def test_tampered_shares_make_rounds_void_with_one_clear_line_each(tiny_scenario, tmp_path, caplog):
    """Nobody's update is opened, nobody is left out for it, and the run goes on: somebody on the way did it."""

    def tamper(partition, message):
        if message.metadata.message_type == wire.SECURE_ROUND:
            request = wire.unpack(wire.SecureRoundRequest, message.content)
            tampered = {
                group: dataclasses.replace(inbox, sealed=inbox.sealed ^ np.uint8(1))
                for group, inbox in request.secure.items()
            }
            message.content.clear()
            message.content.update(wire.pack(dataclasses.replace(request, secure=tampered)))

    result, _ = served(secure(tiny_scenario), tmp_path / "run", interfere=tamper)
    assert [row.devices for row in result.rounds] == [0, 0]
    whys = [void.why for row in result.secure_aggregation.rounds for void in row.void]
    assert len(whys) == 4
    assert all(why.endswith("cannot open what was sealed between them") for why in whys)
    lines = [record.getMessage() for record in caplog.records if "refuses the shares of device" in record.getMessage()]
    assert len(lines) == 80
    assert not any("\n" in line for line in lines)


@pytest.mark.parametrize("fault", ["sealed nothing that opens", "denies what it was sealed", "both, of others"])
def test_who_seals_nothing_that_opens_or_denies_all_is_at_fault_and_nobody_else(tiny_scenario, fault):
    """Ten of forty devices; of each of the others, about three of twelve neighbours are among them, up to seven."""
    devices, everybody = np.arange(40), np.ones(40, np.bool_)
    scenario = secure(tiny_scenario, neighbours=12)
    for seed in range(20):
        keys = AnnouncedKeys(devices, *np.zeros((2, 40, 32), np.uint8))
        group = SecureGroup.from_keys(scenario, seed, 0, keys)
        group.shared[:] = True
        liars = np.random.default_rng(seed).choice(40, 10, replace=False)
        denied = np.zeros(group.neighbours.shape, np.bool_)
        if fault != "denies what it was sealed":
            denied |= np.isin(group.neighbours, liars if fault != "both, of others" else liars[:5])
        if fault != "sealed nothing that opens":
            denied[liars if fault != "both, of others" else liars[5:]] = True
        opened = OpenedShares(devices, np.where(denied, 0, 1), np.zeros((*denied.shape, 1), np.uint8))
        closed = group.closed(everybody, [opened])
        assert closed.tolist() in ([], sorted(liars.tolist()))
        assert len(closed) or fault != "sealed nothing that opens"


@pytest.mark.slow
def test_what_the_server_gets_of_a_lone_device_is_masked(tiny_scenario, tmp_path):
    """12 nodes with a device each: what one replies in the clear is in no masked reply, and the sums are the same."""
    plant(tmp_path / "planted.csv", users_per_group=6, items_per_group=30, per_user=12, noise=0.1)
    one_round = changed(tiny_scenario, refinement={"rounds": 1})
    masked, grid = served(secure(one_round), tmp_path / "masked", nodes=12)
    clear, open_grid = served(secure(one_round, masked=False), tmp_path / "clear", nodes=12)
    assert figures(masked) == figures(clear)

    def vectors(crossed) -> list[MaskWords]:
        result = []
        for kind, content in crossed:
            if kind == f"reply to {wire.SECURE_ROUND}":
                reply = wire.unpack(wire.SecureRoundReply, content)
                assert not reply.classes.stacked().any()
                assert not reply.clock.stacked().any()
                result += [MaskWords(part.narrow, part.wide) for part in reply.groups.values()]
        return result

    hidden, shown = vectors(grid.crossed), vectors(open_grid.crossed)
    assert len(hidden) == len(shown) == 12
    for one, other in zip(hidden, shown, strict=True):
        assert len(one.narrow) == len(other.narrow) > 100
        zeros = [(each == 0).mean() for each in (one.narrow, one.wide, other.narrow, other.wide)]
        assert max(zeros[:2]) < 0.02 < min(zeros[2:])  # the plain ones are mostly zeros


def test_keys_are_checked(tiny):
    for override, why in (
        ("neighbours=3", "secure_aggregation: neighbours 3 is odd; give an even number"),
        ("threshold=0.5", "lets two halves of the devices reconstruct both secrets"),
        ("devices_per_group=4", "devices_per_group 4 is below min_devices 8"),
    ):
        with pytest.raises(Exception, match=why):
            load_scenario(tiny, [f"secure_aggregation.{override}"])


def test_poisson_sampling_takes_the_whole_cohort(tiny_scenario):
    poisson = changed(tiny_scenario, refinement={"sampling": "poisson"})
    with pytest.raises(ValueError, match="devices_per_group draws a fixed number of devices"):
        secure(poisson, devices_per_group=14)
    assert secure(poisson).secure_aggregation.enabled


def test_words_are_narrow_only_where_a_clipping_norm_proves_it(tiny_scenario):
    def clipped(norm: float, **keys) -> Scenario:
        return secure(changed(tiny_scenario, privacy={"clipping": {"kind": "flat", "norm": norm}}), **keys)

    assert update_bits(tiny_scenario, 3) == 64  # no clipping
    # 2^31 / 2^24 = 128: of norm 1.001 with a unit of rounding each, 127 devices fit and 128 do not
    assert (update_bits(clipped(1.0), 127), update_bits(clipped(1.0), 128)) == (32, 64)
    assert update_bits(clipped(1.0, word_bits=64), 3) == 64


def test_the_store_keeps_stages_in_order(tmp_path):
    store = SecretStore.from_node_folder(tmp_path)
    store.save(1, 0, "keys", {"x": np.arange(3)})
    assert store.load(1, 0, "keys")["x"].tolist() == [0, 1, 2]
    assert (tmp_path / "secure" / "1-0.npz").stat().st_mode & 0o077 == 0  # its owner's alone
    with pytest.raises(SecureAggregationError, match="after stage keys a different one follows"):
        store.load(1, 0, "round")
    store.save(1, 1, "keys", {})
    store.forget(but_groups=[1], of_round=1)
    assert [path.name for path in (tmp_path / "secure").iterdir()] == ["1-1.npz"]


def test_with_a_key_in_the_environment_nothing_lies_open(tmp_path, monkeypatch):
    """And what is kept is of this run, this round and this group."""
    secret = np.frombuffer(b"a secret that no disk is to know", np.uint8)
    monkeypatch.setenv(KEY_VARIABLE, "07" * FILE_KEY_BYTES)
    store = SecretStore.from_node_folder(tmp_path)
    store.save(1, 0, "keys", {"x": secret})
    kept = tmp_path / "secure" / "1-0.npz"
    assert secret.tobytes() not in kept.read_bytes()
    assert store.load(1, 0, "keys")["x"].tobytes() == secret.tobytes()
    assert kept.stat().st_mode & 0o077 == 0
    whole = kept.read_bytes()
    (tmp_path / "secure" / "1-1.npz").write_bytes(whole)
    with pytest.raises(SecureAggregationError, match="was changed, or is of another run"):
        store.load(1, 1, "keys")
    for damaged in (whole[:-1], whole[:5], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        kept.write_bytes(damaged)
        with pytest.raises(SecureAggregationError, match="was changed, or is of another run"):
            store.load(1, 0, "keys")
    kept.write_bytes(whole)
    monkeypatch.setenv(KEY_VARIABLE, "08" * FILE_KEY_BYTES)
    with pytest.raises(SecureAggregationError, match="was changed, or is of another run"):
        store.load(1, 0, "keys")


def test_the_report_shows_it_in_words_and_numbers(tiny_scenario, tmp_path):
    from simulations.report.sections.costs import secure_rows

    result, _ = served(secure(tiny_scenario, dropout_share=0.15), tmp_path / "run")
    events = result.secure_aggregation
    rows = dict(secure_rows(events))
    assert rows["secure sums: devices, all rounds"] == str(events.counts.devices)
    assert rows["secure sums: dropped, masks recovered"] == f"{events.counts.dropped}, {events.counts.recovered}"
    numbers = {(row.part, row.name): row.value for row in result.figures if "round" not in row.where}
    assert numbers["secure_aggregation", "dropped"] == events.counts.dropped > 0
    assert numbers["secure_aggregation.bytes_per_device", "vector"] == events.bytes_per_device.vector
    assert from_json(json.loads(json.dumps(to_json(result)))) == result
    assert events.bytes_per_device.upload > events.bytes_per_device.vector > 0

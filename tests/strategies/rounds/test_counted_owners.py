"""Under secure aggregation no sum of refinement tells of a row that few devices of the sum have."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from clients.node import channel
from fl_peel import wire
from fl_peel.exchange.release import dense, spare_devices
from simulations.report.sections.costs import secure_rows
from strategies.rounds import masked
from tests.helpers.runs import figures, served
from tests.simulations.studies.test_audit import observed
from tests.strategies.rounds.test_clear_steps import changed

LEAST = 5
ENOUGH = LEAST + spare_devices(0)
"""Owners with which a row is opened where nobody was lost until then."""
SECURE = {"enabled": True, "devices_per_group": None, "min_devices": 3, "neighbours": 12}


@pytest.fixture
def scenario(tiny_scenario):
    refinement = {"acceptance": {"rule": "always"}, "local": {"epochs": 2}}
    keys = {"secure_aggregation": SECURE, "privacy": {"min_owners": LEAST}, "user_groups": {"count": 1}}
    return changed(tiny_scenario, refinement=refinement, **keys)


@dataclass
class Watched:
    """Rounds of one user group. updates: what each device learned, by round, without a look at what it says of it;
    sums: opened sums, an entry for every row.
    """

    updates: dict = field(default_factory=dict)
    sums: list = field(default_factory=list)

    def owners(self, server_round):
        """Return the devices of the round that have the item of a row and learn from it, (R, S)."""
        mine = [update for number, _, update in self.updates.values() if number == server_round]
        return np.sum([(one.row_examples > 0)[:, None] & (one.touched > 0) for one in mine], axis=0)


@pytest.fixture
def watched(monkeypatch):
    seen = Watched()
    train, opened = channel.train_within_deadline, masked.sparse

    def trained(context, ranked, memory, devices, traffic=None):
        done = train(context, ranked, memory, devices, traffic)
        number, device = context.request.server_round, int(devices.seeds[0])
        seen.updates[number, device] = number, device, done.update
        return done

    def summed(values):
        seen.sums.append({name: array.copy() for name, array in values.items()})
        return opened(values)

    monkeypatch.setattr(channel, "train_within_deadline", trained)
    monkeypatch.setattr(masked, "sparse", summed)
    return seen


@pytest.mark.parametrize("rows", ["touched", "all-sent"])
def test_no_row_of_few_owners_is_in_a_sum_and_the_others_are_whole(scenario, tmp_path, watched, rows):
    result, _ = served(changed(scenario, privacy={"min_owners": LEAST, "rows": rows}), tmp_path / "run")
    updates = "sums" if rows == "touched" else "updates"
    assert len(watched.sums) == 2
    for place, sums in enumerate(watched.sums):
        owners = watched.owners(place + 1)
        assert (owners == 1).any(), "some device is an item's only owner in this example"
        assert (owners >= ENOUGH).any()
        whole = np.sum([one.sums for number, _, one in watched.updates.values() if number == place + 1], axis=0)
        opened = np.repeat(owners >= ENOUGH, whole.shape[1] // owners.shape[1], axis=1)
        assert np.array_equal(sums[updates], np.where(opened, whole, 0))
        assert whole[~opened].any(), "its owner would be told"
        for name in {"touched", "row_loss", "row_examples"} & sums.keys():
            assert not sums[name][(owners < ENOUGH).all(axis=1)].any()
        assert not {"hits", "shown", "exposed", "signals"} & sums.keys()
        counts = result.secure_aggregation.rounds[place].counts
        some, few = (owners > 0).any(axis=1), (owners < ENOUGH).all(axis=1)
        assert (counts.owned_rows, counts.few_owner_rows) == (some.sum(), (some & few).sum())


def test_where_every_sum_is_opened_a_row_names_its_only_owners_item(scenario, tmp_path, watched):
    """The planted run of what the count closes."""
    _, grid = served(changed(scenario, privacy={"min_owners": 1}), tmp_path / "run")
    assert wire.SECURE_OWNERS not in {kind for kind, _ in grid.crossed}
    alone = watched.owners(1).max(axis=1) == 1
    assert (watched.sums[0]["row_examples"][alone] == 2).all(), "one device, two epochs"


def test_masks_nodes_and_dropouts_make_no_difference(scenario, tmp_path):
    lossy = changed(scenario, secure_aggregation=SECURE | {"dropout_share": 0.15})
    clear = changed(scenario, secure_aggregation=SECURE | {"dropout_share": 0.15, "masked": False})
    (one, _), (two, _) = served(lossy, tmp_path / "1", nodes=1), served(clear, tmp_path / "2", nodes=2)
    assert figures(one) == figures(two)
    events = one.secure_aggregation
    assert events.counts.void_groups == 0
    assert events.counts.dropped > 0
    few = f"{events.counts.owned_rows}, {events.counts.few_owner_rows}"
    assert dict(secure_rows(events))["secure sums: rows of items, of few owners"] == few


@pytest.mark.parametrize(("spare", "dropout_share", "rounds"), [(None, 0.05, 4), (0, 0.1, 12)])
def test_owners_that_drop_out_once_counted_leave_no_row_of_few(
    scenario, tmp_path, watched, monkeypatch, spare, dropout_share, rounds
):
    """By hand: a row of LEAST owners whose owner is lost would be of fewer. spare: a single device less is too many."""
    if spare is not None:
        monkeypatch.setattr(masked, "spare_devices", lambda lost: spare)
    lossy = SECURE | {"dropout_share": dropout_share, "masked": False}
    result, _ = served(changed(scenario, secure_aggregation=lossy, refinement={"rounds": rounds}), tmp_path / "run")
    counts = result.secure_aggregation.counts
    assert counts.dropped > 0
    assert (counts.void_groups > 0) == (spare == 0)
    owners = np.concatenate([sums["row_examples"] // 2 for sums in watched.sums])
    assert len(watched.sums) == rounds - counts.void_groups
    assert owners[owners > 0].min(initial=LEAST) >= LEAST


def test_counts_of_two_rounds_tell_who_alone_has_dropped_out_between(scenario, tmp_path):
    """The planted run: the same devices in both rounds, but for one that alone is in each of them."""
    lacking = changed(scenario, secure_aggregation=SECURE | {"dropout_share": 0.02, "masked": False})
    observer, _, _ = observed(lacking, tmp_path / "run", sums_only=True)
    ((first, second),) = observer._owners.values()
    found = observer.absences()
    assert found.devices == len(np.setxor1d(first.devices, second.devices)) == 2
    assert found.f1 > 0.9 > 0.6 > found.popularity_f1


def test_the_audit_sees_what_the_server_opened(scenario, tmp_path, watched):
    observer, _, _ = observed(scenario, tmp_path / "run", sums_only=True)
    views = observer.views[int(observer.watched().devices[0])]
    assert len(views) == len(watched.sums) == 2
    for view, sums in zip(views, watched.sums, strict=True):
        seen = dense(view.reply, len(view.items), sums["sums"].shape[1])
        assert seen.keys() <= sums.keys()
        for name, array in seen.items():
            assert np.array_equal(array, sums[name]), name

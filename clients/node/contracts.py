"""The contract suite of device contents, to be subclassed in your own tests.

::

    from my_package import Proximal

    class TestProximal(DeviceContentsContract):
        contents = Proximal

pytest runs the inherited ``test_`` methods; nothing but pytest (or any runner that finds such methods) is needed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from clients.node.contents import DeviceContents
from fl_peel.contracts import example_devices
from fl_peel.data.interactions import IntArray
from fl_peel.exchange.counters import RoundCounts
from fl_peel.exchange.release import TrainedDevices, dense
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import LocalTraining
from fl_peel.secure.vector import Values
from fl_peel.training.update import LocalWork
from fl_peel.wire import RoundRequest, RunSetting


class DeviceContentsContract:
    """Contract suite of a device's contents: subclass it and set ``contents``, and the scenario ``keys`` it needs."""

    contents: ClassVar[type[DeviceContents]]
    keys: ClassVar[dict[str, object]] = {}

    def made(self, *, signals: bool = True) -> DeviceContents:
        """Return the contribution for one request."""
        keys = {"name": "contract", "data": {"path": "interactions.csv"}, **self.keys}
        scenario = Scenario.model_validate(keys)
        nobody = np.zeros(0, np.int64)
        setting = RunSetting(scenario.to_json(), "", "")
        return self.contents(scenario, RoundRequest(setting, 1, signals, 1.0, nobody, nobody, {}, clip_norm=1.0))

    def contribution(self, places: IntArray, *, signals: bool = True) -> Values:
        """Return the contribution of some example devices together, with an entry for every row."""
        ranked, all_of_them = example_devices(0)
        contents = self.made(signals=signals)
        seeds = np.arange(1, 10, dtype=np.uint64)[places]
        train = all_of_them.train.select(places)
        cutoffs = all_of_them.cutoffs[places]
        users, update = contents.train(
            LocalWork(ranked, cutoffs, all_of_them.users[places], train, seeds, contents.local(LocalTraining()))
        )
        best = all_of_them.best[places] if signals and all_of_them.best is not None else None
        trained = TrainedDevices(places, cutoffs, users, update, best, train, train)
        return dense(contents.contribution(ranked, trained), len(ranked.items), ranked.layout.embedding_dim)

    def test_numbers_are_whole_and_add_up_over_devices(self) -> None:
        """Contributions add up exactly: the sum of all devices equals that of the sums of any two parts."""
        everybody = np.arange(9)
        for signals in (True, False):
            whole = self.contribution(everybody, signals=signals)
            for cut in (1, 4, 8):
                parts = [
                    self.contribution(everybody[:cut], signals=signals),
                    self.contribution(everybody[cut:], signals=signals),
                ]
                for name, values in whole.items():
                    total = parts[0][name] + parts[1][name]
                    difference = np.abs(values - total).max(initial=0)
                    assert difference == 0, f"{name}: {difference} units of difference between one node and two"

    def test_the_same_devices_say_the_same(self) -> None:
        """Randomness depends on identities alone, so that the contribution of a device repeats."""
        first, again = self.contribution(np.arange(9)), self.contribution(np.arange(9))
        assert first.keys() == again.keys(), "says something else the second time"
        for name, values in first.items():
            assert np.array_equal(values, again[name]), f"{name} differs the second time"

    def test_bounds_are_only_ever_tightened(self) -> None:
        """Bounds of the scenario stay in force."""
        contents = self.made()
        how = contents.local(replace(LocalTraining(), max_norm=0.25))
        limit = DeviceContents.local(contents, replace(LocalTraining(), max_norm=0.25)).max_norm
        assert how.max_norm <= limit, f"local() lets updates grow to {how.max_norm}"

    def test_withheld_counters_stay_withheld(self) -> None:
        """Check that only the number of requested devices is counted where the scenario withholds counters."""
        contents = self.made()
        counts = replace(RoundCounts.nothing(2), slowest_us=5)
        if contents.release.withheld:
            assert contents.counted(counts).slowest_us == 0, "counted() says what the scenario withholds"

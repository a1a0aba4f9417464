"""Paths of a run, and the time that its stages take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fl_peel import wire
from fl_peel.scenario.fleet_files import fleet_files
from fl_peel.scenario.scenario import Scenario


@dataclass(frozen=True)
class RunPaths:
    """Where a run finds and leaves things. data_dir: data sets ("" for the default places); run_dir: devices' state;
    cache_dir: pretrained tables ("" keeps none); checkpoint_dir: what is done of a run that may be stopped (likewise);
    model_dir: the model that serves new devices (likewise). fleets: files of fleets, as they were when the run first
    needed them.
    """

    data_dir: str
    run_dir: str
    cache_dir: str = ""
    checkpoint_dir: str = ""
    model_dir: str = ""
    fleets: dict[str | tuple[str, ...], str] = field(default_factory=dict, repr=False, compare=False)

    def setting(self, scenario: Scenario, num_devices: int = 0) -> wire.RunSetting:
        """Return the setting that nodes get for a run of this scenario with these paths.

        Raises:
            ProfileError: a file of its fleet cannot be read.
        """
        if scenario.fleet not in self.fleets:
            self.fleets[scenario.fleet] = fleet_files(scenario.fleet)
        fleet = self.fleets[scenario.fleet]
        return wire.RunSetting(scenario.to_json(), self.data_dir, self.run_dir, num_devices=num_devices, fleet=fleet)


@dataclass
class StageTimes:
    """Wall seconds of each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

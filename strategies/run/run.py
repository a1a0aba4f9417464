"""The one object that all stages of a run take, and the paths of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from flwr.serverapp import Grid

from fl_peel import wire
from fl_peel.data.catalogue import read_catalogue
from fl_peel.device_storage import enrol
from fl_peel.events import OnEvent, silent
from fl_peel.package_check import own_root
from fl_peel.privacy.noise_plan import Plan
from fl_peel.scenario.fleet_files import fleet_files
from fl_peel.scenario.scenario import Scenario
from strategies.nodes.nodes import Nodes
from strategies.run.checkpoints import RunCheckpoints
from strategies.run.prepare import privacy_plan


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
        """Time a stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Run:
    """A scenario on connected nodes: where it finds and leaves things, who follows it, and what its stages took."""

    scenario: Scenario
    paths: RunPaths
    nodes: Nodes
    on_event: OnEvent = field(default=silent, repr=False)
    stages: StageTimes = field(default_factory=StageTimes)

    @staticmethod
    def connect(grid: Grid, scenario: Scenario, paths: RunPaths, on_event: OnEvent = silent) -> Run:
        """Find the nodes of ``grid``; those that have their own interactions get the items, and report how many devices
        they have, which the run's folder knows from then on.

        Raises:
            FlPeelError: as for :meth:`strategies.nodes.nodes.Nodes.connect`; or the catalogue cannot be read.
        """
        catalogue, stages = "", StageTimes()
        with stages("start"):
            if scenario.data.held_by_nodes:
                assert scenario.data.catalogue is not None, "a scenario without data has a catalogue"
                catalogue = "\n".join(read_catalogue(scenario.data.catalogue))
            nodes = Nodes.connect(
                grid,
                scenario.to_json(),
                root=str(own_root()),
                timeout_s=scenario.engine.reply_timeout_s,
                catalogue=catalogue,
            )
            if catalogue:
                enrol(nodes.num_devices, paths.run_dir)
        return Run(scenario, paths, nodes, on_event, stages)

    @property
    def grid(self) -> Grid:
        """Return the way to the nodes."""
        return self.nodes.grid

    @cached_property
    def plan(self) -> Plan | None:
        """The noise that the scenario asks for, and what it spends; None where no mechanism is named."""
        return privacy_plan(self.scenario, self.paths)

    @cached_property
    def checkpoints(self) -> RunCheckpoints:
        """What the run keeps as it goes; nothing where its paths name no folder for it."""
        folder = Path(self.paths.checkpoint_dir) if self.paths.checkpoint_dir else None
        return RunCheckpoints(folder, Path(self.paths.run_dir), self.stages, self.on_event)

    def under(self, scenario: Scenario, on_event: OnEvent | None = None) -> Run:
        """The same run under another scenario, and another listener where one is given."""
        return replace(self, scenario=scenario, on_event=on_event or self.on_event)

    def setting(self, num_devices: int = 0) -> wire.RunSetting:
        """Return the setting that nodes get."""
        return self.paths.setting(self.scenario, num_devices)

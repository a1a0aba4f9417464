"""A run on its nodes: what all of its stages have in common."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from flwr.serverapp import Grid

from fl_peel import wire
from fl_peel.data.catalogue import read_catalogue
from fl_peel.device_storage import enrol
from fl_peel.events import OnEvent, silent
from fl_peel.packages import own_root
from fl_peel.privacy.noise_plan import Plan
from fl_peel.scenario.scenario import Scenario
from strategies.nodes import Nodes
from strategies.run.checkpoints import RunCheckpoints
from strategies.run.run_paths import RunPaths, StageTimes
from strategies.run.stage1_outcome import privacy_plan


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
            FlPeelError: as for :meth:`strategies.nodes.Nodes.connect`; or the catalogue cannot be read.
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

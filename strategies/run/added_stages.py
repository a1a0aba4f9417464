"""Stages of installed packages, each after the stage of the run that it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fl_peel.device_storage import device_splits
from fl_peel.events import Event
from fl_peel.steps import Stage, find_stage
from fl_peel.steps.base import answer_to
from fl_peel.steps.units import Floats
from strategies.figures.schema import AddedStage
from strategies.figures.stage_figures import step_row
from strategies.run.prepare import asked_devices, channel_to
from strategies.run.run import Run


@dataclass
class AddedStages:
    """Those of a run's scenario. clock: round of the fleet's clock in which the next one opens; results: by name."""

    run: Run
    clock: int
    results: dict[str, AddedStage] = field(default_factory=dict)

    def ask(self, after: str, tables: Sequence[Floats], clock: int = 0) -> None:
        """Ask those that stand after a stage. tables: item tables (I, d) of the user groups as they are now; clock: the
        earliest round in which one opens.
        """
        run, self.clock = self.run, max(self.clock, clock)
        for name in run.scenario.stages:
            stage = find_stage(name)
            if stage.after == after:
                what = f"added-{name}"
                self.results[name] = run.checkpoints.stage(what, lambda: self._ask(stage, tables), timed=name)  # noqa: B023
                self.clock += run.scenario.pretraining.open_rounds
                run.on_event(Event(name, 1, 1))

    def _ask(self, stage: Stage, tables: Sequence[Floats]) -> AddedStage:
        run = self.run
        splits = device_splits(run.scenario, run.paths.data_dir, run.paths.run_dir)
        devices = asked_devices(run, splits, run.plan, self.clock)
        channel = channel_to(devices, run.scenario, run.plan)
        sums = answer_to(channel, stage, stage.sent(tables))
        units = {part.field: part.unit for part in stage.noised if channel.terms.bounded}
        values = {name: total / units.get(name, 1.0) for name, total in sums.items()}
        figures = tuple(stage.figures(values, tables))
        return AddedStage(after=stage.after, step=step_row(stage.name, devices.records), figures=figures)

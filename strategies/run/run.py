"""A run on its nodes: what all of its stages have in common, and the checkpoints of its stages, its rounds, and the
steps of stage 1.

A stage that is done leaves one entry of a :class:`fl_peel.store.Store`: what came of it and, where devices changed,
copies of their disks. A refinement leaves one after a round, in place of the last; where rounds are faster than a disk
takes gigabytes, not after every one. What rounds change is kept as it is, but for item tables: of these, only rows that
some round may have changed since the start, which is made anew. That bounds what a round leaves on the disk by what its
devices trained; the tables never are in memory together.

The server computes the same from the same sums, so what devices added up to in each step is all that is kept, an entry
a step, and where the step left the clock and the accounts. A run that goes on computes from the first step on and asks
devices from the first that is not there. The entries are gone when the stage is kept as a whole. Moments, the last
sums, are as many as the tables that are made of them: they are asked for again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.data.readers import read_catalogue
from fl_peel.device_storage import enrol
from fl_peel.events import Event, OnEvent, silent
from fl_peel.mmap_arrays import drop_pages_now
from fl_peel.packages import own_root
from fl_peel.privacy.noise_plan import Plan
from fl_peel.scenario.scenario import Scenario
from fl_peel.steps.base import Arrays, Bools, ChannelWrapper, PartSums, Step
from fl_peel.steps.user_groups import MapsStep, MomentsStep, VectorsStep
from fl_peel.store import DAMAGED, Content, Entry, Live, Store, from_nodes, to_nodes
from strategies.groups.state import FloatArray
from strategies.nodes import Nodes
from strategies.rounds.acceptance import AcceptanceTest
from strategies.rounds.step_channels import ClearSteps, NoisedSteps
from strategies.rounds.strategy import PeelStrategy
from strategies.run.run_paths import RunPaths, StageTimes
from strategies.run.stage1_outcome import privacy_plan

Result = TypeVar("Result")

DISKS = ("nodes", "artifacts")
"""Folders of a run in which devices change something."""
COPIES, ARRAYS, ROWS = "disks", "arrays", "rows"
STEPS, ROUNDS = "step-", "rounds"
"""Names of what is kept within a stage: of steps, until the stage is, and of rounds."""
DISK_BYTES_PER_S = 25 << 20
"""Bytes of checkpoints of rounds in a second of rounds, at most: where a disk takes four times as many, a fifth of the
time goes into them.
"""
SECRETS = "secure"
"""Folders within, of secrets that last as long as a round."""


@dataclass(frozen=True)
class Checkpoint:
    """A value that was kept, which may be None, and the entry that it was in."""

    value: Any
    entry: Entry


@dataclass
class RunCheckpoints:
    """The checkpoints of a run. folder: None keeps nothing; run_dir: with devices' disks; stages: seconds."""

    folder: Path | None
    run_dir: Path
    stages: StageTimes
    on_event: OnEvent = field(default=silent, repr=False)

    def stage(self, name: str, work: Callable[[], Result], *, disks: bool = False, timed: str | None = None) -> Result:
        """Return the result of a stage that is done, or of ``work``, whose result is then kept. disks: whether devices
        change in it; timed: name under which its seconds count, None where ``work`` sees to it.
        """
        kept = self.read(name)
        if kept is not None:
            self.on_event(Event(name, 1, 1, "resumed from a checkpoint"))
            return kept.value  # type: ignore[no-any-return]
        with nullcontext() if timed is None else self.stages(timed):
            result = work()
        self.write(name, result, disks=disks)
        if self.folder is not None:
            Store(self.folder).remove(STEPS)  # they were of a stage that is done
        return result

    def read(self, name: str, key: Any = None, live: Live | None = None) -> Checkpoint | None:
        """Return what was kept under a name and key, with the devices' disks as they were; None: nothing whole."""
        if self.folder is None:
            return None

        def on_damaged(line: str) -> None:
            self.on_event(Event(name, 0, 1, f"{line}: computed again"))

        entry = Store(self.folder, on_damaged).read(name, key)
        if entry is None:
            return None
        try:
            value = from_nodes(entry.value["object"], entry.arrays(ARRAYS), live)
            if entry.value["disks"]:
                self._restore(entry)
        except (*DAMAGED, ImportError) as error:
            on_damaged(f"{entry.folder}: damaged ({str(error)[:80]})")
            return None
        self.stages.seconds.update(entry.value["seconds"])
        return Checkpoint(value, entry)

    def write(
        self,
        name: str,
        value: object,
        *,
        key: Any = None,
        disks: bool = False,
        live: Live | None = None,
        files: Mapping[str, Content] | None = None,
    ) -> None:
        """Keep a value under name and key. disks: with the devices'; live: objects that are there when it is read."""
        if self.folder is None:
            return
        try:
            plain, arrays = to_nodes(value, live)
            content = {"object": plain, "disks": disks, "seconds": self.stages.seconds}
            copies = self._copies() if disks else {}
            Store(self.folder).write(name, key, content, {ARRAYS: arrays, **(files or {}), **copies})
        except (OSError, TypeError, RecursionError) as error:
            self.on_event(Event(name, 1, 1, f"the checkpoint cannot be written ({str(error)[:80]})"))

    def _copies(self) -> dict[str, Path]:
        """Return the files of the devices' disks, by their paths in an entry."""
        files = [file for disk in DISKS for file in sorted((self.run_dir / disk).rglob("*")) if file.is_file()]
        paths = [file.relative_to(self.run_dir) for file in files]
        return {f"{COPIES}/{path.as_posix()}": self.run_dir / path for path in paths if SECRETS not in path.parts}

    def _restore(self, entry: Entry) -> None:
        """Files are replaced, each by a new one: what a process has mapped stays as it was."""
        for disk in DISKS:
            shutil.rmtree(self.run_dir / disk, ignore_errors=True)
        for path, copy in entry.files.items():
            if path.startswith(f"{COPIES}/"):
                target = self.run_dir / path.removeprefix(f"{COPIES}/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(copy, target)


class RoundCheckpoints:
    """The rounds of one refinement that is about to begin. acceptance: what compares them, if anything does."""

    def __init__(self, checkpoints: RunCheckpoints, strategy: PeelStrategy, acceptance: AcceptanceTest | None) -> None:
        self._checkpoints, self._strategy, self._acceptance = checkpoints, strategy, acceptance
        self._key = {"begin": strategy.federation.begin, "scenario": strategy.scenario.model_dump(mode="json")}
        strategy.changed = np.zeros((len(strategy.states), strategy.layout.num_items), np.bool_)
        self._kept_at = time.monotonic()

    def resume(self) -> int:
        """Take up what was kept; returns how many rounds are done."""
        kept = self._checkpoints.read(ROUNDS, self._key, self._live())
        if kept is None:
            return 0
        strategy, value = self._strategy, kept.value
        strategy.changed = value["changed"]
        strategy.controller, strategy.contents, strategy.channel, strategy.rounds = value["parts"]
        strategy.states[:] = value["states"]
        for state in strategy.states:
            state.drop_pages()
        if self._acceptance is not None:
            self._acceptance.resume(value["acceptance"])
        done: int = value["done"]
        for number, (table, changed) in enumerate(self._tables(done)):
            table[changed] = kept.entry.arrays(f"{ROWS}-{number}")[ROWS]
            drop_pages_now(table)
        return done

    def after(self, server_round: int) -> None:
        """Keep what there is after a round, unless what was done since the last one is soon done again."""
        strategy = self._strategy
        done = max(server_round, strategy.completed_rounds)
        tables = self._tables(done)
        num_bytes = sum(table[:1].nbytes * np.count_nonzero(changed) for table, changed in tables)
        if time.monotonic() - self._kept_at < num_bytes / DISK_BYTES_PER_S:
            return
        value = {
            "done": done,
            "changed": strategy.changed,
            "parts": (strategy.controller, strategy.contents, strategy.channel, strategy.rounds),
            "states": list(strategy.states),
            "acceptance": self._acceptance.state() if self._acceptance is not None else None,
        }
        rows = {f"{ROWS}-{n}": partial(_changed_rows, table, changed) for n, (table, changed) in enumerate(tables)}
        self._checkpoints.write(ROUNDS, value, key=self._key, disks=True, live=self._live(), files=rows)
        self._kept_at = time.monotonic()

    def _tables(self, done: int) -> list[tuple[FloatArray, NDArray[np.bool_]]]:
        """Tables (I, d) that are not as they began, and which of their rows (I,) may have changed."""
        strategy, acceptance = self._strategy, self._acceptance
        assert strategy.changed is not None
        tables = [(state.table, changed) for state, changed in zip(strategy.states, strategy.changed, strict=True)]
        if acceptance is not None and done < strategy.scenario.refinement.rounds:  # then nothing is taken back any more
            groups = acceptance.accepted_groups
            tables += [(acceptance.accepted_states[group].table, strategy.changed[group]) for group in groups]
        return tables

    def _live(self) -> Live:
        """Return the objects before the first round: parties, and every table as it starts."""
        strategy, federation = self._strategy, self._strategy.federation
        live: dict[str, object] = {
            "federation": federation,
            "nodes": federation.nodes,
            "members": federation.members,
            "layout": federation.layout,
            "setting": federation.setting,
            "scenario": federation.scenario,
            "plan": strategy.contents.plan,
        }
        live |= {f"table-{group}": state.table for group, state in enumerate(strategy.states)}
        live |= {"shelf": strategy.states[0].shelf} if strategy.states else {}
        if self._acceptance is not None:
            live |= {f"kept-{group}": state.table for group, state in enumerate(self._acceptance.accepted_states)}
        return live


def _changed_rows(table: FloatArray, changed: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    rows = table[changed]
    drop_pages_now(table)
    return {ROWS: rows}


@dataclass
class CheckpointedSteps(ChannelWrapper):
    """A :class:`fl_peel.steps.base.StepChannel` whose sums are kept. channel: with noise; devices: that are asked."""

    devices: ClearSteps
    checkpoints: RunCheckpoints
    _completed: int = field(default=0, init=False)

    def ask(self, step: Step, sent: Arrays, opened: Bools | None = None) -> Iterator[PartSums]:
        """See :class:`fl_peel.steps.base.StepChannel`; the sum as a whole, but for steps that are not kept."""
        if isinstance(step, MomentsStep | MapsStep):
            yield from self.channel.ask(step, sent, opened)
            return
        self._completed += 1
        name, key = f"{STEPS}{self._completed}", self._key
        entry = self.checkpoints.read(name, key)
        if entry is not None:
            if self._completed == 1:
                self.checkpoints.on_event(Event("pretraining", 0, 1, "steps are resumed from a checkpoint"))
            self.devices.resume(entry.value["position"], entry.value["records"])
            if isinstance(self.channel, NoisedSteps):
                self.channel.taken = Counter(entry.value["taken"])
            yield (0, step.num_pieces), entry.value["sums"]
            return
        sums = step.whole(self.terms, self.channel.ask(step, sent, opened))
        content = {"sums": sums, "position": self.devices.position, "records": list(self.devices.records)}
        if isinstance(self.channel, NoisedSteps):
            content["taken"] = dict(self.channel.taken)
        # devices have their vectors on their disks
        self.checkpoints.write(name, content, key=key, disks=isinstance(step, VectorsStep))
        yield (0, step.num_pieces), sums

    @property
    def _key(self) -> dict[str, Any]:
        return {"begin": self.devices.begin, "scenario": json.loads(self.devices.setting.scenario)}


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
        return self.paths.setting(self.scenario, num_devices)

"""Frame of a study, whatever it measures: what is given, what is checked, seed by seed, what is shown.

A study loads its scenario and refuses what it cannot measure (:meth:`Frame.from_scenario`) before it does any work,
does its own work with :meth:`Frame.by_seed`, and adds to its figures where they are from (:meth:`Frame.result`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from fl_peel.errors import ScenarioError
from fl_peel.events import OnEvent, silent
from fl_peel.scenario.scenario import Scenario
from simulations.engine.inputs import STUDY_RESULTS, checked, given_folder
from simulations.engine.versions import versions
from simulations.scenario_files import load_scenario
from simulations.studies.study import Study, open_study

T = TypeVar("T")


class Options(TypedDict, total=False):
    """Keyword arguments of every study; each may be left out."""

    overrides: Iterable[str]
    """``path=value``, of a scenario that is named."""
    data_dir: str | Path | None
    """Folder that holds data sets by name; None: ``$FL_PEEL_DATA``, then the cache."""
    cache_dir: str | Path | None
    """Folder in which pretrained tables are kept by content."""
    on_event: OnEvent
    """Function that gets the event of every step."""
    command: str | None
    """Command that makes the same files again, for the report."""
    fresh: bool
    """Whether what an earlier try has kept is left unread, and all is done anew."""


@dataclass(frozen=True)
class Frame:
    """A study's checked scenario, the folder of its results, and its options."""

    scenario: Scenario
    out: Path
    data_dir: str | Path | None = None
    cache_dir: str | Path | None = None
    on_event: OnEvent = silent
    command: str | None = None
    fresh: bool = False

    @staticmethod
    def from_scenario(scenario: str | Path | Scenario, out: str | Path, options: Options) -> Frame:
        """Load the scenario, where it is named, and check it and ``out``.

        Raises:
            FlPeelError: a mistake in the scenario, its files or ``out``, or what no study can measure; one line each.
        """
        if not isinstance(scenario, Scenario):
            scenario = load_scenario(scenario, options.get("overrides", ()))
        _check(scenario)
        folder = given_folder(out)
        assert folder is not None, "a study has a folder"
        return Frame(
            checked(scenario, folder, working_dir=Path.cwd(), writes=STUDY_RESULTS),
            folder,
            options.get("data_dir"),
            options.get("cache_dir"),
            options.get("on_event", silent),
            options.get("command"),
            options.get("fresh", False),
        )

    def by_seed(self, seeds: int, work: Callable[[Study], T]) -> dict[int, T]:
        """The study's work with each of so many seeds, from the scenario's on; each in a folder that is gone then."""
        done = {}
        for seed in range(self.scenario.seed, self.scenario.seed + seeds):
            one = self.scenario.model_copy(update={"seed": seed})
            with open_study(
                one,
                self.out,
                data_dir=self.data_dir,
                cache_dir=self.cache_dir,
                on_event=self.on_event,
                fresh=self.fresh,
            ) as study:
                done[seed] = work(study)
        return done

    def result(self, figures: dict[str, Any]) -> dict[str, Any]:
        """The figures, and where they are from."""
        content = {
            **figures,
            "scenario": self.scenario.model_dump(mode="json"),
            "seed": self.scenario.seed,
            "versions": versions(),
        }
        return content | ({"command": self.command} if self.command else {})


def _check(scenario: Scenario) -> None:
    """Refuse what no study can measure, while nothing has been done yet.

    Raises:
        ScenarioError: naming the key and the remedy.
    """
    if scenario.data.timeline is not None:
        raise ScenarioError("data.timeline: studies do not support timelines; leave it out")
    if scenario.evaluation.top_n != 20:
        raise ScenarioError(
            f"evaluation.top_n: {scenario.evaluation.top_n} is not 20, the list length of studies; leave it out"
        )


__all__ = ["Frame", "Options"]

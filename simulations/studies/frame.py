"""Frame of a study, whatever it measures: what is given, what is checked, seed by seed, what is shown.

A study loads its scenario and refuses what it cannot measure (:meth:`Frame.from_scenario`) before it does any work,
does its own work with :meth:`Frame.by_seed`, and adds to its figures where they are from (:meth:`Frame.result`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fl_peel.errors import ScenarioError
from fl_peel.scenario.scenario import Scenario
from simulations.engine.engine import searched_folder
from simulations.engine.inputs import STUDY_RESULTS, checked, given_folder
from simulations.engine.versions import versions
from simulations.run_options import RunOptions, StudyArguments
from simulations.scenario_files import load_scenario
from simulations.studies.study import Study, open_study

T = TypeVar("T")


@dataclass(frozen=True)
class Frame:
    """A study's checked scenario, the folder of its results, and its options."""

    scenario: Scenario
    out: Path
    options: RunOptions

    @staticmethod
    def from_scenario(scenario: str | Path | Scenario, arguments: StudyArguments) -> Frame:
        """Load the scenario, where it is named, and check it and the folder of the results.

        Raises:
            FlPeelError: a mistake in the scenario, its files or ``out``, or what no study can measure; one line each.
        """
        if not isinstance(scenario, Scenario):
            scenario = load_scenario(scenario)
        _check(scenario)
        folder = given_folder(arguments["out"])
        assert folder is not None, "a study has a folder"
        scenario = checked(scenario, folder, working_dir=searched_folder(scenario.engine), writes=STUDY_RESULTS)
        return Frame(scenario, folder, RunOptions(**arguments))

    def by_seed(self, seeds: int, work: Callable[[Study], T]) -> dict[int, T]:
        """The study's work with each of so many seeds, from the scenario's on; each in a folder that is gone then."""
        done = {}
        for seed in range(self.scenario.seed, self.scenario.seed + seeds):
            one = self.scenario.model_copy(update={"seed": seed})
            with open_study(one, self.out, self.options) as study:
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
        return content | ({"command": self.options.command} if self.options.command else {})


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


__all__ = ["Frame"]

"""A timeline that is stopped goes on after the last period that was done, to the same figures."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fl_peel.events import Event
from fl_peel.store import Store
from simulations.scenario_files import load_scenario
from strategies.run.run_paths import RunPaths
from strategies.timeline.period import serve_timeline
from tests.helpers.loopback import LoopbackGrid, let_through
from tests.helpers.planted_timeline import FLEET, TIMELINE, csv_of, planted
from tests.strategies.run.test_checkpoints import Stopped

PERIODS = 3
KINDS = {
    "stage 1": (),
    "noised": (
        "user_groups={count: 1, min_size: 4}",
        "privacy={mechanism: central-gaussian, target_epsilon: 20, delta: 1e-3, clipping: {kind: flat}}",
    ),
    "refined": ("refinement.rounds=2", "data.timeline.inactivity_half_life=2", "refinement.acceptance.every=1"),
}


@pytest.fixture
def scenarios(tmp_path):
    (tmp_path / "fleet.yaml").write_text(FLEET)
    (tmp_path / "rows.csv").write_text(csv_of(planted()))
    (tmp_path / "timeline.yaml").write_text(TIMELINE.format(path=tmp_path / "rows.csv", fleet=tmp_path / "fleet.yaml"))
    fewer = f"data.timeline.periods={PERIODS}"
    return {kind: load_scenario(tmp_path / "timeline.yaml", [fewer, *changes]) for kind, changes in KINDS.items()}


def served(scenario: Any, run_dir: Any, kept: Any, *, stop_after: int = -1) -> tuple[Any, list[Event], int]:
    """The result, None if it was stopped at the first message after so many periods; what was told; messages."""
    events: list[Event] = []
    count = 0

    def interfere(partition: int, message: Any) -> Any:
        nonlocal count
        if events and events[-1].done == stop_after:
            raise Stopped
        count += 1
        return let_through(partition, message)

    try:
        result = serve_timeline(
            LoopbackGrid(2, interfere), scenario, RunPaths("", str(run_dir), "", str(kept)), events.append
        )
    except Stopped:
        return None, events, count
    return dataclasses.replace(result, stages={}), events, count


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_timeline_that_is_stopped_goes_on_to_the_same_figures(kind, scenarios, tmp_path):
    scenario = scenarios[kind]
    whole, _, messages = served(scenario, tmp_path / "whole", "")
    kept, count = tmp_path / "kept", 0
    for period in range(1, PERIODS + 1):  # again and again, and once before the devices' last answer
        stopped, events, some = served(scenario, tmp_path / f"stopped-{period}", kept, stop_after=period)
        assert stopped is None
        assert [event.done for event in events] == ([period] if period == 1 else [period - 1, period])
        count += some
        assert len(list(kept.iterdir())) == 1, "the last period"
    result, events, last = served(scenario, tmp_path / "again", kept)
    assert [event.text for event in events] == ["resumed from a checkpoint"]
    assert result == whole
    assert result.replicates.keys() == whole.replicates.keys()
    assert all((result.replicates[line] == drawn).all() for line, drawn in whole.replicates.items())
    assert count + last < 1.2 * messages


def test_a_damaged_period_is_done_again(scenarios, tmp_path):
    kept = tmp_path / "kept"
    served(scenarios["stage 1"], tmp_path / "first", kept, stop_after=1)
    (entry,) = Store(kept).entries()
    disk = next(file for path, file in entry.files.items() if path.startswith("disks/"))
    disk.write_bytes(disk.read_bytes()[:-1] + b"?")
    _, events, _ = served(scenarios["stage 1"], tmp_path / "again", kept, stop_after=1)
    assert "damaged" in events[0].text
    assert [event.done for event in events] == [0, 1]

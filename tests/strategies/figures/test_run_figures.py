"""What is evaluated in the end: the rows that were asked for, and stored embeddings whatever was."""

import pytest

from simulations.scenario_files import load_scenario
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers.loopback import LoopbackGrid

QUICK = ["refinement.rounds=0", "elasticity={rounds: 0, falls: []}", "fairness.tiers=[]"]


def served(tiny, run_dir, *changes):
    return serve(LoopbackGrid(2), load_scenario(tiny, [*QUICK, *changes]), RunPaths("", str(run_dir)))


@pytest.mark.parametrize(
    ("changes", "rows", "files"),
    [
        ([], 4, 4),
        (["selector=energy"], 6, 4),
        (["evaluation.selectors=[]"], 2, 4),
        (["evaluation.precisions=[fp16]"], 6, 4),
        (["selector=energy", "evaluation.artifacts=0"], 6, 0),
        (["evaluation.budgets=[]"], 0, 0),
    ],
)
def test_what_devices_store_is_evaluated_and_kept_whatever_else_is(tiny, tmp_path, changes, rows, files):
    result = served(tiny, tmp_path / "run", *changes)
    assert len(result.budgets) == rows
    own = (result.scenario["blocks"]["precision"], result.scenario["selector"])
    assert not rows or own in {(row.precision, row.selector) for row in result.budgets}
    stored = list((tmp_path / "run" / "artifacts").glob("device-*-int8-*.peel"))
    assert len(stored) == files


def test_devices_that_can_hold_nothing_change_nothing(tiny, tmp_path):
    """Their user group is sent no block."""
    result = served(tiny, tmp_path / "run", "refinement.rounds=1", "budget_factor=0.01")
    assert result.full_table.refined == result.full_table.start

"""What the reader without Python holds of an artefact is little more than its bytes."""

import re

import pytest

from fl_peel.errors import EngineError
from simulations.bench import runtime
from tests.helpers.node import needs_node


def test_artefacts_are_as_large_as_their_budget_allows():
    assert [len(runtime.artefact(budget)) for budget in (1000, 10_000)] == [988, 9964]  # 172 and rows of 68 bytes


@pytest.mark.slow
@needs_node
def test_memory_is_a_small_multiple_of_the_bytes_promised(capsys):
    runtime.main()
    rows = re.findall(r"\| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|", capsys.readouterr().out)
    result = [[int(cell.replace(",", "")) for cell in row] for row in rows]
    assert [budget for budget, *_ in result] == [10_000, 100_000, 1_000_000]
    for budget, stored, held, live in result:
        assert stored <= budget
        assert held < 1.5 * stored + 64_000
        assert live < 4 * stored + 1_000_000


def test_without_node_it_is_one_line(monkeypatch):
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    with pytest.raises(EngineError, match="node is not on the path"):
        next(runtime.measured())

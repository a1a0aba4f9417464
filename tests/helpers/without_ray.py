"""``python -m tests.helpers.without_ray run ...``: the command line with its nodes in its own process, and without
figures on its pages; for tests that start it to kill it, or to take its disk away.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from simulations.engine import engine
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.root import ROOT

MODULE = "tests.helpers.without_ray"


def environment(**more: str) -> dict[str, str]:
    """In which another process finds this module, whatever folder it works in."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def bare_sections(result: Any) -> list[Any]:
    """The sections of a run's report without figures, which take longer to draw than all the rest."""
    from simulations.report.render import Chart, run_sections

    sections = list(run_sections(result))
    return [replace(one, parts=[p for p in one.parts if not isinstance(p, Chart)]) for one in sections]


def simulated(*args: Any, server: Any) -> Any:
    return server(LoopbackGrid(2), *args)


if __name__ == "__main__":
    engine.simulated = simulated  # before anybody takes it from there
    from simulations.cli.main import main
    from simulations.report import run_files

    run_files.run_sections = bare_sections
    main()

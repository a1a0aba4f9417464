"""``python -m tests.helpers.without_ray run ...``: the command line with its nodes in its own process, and without
figures on its pages; for tests that start it to kill it.
"""

from __future__ import annotations

from typing import Any

from simulations import runner
from simulations.cli.main import main
from simulations.report import files_of_run
from tests.helpers.loopback import LoopbackGrid


def simulated(*args: Any, server: Any) -> Any:
    return server(LoopbackGrid(2), *args)


if __name__ == "__main__":
    runner.simulated = simulated
    files_of_run.report_figures = lambda result: ()
    main()

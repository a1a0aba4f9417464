"""Mutation tests of the modules that carry claims: ``make mutants``, see CONTRIBUTING.md.

mutmut does all of it, as [tool.mutmut] of pyproject.toml says. This compares what survived with ``.ci/survivors.yaml``.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
ACCEPTED = ROOT / ".ci" / "survivors.yaml"
NOTICED = ("killed", "timeout", "segfault", "caught by type check", "skipped")
"""mutmut's statuses of mutants that the tests noticed, or that were not meant to be tried."""
UNTESTED = "no tests"
"""Its status of mutants of code that no test runs: these are never accepted."""
UNTRIED = "not checked"
"""Its status of mutants that this run left out, as other modules were asked for."""


def accepted_functions(text: str) -> set[str]:
    """Return the functions, as ``module:Class.method``, in which a survivor is accepted, of a list by reasons."""
    return {function for functions in yaml.safe_load(text).values() for function in functions}


def mutated_function(mutant: str) -> str:
    """Return the function of a mutant as ``module:Class.method``, from mutmut's ``module.xǁClassǁmethod__mutmut_3``."""
    module, _, mangled = mutant.rpartition("__mutmut_")[0].rpartition(".")
    return f"{module}:{'.'.join(mangled.split('ǁ')[1:]) or mangled.removeprefix('x_')}"


def outcomes(lines: str) -> Iterator[tuple[str, str]]:
    """Yield each mutant's name and status, as ``mutmut results`` prints them."""
    for line in lines.splitlines():
        mutant, _, status = line.strip().partition(": ")
        if "__mutmut_" in mutant:
            yield mutant, status


def main(patterns: list[str]) -> int:
    """Run mutants, those of ``patterns`` or all; print survivors that are not accepted, and fail if there are any."""
    mutmut = [sys.executable, "-m", "mutmut"]
    subprocess.run([*mutmut, "run", *patterns], cwd=ROOT, check=False)
    printed = subprocess.run(
        [*mutmut, "results", "--all", "true"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    accepted = accepted_functions(ACCEPTED.read_text(encoding="utf-8"))
    tried = {mutant: status for mutant, status in outcomes(printed.stdout) if status != UNTRIED}
    survivors = {mutant: status for mutant, status in tried.items() if status not in NOTICED}
    unexplained = [
        f"{mutant}: {status}"
        for mutant, status in survivors.items()
        if status == UNTESTED or mutated_function(mutant) not in accepted
    ]
    print(*unexplained, dict(Counter(tried.values())), sep="\n")
    print(f"{len(unexplained)} unexplained survivors; look at one with `mutmut show NAME`")
    return 1 if unexplained or not tried else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

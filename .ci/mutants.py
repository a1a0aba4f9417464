"""Mutation testing of the modules that carry claims: ``make mutants``, see docs/mutants.md.

mutmut makes the mutants and runs them, each in a fork of a process that has loaded everything. Added to it here: groups
of modules, each with the tests that mirror it; mutants of decorated functions, properties above all; and a check that
whatever survives is listed in ``.ci/survivors.yaml`` with a reason.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import libcst as cst
from faster import make_faster, make_patient
from libcst import matchers
from mutmut import __main__ as mutmut
from mutmut import configuration
from mutmut.configuration import Config
from mutmut.mutation import file_mutation
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import Mutation, MutationVisitor
from mutmut.mutation.mutators import mutation_operators, operator_arg_removal, operator_string
from mutmut.runners.harness import PytestRunner
from mutmut.state import state
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import orig_function_and_class_names_from_key
from mutmut.workers.isolation import ForkRunner
from survivors import (
    COUNTS,
    KILLED,
    LISTED,
    NOTICED,
    ROOT,
    TRIED,
    Mutant,
    counted,
    read_listed,
    squeezed,
    table,
    unexplained,
)

WORK = ROOT / "out" / "mutants"
MUTATED = ("fl_peel", "clients", "strategies", "simulations")
BESIDE = ("tests", "docs", "pyproject.toml")


@dataclass(frozen=True)
class Group:
    """Modules (paths or patterns of paths) that are mutated, and the tests that must kill the mutants. without: names
    of tests that are left out, as they take long and quick ones hold the same.
    """

    modules: tuple[str, ...]
    tests: tuple[str, ...]
    without: tuple[str, ...] = ()

    @property
    def selection(self) -> list[str]:
        """As pytest is told."""
        tests = [test for test in self.tests if (ROOT / test).exists()]
        return [*tests, "-k", f"not ({' or '.join(self.without)})"] if self.without else tests


GROUPS = {
    "splits": Group(("fl_peel/data/interactions.py",), ("tests/fl_peel/data/test_interactions.py",)),
    "budgets": Group(
        tuple(f"fl_peel/blocks/{name}.py" for name in ("layout", "ranked_blocks", "stored", "elastic", "precision")),
        (
            *(
                f"tests/fl_peel/blocks/test_{name}.py"
                for name in ("blocks", "kept_blocks", "packed", "precision", "selection", "stored")
            ),
            "tests/fl_peel/ranking/test_ranking.py",
        ),
    ),
    "processes": Group(
        ("clients/processes/*", "clients/round/memory.py"),
        (
            *("tests/clients/processes", "tests/clients/fleet", "tests/clients/round/test_memory.py"),
            "tests/strategies/evaluation/test_heterogeneity.py",
        ),
    ),
    "ranking": Group(
        ("fl_peel/ranking/*",),
        ("tests/fl_peel/ranking", "tests/fl_peel/training/test_torch_cohort.py"),
    ),
    "accounting": Group(
        tuple(f"fl_peel/privacy/{name}.py" for name in ("accounting", "mechanisms")),
        tuple(f"tests/fl_peel/privacy/test_{name}.py" for name in ("spent", "mechanisms")),
        ("calibration_meets", "parts_together", "costs_less", "any_cohort_size", "no_device_is_above"),
    ),
    "privacy": Group(
        tuple(
            f"fl_peel/privacy/{name}.py"
            for name in ("device_noise", "noise_plan", "report", "shrinkage", "stage1_noise", "tilting")
        ),
        ("tests/fl_peel/privacy", "tests/fl_peel/exchange/test_release.py"),
    ),
    "secure": Group(
        ("fl_peel/secure/*",), ("tests/fl_peel/secure", "tests/fl_peel/steps", "tests/fl_peel/exchange/test_release.py")
    ),
    "evaluation": Group(
        ("clients/serving/*", "strategies/evaluation/evaluator.py", "strategies/figures/run_figures.py"),
        (
            *("tests/clients/serving", "tests/strategies/figures", "tests/clients/node/test_cohort.py"),
            *("tests/strategies/evaluation/test_evaluator.py", "tests/strategies/evaluation/test_heterogeneity.py"),
            "tests/strategies/rounds/test_acceptance.py",
        ),
    ),
    "model": Group(
        ("fl_peel/model/*",),
        tuple(
            f"tests/fl_peel/model/test_{name}.py"
            for name in ("model_catalogue", "delta", "device", "model_files", "joining", "model")
        ),
    ),
}

# ---- what is added to mutmut: its own functions, each wrapped once

OPAQUE = ("Error", "_refused", "cast", "assert_never")
"""Calls whose arguments are left alone, by the end of their names: the text of errors, and what types alone say."""
STREAMS = ("rng_for", "seed_for", "device_seeds", "device_uniforms")
"""Whose text arguments are names of streams of randomness: another name is another stream, as good as the first. That
no two purposes have one name is held by tests/test_streams.py.
"""
USUAL = matchers.Attribute(matchers.Name("np"), matchers.OneOf(*map(matchers.Name, ("int64", "float64", "bool_"))))
"""Types that NumPy takes of itself: left out, the numbers are the same."""
AS_THEY_ARE = ("staticmethod", "classmethod")


def _decorators(function: cst.FunctionDef) -> list[str]:
    """Names of a function's decorators, without their arguments."""
    nodes = (one.decorator for one in function.decorators)
    return [_ends(node.func if isinstance(node, cst.Call) else node) for node in nodes]


def _ends(function: cst.BaseExpression) -> str:
    """Last name of what is called."""
    return function.attr.value if isinstance(function, cst.Attribute) else getattr(function, "value", "")


def _left_alone(call: cst.Call, argument: cst.Arg) -> bool:
    return (
        matchers.matches(argument.value, USUAL)
        or (argument.keyword is not None and argument.keyword.value == "strict")
        or (_ends(call.func) in STREAMS and isinstance(argument.value, cst.SimpleString))
    )


def extend_mutmut() -> None:
    """Mutate decorated functions; leave the text of errors alone; one mutant per string; quick tests first."""
    skip, arrange = MutationVisitor._skip_node_and_children, file_mutation.function_trampoline_arrangement

    def skipped(self: MutationVisitor, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.FunctionDef) and node.decorators:
            return not {"abstractmethod", "overload"}.isdisjoint(_decorators(node))
        if isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value.endswith(OPAQUE):
            return True
        if isinstance(node, cst.Assert) or (
            isinstance(node, cst.Arg) and node.keyword and node.keyword.value == "strict"
        ):
            return True
        if isinstance(node, cst.Call) and _ends(node.func) in STREAMS:
            self._create_mutations(node)
            for argument in node.args:
                if not isinstance(argument.value, cst.SimpleString):
                    argument.visit(self)
            return True
        return skip(self, node)

    def arranged(function: cst.FunctionDef, mutants: Iterable[Mutation], class_name: str | None) -> Any:
        """The decorators stay on the function that picks a mutant, called whatever they make of it; they do not go on
        the mutants. Nothing is kept of a property: forks would have what was found before any mutant was picked.
        """
        if _decorators(function) == ["cached_property"]:
            function = function.with_changes(decorators=[cst.Decorator(cst.Name("property"))])
        before, nodes, after, names = arrange(function, mutants, class_name)
        if len(function.decorators) != 1 or _decorators(function)[0] not in AS_THEY_ARE:
            nodes = [nodes[0], *(node.with_changes(decorators=[]) for node in nodes[1:])]
        return before, nodes, after, names

    def arguments_left_out(node: cst.Call) -> Iterator[cst.Call]:
        """Each argument left out; one that is alone becomes None."""
        for place, argument in enumerate(node.args):
            if argument.star or _left_alone(node, argument):
                continue
            if len(node.args) > 1:
                yield node.with_changes(args=[*node.args[:place], *node.args[place + 1 :]])
            elif not matchers.matches(argument.value, matchers.Name("None")):
                yield node.with_changes(args=[argument.with_changes(value=cst.Name("None"))])

    def one_string(node: cst.BaseString) -> Iterator[cst.BaseString]:
        yield from list(operator_string(node))[:1]

    def arguments(self: PytestRunner, tests: Iterable[str]) -> list[str]:
        chosen = sorted(tests, key=lambda test: state().duration_by_test.get(test, 0.0))
        return ["-x", "-q", *(chosen or self._pytest_add_cli_args_test_selection)]

    MutationVisitor._skip_node_and_children = skipped  # type: ignore[method-assign]
    file_mutation.function_trampoline_arrangement = arranged
    instead: dict[Any, Any] = {operator_string: one_string, operator_arg_removal: arguments_left_out}
    operators: Any = mutation_operators  # a list that file_mutation has, too
    operators[:] = [(kind, instead.get(operator, operator)) for kind, operator in operators]
    PytestRunner._pytest_args_regular_run = arguments  # type: ignore[method-assign]
    ForkRunner.run_clean_tests = lambda self, tests: 0  # type: ignore[method-assign]  # as statistics were collected


def configured(group: Group) -> Config:
    """mutmut's settings for a group; the working folder is the group's."""
    configuration.reset_config()
    config = configuration.config()
    config.only_mutate = list(group.modules)
    config.do_not_mutate = ["*/__init__.py", "*/contracts.py", "*/settings.py"]
    config.also_copy = [Path(name) for name in BESIDE]  # the rest is there, mutants and all
    config.pytest_add_cli_args_test_selection = group.selection
    return config


def way_of_making() -> str:
    """What the numbers of mutants depend on, besides the code: where it changes, nothing found before holds."""
    parts = (version("mutmut"), OPAQUE, STREAMS, USUAL, AS_THEY_ARE, inspect.getsource(extend_mutmut))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def run(name: str, children: int, *, again: bool) -> None:
    """Make and run the mutants of a group. Those that were killed before stay killed until their function changes, and
    those that are listed and survived, or ran too long, are left as they are, unless they are to be tried again.
    """
    folder = WORK / name
    made = folder / "made"
    if not made.exists() or made.read_text() != way_of_making():
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    made.write_text(way_of_making())
    for copied in (*MUTATED, *BESIDE):
        link = folder / copied
        if not link.is_symlink():
            link.symlink_to(ROOT / copied)
    known = set() if again else set(read_listed(LISTED.read_text(encoding="utf-8")))
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # forks have none
    os.chdir(folder)
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != ROOT]
    configured(GROUPS[name])
    _forget_half_made(folder / "mutants")
    for data in _data(name):
        for mutant, code in data.exit_code_by_key.items():
            status = status_by_exit_code[code]
            if status not in KILLED and not (status in TRIED and _found(data, mutant) in known):
                data.exit_code_by_key[mutant] = None
        data.save()
    for cache in (folder / "mutants" / "tests", folder / "mutants" / "mutmut-stats.json"):
        shutil.rmtree(cache) if cache.is_dir() else cache.unlink(missing_ok=True)
    mutmut._run([], children)


def _forget_half_made(folder: Path) -> None:
    """What mutmut would take for what is there now: files that it copied and that are no code; and code of which it was
    stopped making mutants, which is newer than its source, though what is in it is listed beside it only afterwards.
    """
    config = configuration.config()
    for made in (one for name in MUTATED for one in (folder / name).rglob("*") if one.is_file()):
        if made.parent.name == "__pycache__":
            continue
        listed = made.with_name(f"{made.name}.meta")
        if made.suffix == ".py":
            mutated = config.should_mutate(made.relative_to(folder))
            forgotten = mutated and not (listed.exists() and listed.stat().st_mtime >= made.stat().st_mtime)
        else:
            forgotten = made.suffix not in (".meta", ".spans")
        if forgotten:
            made.unlink()


# ---- what came of them


def _data(name: str) -> list[SourceFileMutationData]:
    mutated = []
    folder = WORK / name / "mutants"
    for meta in sorted(folder.rglob("*.meta")):
        data = SourceFileMutationData(path=meta.relative_to(folder).with_suffix(""))
        data.load()
        mutated.append(data)
    return mutated


def found_mutant(module: str, mutant: str, diff: str) -> Mutant:
    """Of mutmut's name and diff."""
    function, of_class = orig_function_and_class_names_from_key(mutant)
    changed = diff.split("\n")[2:]
    was, now = (squeezed("\n".join(line[1:] for line in changed if line.startswith(sign))) for sign in "-+")
    return Mutant(module, f"{of_class}.{function}" if of_class else function, was, now)


def _found(data: SourceFileMutationData, mutant: str) -> Mutant:
    return found_mutant(_module(data), mutant, get_diff_for_mutant(mutant, path=data.path))


def _module(data: SourceFileMutationData) -> str:
    return str(data.path).removesuffix(".py").replace("/", ".")


def _path(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


def outcome(name: str) -> tuple[dict[str, Counter[str]], dict[Mutant, str]]:
    """Of a group's last run: counts by module and status, and the status of all that no test failed on."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    alive: dict[Mutant, str] = {}
    if not (WORK / name).exists():
        return counts, alive
    os.chdir(WORK / name)
    configured(GROUPS[name])
    for data in _data(name):
        module = _module(data)
        for mutant, code in data.exit_code_by_key.items():
            status = status_by_exit_code[code]
            counts[module][status] += 1
            if status not in KILLED:
                alive[_found(data, mutant)] = status
    return counts, alive


def main() -> int:
    """Run groups, print what came of them, fail for survivors that nobody explains."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}; without one, all")
    parser.add_argument("--children", type=int, default=os.cpu_count() or 1, help="mutants at a time")
    parser.add_argument("--again", action="store_true", help="try again what survived and is listed")
    parser.add_argument("--show", action="store_true", help="run nothing: what the last run left")
    parser.add_argument("--counts", action="store_true", help="write the counts into .ci/mutants.md")
    given = parser.parse_args()
    names = given.groups or list(GROUPS)
    if not given.show:
        for name in names:  # each in a process of its own: packages are loaded from the group's folder
            pid = os.fork()
            if pid == 0:
                extend_mutmut()
                make_faster()
                make_patient()
                run(name, given.children, again=given.again)
                os._exit(0)
            if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
                return 2
    listed = read_listed(LISTED.read_text(encoding="utf-8"))
    counts: dict[str, Mapping[str, int]] = {}
    alive: dict[Mutant, str] = {}
    for name in names:
        of_group, left = outcome(name)
        counts |= of_group
        alive |= left
    mine = {one: why for one, why in listed.items() if one.module in counts}
    print(table(counts))
    if given.counts:
        known = counted(COUNTS.read_text(encoding="utf-8"))
        kept = {module: row for module, row in known.items() if _path(module).exists()}
        COUNTS.write_text(table(kept | counts) + "\n", encoding="utf-8")
    survived = [one for one, status in alive.items() if status not in NOTICED]
    news, gone = unexplained(survived, listed), sorted(mine.keys() - alive.keys())
    for one in news:
        print(f"{one.place}: {alive[one]}\n  - {one.was}\n  + {one.now}")
    for one in gone:
        print(f"{one.place}: listed in {LISTED.name}, but killed or no longer made: take it off\n  + {one.now}")
    print(f"{len(news)} unexplained survivors, {len(gone)} listed in vain")
    return 1 if news or gone else 0


if __name__ == "__main__":
    sys.exit(main())

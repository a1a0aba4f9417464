"""What `make mutants` is set to is there, and survivors are accepted by function; none is run here."""

import ast
import tomllib

import pytest
from mutants import ACCEPTED, accepted_functions, mutated_function, outcomes

from tests.helpers.root import ROOT

CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]


@pytest.mark.parametrize("place", sorted(accepted_functions(ACCEPTED.read_text(encoding="utf-8"))))
def test_survivors_are_accepted_in_functions_that_are_mutated(place):
    module, function = place.split(":")
    path = module.replace(".", "/") + ".py"
    assert any(
        path in (pattern, f"{pattern.rpartition('/')[0]}/{path.rpartition('/')[2]}")
        for pattern in CONFIG["only_mutate"]
    )
    node = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for name in function.split("."):
        (node,) = (inner for inner in node.body if getattr(inner, "name", None) == name)


def test_modules_and_tests_of_the_configuration_are_there():
    assert all(any(ROOT.glob(pattern)) for pattern in CONFIG["only_mutate"])
    assert all((ROOT / test).exists() for test in CONFIG["pytest_add_cli_args_test_selection"])


def test_outcomes_name_functions():
    printed = "    a.b.x_f__mutmut_1: survived\n    a.b.xǁCǁ_g__mutmut_12: no tests\nother\n"
    assert [(mutated_function(name), status) for name, status in outcomes(printed)] == [
        ("a.b:f", "survived"),
        ("a.b:C._g", "no tests"),
    ]
    assert accepted_functions("it changes nothing:\n  - a.b:f\n  - a.b:C._g\n") == {"a.b:f", "a.b:C._g"}

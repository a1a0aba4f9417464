"""The list of mutants that survive is about code that is there; none is run here."""

import pytest
from survivors import (
    COUNTS,
    LISTED,
    Mutant,
    counted,
    function_source,
    read_listed,
    squeezed,
    table,
    unexplained,
)


def test_what_is_listed_is_code_that_is_there():
    lost = {}
    for mutant in read_listed(LISTED.read_text(encoding="utf-8")):
        source = function_source(mutant.module, mutant.function)
        if source is None or mutant.was not in source:
            lost[mutant.place] = mutant.was
    assert lost == {}


def test_every_reason_is_one():
    listed = read_listed(LISTED.read_text(encoding="utf-8"))
    assert all(len(why.split()) > 3 for why in listed.values())
    assert all(mutant.was != mutant.now for mutant in listed)


# ---------------------------------------------------------------- by hand

ONE = Mutant("a.b", "C.f", "return x + 1", "return x - 1")
TEXT = """
- why: it makes
    no difference
  mutants:
    - at: a.b:C.f
      was: return x + 1
      now: return x - 1
"""


def test_a_list_is_read():
    assert read_listed(TEXT) == {ONE: "it makes no difference"}
    with pytest.raises(AssertionError, match="listed twice"):
        read_listed(TEXT + TEXT)
    assert read_listed("[]") == {}


def test_survivors_that_nobody_listed_are_found():
    other = Mutant("a.b", "C.f", "return x + 1", "return x + 2")
    assert unexplained([other, ONE, other], {ONE: "why"}) == [other]


def test_a_function_is_found_whatever_is_around_it(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.py").write_text(
        "class C:\n    @property\n    def f(self):\n        # why\n        return x  # y\n"
    )
    assert function_source("a.b", "C.f", tmp_path) == "def f(self): return x"
    assert function_source("a.b", "C.g", tmp_path) is None
    assert function_source("a.c", "f", tmp_path) is None
    assert squeezed("a =  1  # one\n  b") == "a = 1 b"


def test_counts_are_added_up():
    shown = table({"b": {"killed": 3, "survived": 1}, "a": {"killed": 2, "timeout": 1, "no tests": 1}})
    assert shown.splitlines()[2:] == ["| `a` | 4 | 2 | 1 | 1 |", "| `b` | 4 | 3 | 0 | 1 |", "| all | 8 | 5 | 1 | 2 |"]
    stopped = table({"b": {"killed": 3, "not checked": 2, "survived": 1}})
    assert stopped.splitlines()[2:] == ["| `b` | 6 | 3 | 0 | 2 | 1 |", "| all | 6 | 3 | 0 | 2 | 1 |"]
    crashed = table({"b": {"killed": 3, "segfault": 2, "timeout": 1}})
    assert crashed.splitlines()[0] == "| module | mutants | killed | ran too long | crashed | survived |"
    assert crashed.splitlines()[2] == "| `b` | 6 | 3 | 1 | 2 | 0 |"


def test_counts_of_what_was_not_run_again_are_read_back():
    counts = {"b": {"killed": 3, "segfault": 2, "timeout": 1, "survived": 4}, "a.c": {"not checked": 5}}
    assert counted(table(counts) + "\n") == counts
    assert counted(table({"b": {"killed": 3}})) == {"b": {"killed": 3}}
    shown = COUNTS.read_text(encoding="utf-8")
    assert shown == table(counted(shown)) + "\n", "its sums are those of its rows"

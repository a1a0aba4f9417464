"""What README and docs claim is measured again, and said to hold only where it does."""

import re
import subprocess

import pytest
from typer.testing import CliRunner

from fl_peel.errors import ReportError
from simulations.cli.main import app
from simulations.studies import reproduce as module
from simulations.studies.reproduce import Claim, ClaimRow, Experiment, chosen, measured, read_claims, reproduce
from tests.helpers.root import ROOT
from tests.simulations.conftest import QUICK

pytestmark = pytest.mark.usefixtures("undrawn")

ROWS = [
    {"part": "full_table", "name": "recall@20", "value": 0.17289, "low": 0.1615, "high": 0.1851},
    {"part": "budgets", "name": "recall@20", "value": 0.18234, "budget_share": 0.01},
    {"part": "budgets", "name": "recall@20", "value": 0.17857, "budget_share": 0.05},
]
FULL = {"part": "full_table", "name": "recall@20"}


def experiment(*claims, name="one"):
    return Experiment(name=name, command=f"run {name}", data="ml-100k", seconds=1, claims=claims)


def claim(value=0.1729, where=FULL, **more):
    return Claim(says="full table", value=value, where=where, **more)


@pytest.mark.parametrize(
    ("wanted", "holds"),
    [
        (claim(), True),
        (claim(0.1730), False),
        (claim(0.1730, tolerance=0.002), True),
        (claim(low=0.1615, high=0.1851), True),
        (claim(low=0.1615, high=0.1853), False),
        (claim(0.1823, {"part": "budgets", "budget_share": 0.01}), True),
        (claim(0.1823, {"part": "budgets", "budget_share": 0.01}, low=0.17, high=0.19), False),  # no interval measured
        (claim(0.1729, {"name": "recall@20", "budget_share": None}), True),
    ],
)
def test_a_claim_holds_to_its_last_digit(wanted, holds):
    assert measured(experiment(wanted), wanted, ROWS).holds is holds


@pytest.mark.parametrize(("where", "count"), [({"part": "budgets"}, 2), ({"part": "nothing"}, 0)])
def test_a_place_of_several_figures_or_none_is_an_error(where, count):
    wanted = claim(where=where)
    row = measured(experiment(wanted), wanted, ROWS)
    assert not row.holds
    assert row.error.startswith(f"{count} figures at ")


def test_what_is_done_is_read_and_a_failure_costs_its_own_claims(tmp_path, monkeypatch):
    ran = []

    def run(one, out, data_dir):
        ran.append(one.name)
        if one.name == "bad":
            raise ReportError("no such data")
        return ROWS

    monkeypatch.setattr(module, "_run", run)
    experiments = [experiment(claim(), name="bad"), experiment(claim(), claim(0.2), name="good")]
    for _ in range(2):
        rows = list(reproduce(experiments, tmp_path / "out", data_dir=None, on_event=lambda event: None, fresh=False))
        assert [(row.holds, row.error) for row in rows] == [(False, "no such data"), (True, ""), (False, "")]
    assert ran == ["bad", "good", "bad"]
    list(reproduce(experiments[1:], tmp_path / "out", data_dir=None, on_event=lambda event: None, fresh=True))
    assert ran[3:] == ["good"]


def test_the_command_says_what_holds_and_fails_where_something_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_run", lambda one, out, data_dir: ROWS)
    for value, code, line in ((0.1729, 0, "1 of 1 figures hold"), (0.2, 1, "0 of 1 figures hold")):
        monkeypatch.setattr(module, "read_claims", lambda value=value: [experiment(claim(value))])
        ran = CliRunner().invoke(app, ["reproduce", "--out", str(tmp_path / "out")])
        assert (ran.exit_code, ran.stdout.splitlines()[-1]) == (code, line)
        table = (tmp_path / "out" / "reproduce.md").read_text().splitlines()
        assert table[0] == "| claim | command | expected | measured |  |"
        assert table[2].endswith("| ✓ |" if code == 0 else "| ✗ |")


@pytest.mark.slow
def test_a_command_leaves_one_table_of_figures(tiny, tmp_path):
    words = " ".join(f"--set '{change}'" for change in QUICK)
    one = Experiment(name="tiny", command=f"run {tiny} {words} --nodes 1", data="", seconds=1, claims=[claim()])
    rows = module._run(one, tmp_path / "out", None)
    assert {"full_table.global", "budgets"} <= {row["part"] for row in rows}
    with pytest.raises(ReportError, match="no such scenario or file"):
        module._run(Experiment(name="x", command="run nowhere", data="", seconds=1, claims=[claim()]), tmp_path, None)


def test_data_in_a_command_is_the_folder_of_data_sets(tmp_path, monkeypatch):
    asked = []

    def run(words, **options):
        asked.append(words)
        return subprocess.CompletedProcess(words, 2, "", "fl-peel: error: no such data")

    monkeypatch.setattr(module.subprocess, "run", run)
    one = Experiment(
        name="x", command="run timeline --set data.path=DATA/mine.csv", data="", seconds=1, claims=[claim()]
    )
    for folder in (tmp_path, None):
        monkeypatch.setenv("FL_PEEL_DATA", str(tmp_path))
        with pytest.raises(ReportError, match=r"^no such data$"):
            module._run(one, tmp_path / "out", folder)
        assert f"data.path={tmp_path}/mine.csv" in asked[-1]


def test_experiments_are_chosen_by_name():
    known = read_claims()
    assert [one.name for one in chosen(known, ["nothing-collected"], quick=False)] == ["nothing-collected"]
    assert all(one.quick for one in chosen(known, [], quick=True))
    with pytest.raises(ReportError, match=r"^--only: no experiment 'ml-100'; did you mean 'ml-100k'"):
        chosen(known, ["ml-100"], quick=False)


def test_every_figure_of_readme_is_claimed():
    """Each four-digit figure of README: no ends of intervals, and none that is only said to be small."""
    shown = set(re.findall(r"(?<![\d.])0?(\.\d{4})(?!\d)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert len(shown) > 15
    known = {f"{end:.4f}"[1:] for one in read_claims() for claim in one.all_claims() for end in ends(claim)}
    assert shown <= known


def ends(claim):
    return [abs(end) for end in (claim.value, claim.low, claim.high) if end is not None]


def test_a_row_of_a_table_is_a_claim_a_cell():
    cells = [[0.01, 0.1823], [0.05, 0.2]]
    one = experiment(*ClaimRow(says="PEEL", where={"part": "budgets"}, columns=["budget_share"], cells=cells).claims())
    assert [(claim.says, measured(one, claim, ROWS).holds) for claim in one.all_claims()] == [
        ("PEEL, 0.01", True),
        ("PEEL, 0.05", False),
    ]


def test_names_are_given_once():
    experiments = read_claims()
    assert len({one.name for one in experiments}) == len(experiments)
    says = [claim.says for one in experiments for claim in one.all_claims()]
    assert len(set(says)) == len(says)
    assert all(one.all_claims() for one in experiments)

"""The first hour: README and tutorial, typed word for word on what is like a fresh machine.

A copy of the tracked files, an empty home, an environment that holds nothing but a path of the system's commands, no
network. What ``make run`` would install is there already, in an environment of the copy's own.
"""

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest

from fl_peel.data.datasets import DATA_DIR_VARIABLE, list_datasets
from fl_peel.errors import DataError
from simulations.report.run_files import read_report
from tests.helpers.root import ROOT

README, TUTORIAL = ROOT / "README.md", ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
SHELLS = ("", "bash", "console")
"""Languages of blocks that are typed; the first is README's block of make's targets."""
NOT_TYPED = ("make test", "make test-all", "make lint")
"""They would run this test again, or need more than a user has installed."""
SYSTEM = "/usr/bin:/bin"
PLACES = 0.002
"""How far a figure may be off that of the README, as it says itself."""
LIMIT_S = 1800


def blocks_of(page):
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def script_of(page):
    """What a reader of a page does, as one script of bash, and the lines that are typed. Files with a title are written
    where the page has them; Python is run as a file is.
    """
    script, typed = [], []
    for number, (language, title, text) in enumerate(blocks_of(page)):
        if title or language == "python":
            name = title or f"snippet_{number}.py"
            script.append(f"cat > {shlex.quote(name)} <<'END OF FILE'\n{text}END OF FILE")
            script += [] if title else [f"python {name}"]
        else:
            assert language in SHELLS, f"{page.name}: nobody types a block of {language}"
            lines = [line for line in text.splitlines() if line.partition("#")[0].strip() and not skipped(line)]
            typed += lines
            script += lines
    return "\n".join(script), typed


def skipped(line):
    return line.partition("  #")[0].strip() in NOT_TYPED


def sources():
    """What a clone would have: what git tracks or, where this is no clone, all but what building leaves."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if not tracked.returncode:
        return [name for name in tracked.stdout.split("\0") if name and (ROOT / name).is_file()]
    built = {"out", "site", "__pycache__"}
    names = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    left = built | {part.name for part in ROOT.glob(".*") if part.name != ".ci"}
    return [str(name) for name in names if not left & set(name.parts[:-1])]


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """Types a script into a new shell of the machine, in the copy; (copy, what types)."""
    place = tmp_path_factory.mktemp("machine")
    copy, home, data = place / "fl-peel", place / "home", place / "data"
    for name in sources():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    home.mkdir()
    # loops are compiled: how long that takes, and that it works, is for tests of compiling
    compiled = Path("fl_peel", "kernels", "__pycache__")
    if (ROOT / compiled).is_dir():
        shutil.copytree(ROOT / compiled, copy / compiled)
    install(copy)
    # a fresh machine has them from the package index
    lay_out_data(data)
    environment = {"HOME": str(home), "PATH": SYSTEM, DATA_DIR_VARIABLE: str(data), "LANG": "C.UTF-8"}
    bash = shutil.which("bash", path=SYSTEM)

    def type_in(script):
        ran = subprocess.run(
            [bash, "-eo", "pipefail"],
            input=script,
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert ran.returncode == 0, f"{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
        return ran.stdout

    return copy, type_in


def install(copy):
    """What `make run` would: an environment of the copy, whose packages are those of this one, but for fl-peel."""
    place = copy / ".venv"
    venv.create(place, symlinks=True, with_pip=False)
    base = {"base": str(place), "platbase": str(place)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=base))
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "machine.pth").write_text("\n".join([str(copy), *others]) + "\n")
    command = place / "bin" / "fl-peel"
    python = shlex.quote(str(place / "bin" / "python"))
    command.write_text(
        f"#!/bin/sh\n'''exec' {python} \"$0\" \"$@\"\n'''\nfrom simulations.cli.main import main\n\n"
        'if __name__ == "__main__":\n    main()\n'
    )
    command.chmod(0o755)
    (place / ".installed").touch()  # newer than pyproject.toml: nothing to install


def real_data():
    """Where ML-100K is on the machine that tests, or None."""
    try:
        return next(row.where for row in list_datasets() if row.name == "ml-100k")
    except DataError:
        return None


def lay_out_data(folder):
    """ML-100K, or where it is not here made-up data of its size, by which it is known."""
    folder.mkdir()
    result = real_data()
    if result is not None:
        (folder / "ml-100k").symlink_to(result.resolve(), target_is_directory=True)
        return
    rng = np.random.default_rng(0)
    chances = 1.0 / (1 + np.arange(1682))
    counts = np.full(943, 106) + (np.arange(943) < 100_000 - 943 * 106)
    taken = {(user, user) for user in range(943)} | {(0, item) for item in range(943, 1682)}  # everybody, everything
    lines = [f"{user + 1}\t{item + 1}\t3\t0" for user, item in sorted(taken)]
    for user in range(943):
        for item in rng.choice(1682, counts[user] + 5, replace=False, p=chances / chances.sum()):
            if len(taken) < 100_000 and (user, item) not in taken:
                taken.add((user, item))
                lines.append(f"{user + 1}\t{item + 1}\t4\t{rng.integers(1_000_000)}")
    assert len(lines) == 100_000
    (folder / "ml-100k").mkdir()
    (folder / "ml-100k" / "u.data").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("page", [README, TUTORIAL], ids=lambda page: page.stem)
def test_nothing_is_typed_that_is_not_run(page):
    script, typed = script_of(page)
    blocks = [text for language, title, text in blocks_of(page) if language in SHELLS and not title]
    shown = [line for text in blocks for line in text.splitlines() if line.strip()]
    assert [line for line in shown if line not in typed] == [line for line in shown if skipped(line)]
    assert all(line in script.splitlines() for line in typed)
    assert len(typed) >= 4
    # before the first `fl-peel` and `python` the environment is activated
    first = next(place for place, line in enumerate(typed) if line.startswith(("fl-peel", "python")))
    assert ". .venv/bin/activate" in typed[:first]


@pytest.mark.engine
def test_the_readme_works_as_typed(machine):
    copy, type_in = machine
    output = type_in(script_of(README)[0])
    makes = output.partition("Look at the report:")
    assert makes[1], "make run says what comes next"
    for name in ("out/ml-100k", "out/federated"):
        assert (copy / name / "report.html").is_file()
    assert "refinement.rounds: " in output  # scenarios show --keys
    shares = {line.split()[0] for line in output.splitlines() if re.match(r"\d+\.\d% popularity 0\.\d{4}$", line)}
    assert shares == {"1.0%", "2.5%", "5.0%", "10.0%", "25.0%"}

    row = r"^\| [^|]*?(fp32|at 1%|at 5%) \| ([\d.]+) KB \| (0\.\d{4}) \| (0\.\d{4})? ?\|$"
    rows = re.findall(row, README.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 3
    for column, folder in enumerate(("ml-100k", "federated"), start=2):
        measured = figures_of(read_report(copy / "out" / folder))
        shown = [(line[0], line[1], line[column]) for line in rows if line[column]]
        assert len(shown) == 5 - column
        for name, size, recall in shown:
            assert round(measured[name][0] / 1000, 1) == float(size)
            if real_data() is not None:
                assert measured[name][1] == pytest.approx(float(recall), abs=PLACES), name


def figures_of(result):
    """Bytes and recall of the rows of README's table, by the end of a row's name."""
    figures = {}
    if result.full_table.globally is not None:
        figures["fp32"] = result.full_table.bytes, result.full_table.globally.recall.value
    for row in result.budgets:
        if row.selector == result.scenario["selector"]:
            figures[f"at {row.share:.0%}"] = row.budget_bytes, row.recall.value
    return figures


@pytest.mark.engine
def test_the_tutorial_works_as_typed(machine):
    copy, type_in = machine
    script = script_of(TUTORIAL)[0]
    assert script.startswith("make run ")
    # README's test has done that
    output = type_in(script.partition("\n")[2])
    assert re.search(r"^full table: 58,\d\d\d bytes, recall 0\.\d{4}$", output, re.MULTILINE)
    assert re.search(r"^1% exposure: 5\d\d bytes, recall 0\.\d{4}$", output, re.MULTILINE)
    for name in ("books", "int4"):
        for file in ("report.html", "report.json", "metrics.csv", "scenario.yaml"):
            assert (copy / "out" / name / file).is_file()
    assert list((copy / "out" / "books" / "artifacts").iterdir())
    assert (copy / "out" / "books" / "per-device.parquet").is_file()

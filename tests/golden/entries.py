"""What golden reports are made of: commands of fl-peel, run in this process, and the figures that they leave.

Only the command line's own entry point is imported, and nodes are put in where Flower's engine would start them: so the
same commands run on every commit, however its packages are arranged.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import simulations  # noqa: F401  first: Flower, Ray and NumPy read from the environment what it sets there

# isort: split
import flwr.simulation
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from matplotlib.backends.backend_svg import FigureCanvasSVG

from simulations.cli.main import main
from tests.helpers.loopback import LoopbackGrid

COMMITTED = "ml-100k"
"""The data set whose golden files are committed."""
CUTS: dict[str, Any] = {
    "pretraining.epochs": 2,
    "refinement.rounds": 2,
    "elasticity.rounds": 2,
    "data.timeline.periods": 2,
}
"""Keys of scenarios that make them long, and the most that is run of them."""
OWN_CUTS: dict[str, dict[str, Any]] = {
    "budget-shock": {"elasticity.rounds": 9},  # budgets fall at round 10
    "timeline-ml-100k": {"data.timeline.periods": 4},  # one more than its last figures are of
    "nothing-collected-private": {
        **{"pretraining.columns": 16, "pretraining.embedding_dim": 16, "secure_aggregation.neighbours": 4}
    },
    "private": {"secure_aggregation.neighbours": 4},
    "secure-aggregation": {"secure_aggregation.neighbours": 8},
    "poisoned": {"poisoning.compare": ["10%"]},
}
"""Other cuts, by scenario; a list takes the place of the scenario's own."""


class Stopped(Exception):
    """Raised in the middle of a run."""


@dataclass
class Engine:
    """Takes the place of Flower's simulation engine: nodes answer in this process.

    messages: that nodes have answered in the last run; stop_after: messages after which a run is stopped.
    """

    messages: int = 0
    stop_after: int | None = None

    def __call__(self, server_app: ServerApp, client_app: ClientApp, num_supernodes: int, **options: Any) -> None:
        """Run a server's side with so many nodes."""
        self.messages = 0
        grid = LoopbackGrid(num_supernodes, self._counted, client_app)
        grid.crossed = deque(maxlen=0)  # type: ignore[assignment]
        context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
        server_app(grid, context)

    def _counted(self, partition: int, message: Message) -> None:
        if self.messages == self.stop_after:
            raise Stopped
        self.messages += 1


ENGINE = Engine()


def fl_peel_command(*words: str | Path) -> str:
    """Run a command of fl-peel and return what it prints.

    Raises:
        RuntimeError: it ended with another exit code than 0; with what it wrote to stderr.
    """
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["fl-peel", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as leaving:
        if leaving.code:
            raise RuntimeError(f"fl-peel {' '.join(sys.argv[1:])}: {err.getvalue().strip()}") from None
    finally:
        sys.argv = before
    return out.getvalue()


@functools.cache
def scenario(name: str) -> dict[str, Any]:
    """Return the content of a shipped scenario."""
    content: dict[str, Any] = json.loads(fl_peel_command("scenarios", "show", name, "--json"))
    return content


@dataclass
class Session:
    """What entries share: where data sets and results lie, and results that several need. nodes: Flower nodes of each
    run, where not as many as scenarios say.
    """

    data_dir: Path
    folder: Path
    nodes: int | None = None
    _runs: dict[str, Path] = field(default_factory=dict)
    _messages: dict[str, int] = field(default_factory=dict)

    def options(self, name: str) -> list[str]:
        """Return the options that cut a scenario short, and where its data lie."""
        content = scenario(name)
        words = ["--quiet", "--data-dir", str(self.data_dir)]
        for path, most in (CUTS | OWN_CUTS.get(name, {})).items():
            value: Any = content
            for key in path.split("."):
                value = value.get(key) if isinstance(value, dict) else None
            if value is not None and (isinstance(most, list) or value > most):
                words += ["--set", f"{path}={json.dumps(most)}"]
        if "backend" in content["engine"]:  # Flower's engine, whose place the one above takes
            words += ["--set", "engine.backend=ray"]
        return words if self.nodes is None else [*words, "--set", f"engine.nodes={self.nodes}"]

    def printed(self, name: str) -> dict[str, Any]:
        """Run a scenario that leaves no files; return its report."""
        report: dict[str, Any] = json.loads(fl_peel_command("run", name, *self.options(name), "--json"))
        self._messages[name] = ENGINE.messages
        return report

    def study(self, command: str, name: str, *words: str) -> dict[str, Any]:
        """Run a study of a scenario; return the file that it writes."""
        out = self.folder / command / name
        fl_peel_command(command, name, "--out", out, *self.options(name), *words)
        return read_json(out / f"{command}.json")

    def run(self, key: str, *words: str) -> Path:
        """Run the main scenario, once for each key; return the folder of its results."""
        if key not in self._runs:
            out = self.folder / key
            fl_peel_command("run", COMMITTED, "--out", out, *self.options(COMMITTED), *words)
            self._runs[key] = out
        return self._runs[key]

    def resumed(self) -> Path:
        """Stop a run of the main scenario in the middle and run it again; return the folder of its results.

        Raises:
            AssertionError: it was not resumed but run anew.
        """
        if "resumed" not in self._runs:
            if COMMITTED not in self._messages:
                self.printed(COMMITTED)
            whole = self._messages[COMMITTED]
            ENGINE.stop_after = whole // 2
            with contextlib.suppress(Stopped):
                self.run("resumed")
            ENGINE.stop_after = None
            self.run("resumed")
            assert ENGINE.messages < whole, f"{ENGINE.messages} messages after it was stopped, {whole} without"
        return self._runs["resumed"]


def open_session(data_dir: Path | None, folder: Path, nodes: int | None) -> Session:
    """Make sure that the data are here, and put nodes in this process in the place of Flower's engine, from now on."""
    where = [] if data_dir is None else ["--data-dir", data_dir]
    fetched = json.loads(fl_peel_command("data", "fetch", COMMITTED, *where, "--json"))["where"]
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # tables that were pretrained before would hide a change
    flwr.simulation.run_simulation = ENGINE  # before `simulations` imports it
    FigureCanvasSVG.print_svg = draw_nothing  # what a page draws is no figure of a report, and takes seconds
    return Session(Path(fetched).parent.absolute(), folder, nodes)


def draw_nothing(canvas: FigureCanvasSVG, file: io.StringIO, **options: Any) -> None:
    """Take the place of matplotlib's drawing."""
    file.write("<svg></svg>")


def read_json(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def digests(folder: Path, pattern: str) -> dict[str, str]:
    """Return a digest of the bytes of each file of a folder, by its name."""
    files = sorted(folder.glob(pattern))
    return {file.name: hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest() for file in files}


@dataclass(frozen=True)
class Entry:
    """Something that is run, and the report that it gives. golden: name of the file that it must equal."""

    name: str
    report: Callable[[Session], dict[str, Any]]
    dataset: str = COMMITTED
    golden: str = ""

    @property
    def file(self) -> str:
        """Name of the golden file."""
        return f"{self.golden or self.name}.json"


def entries() -> Iterator[Entry]:
    """Yield all entries, in the order in which they are run."""
    names = [row["scenario"] for row in json.loads(fl_peel_command("scenarios", "--json"))]
    for name in names:
        yield Entry(name, lambda session, name=name: session.printed(name), scenario(name)["data"]["name"])
    yield Entry("resumed", lambda session: read_json(session.resumed() / "report.json"), golden=COMMITTED)
    yield Entry("export", export)
    yield Entry("diff", diff)
    yield Entry("sweep", lambda session: session.study("sweep", COMMITTED, "--set", "refinement.local.epochs=1,2"))
    yield Entry("ablate", lambda session: session.study("ablate", COMMITTED, *ABLATE))
    yield Entry("audit", lambda session: session.study("audit", COMMITTED, *AUDIT))
    yield Entry("compare", lambda session: session.study("compare", COMMITTED, *COMPARE))


ABLATE = ("--budgets", "1%", "--parts", "controller,slices")
AUDIT = ("--devices", "40", "--rounds", "1", "--only", "none; clipping")
COMPARE = ("--budgets", "1%", "--rivals", "truncated-svd,ease", "--set", "refinement.rounds=1")


def export(session: Session) -> dict[str, Any]:
    """Return what a new device is given from a saved model, and digests of the files that a run leaves."""
    out = session.resumed()
    words = ("--budget", "10KB", "--user-items", "50,181,258,100,294", "--json")
    printed = json.loads(fl_peel_command("export", out / "model", "--out", out / "new" / "me.peel", *words))
    return {
        "printed": printed,
        "files": digests(out / "new", "*"),
        "artifacts": digests(out / "artifacts", "*"),
        "model": digests(out / "model", "*.safetensors"),
    }


def diff(session: Session) -> dict[str, Any]:
    """Return how two runs differ, device by device."""
    one, other = (
        session.run("slower", "--per-device"),
        session.run("faster", "--per-device", "--set", "refinement.aggregation.learning_rate=0.5"),
    )
    before = Path.cwd()
    os.chdir(session.folder)
    try:
        fl_peel_command("diff", one.name, other.name, "--json-file", "diff.json")
    finally:
        os.chdir(before)
    return read_json(session.folder / "diff.json")

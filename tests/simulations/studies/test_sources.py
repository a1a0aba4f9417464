"""What a stage runs through: every file that it imports decides its checkpoint, and no other file does."""

import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from fl_peel import plugins
from fl_peel.package_check import PACKAGES
from simulations.studies import sources
from simulations.studies.checkpoints import Checkpoints
from simulations.studies.compare.compare import COMPETING, REFINING, RIVALS
from simulations.studies.sources import digest_of, plugin_modules, sources_of
from simulations.studies.study import FEDERATED
from tests.helpers.root import ROOT

STAGES = {
    "federated": FEDERATED,
    "refining": REFINING,
    **{rival.name: (*COMPETING, type(rival).__module__) for rival, _ in RIVALS},
}


@cache
def files_of(name):
    """Of a stage, as the walk finds them."""
    return [path.relative_to(ROOT).as_posix() for path in sources_of(STAGES[name], ROOT).values()]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of our packages."""
    root = tmp_path_factory.mktemp("copy")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def checkpoint(modules, root):
    """Its name, with everything read anew, as by another process."""
    digest_of.cache_clear()
    return Checkpoints(root, "data", root).path("stage", {}, modules)


@cache
def untouched(modules, root):
    return checkpoint(modules, root)


def changes(modules, root, file):
    """Whether touching a file gives the stage another checkpoint; the file is as it was afterwards."""
    path = root / file
    content = path.read_bytes()
    before = untouched(modules, root)
    path.write_bytes(content + b"\n# touched\n")
    try:
        return checkpoint(modules, root) != before
    finally:
        path.write_bytes(content)


@pytest.mark.slow
def test_every_file_behind_a_federated_trial_decides_its_checkpoint(copy, monkeypatch):
    """With one walk for all of them: a comment imports nothing, as the next test sees by walking anew."""
    result = sources_of(FEDERATED, copy)
    monkeypatch.setattr(sources, "sources_of", lambda modules, root: result)
    assert len(files_of("federated")) > 200
    assert [file for file in files_of("federated") if not changes(FEDERATED, copy, file)] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STAGES if name != "federated"])
def test_every_file_behind_a_central_stage_decides_its_checkpoint(copy, name):
    """But for those of a federated trial, of which two stand for all: they are found in the same way."""
    common = [file for file in files_of(name) if file in files_of("federated")]
    own = [file for file in files_of(name) if file not in files_of("federated")]
    assert own
    assert [file for file in (common[0], common[-1], *own) if not changes(STAGES[name], copy, file)] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["federated", "rule"])
def test_whatever_an_interpreter_loads_is_found(name):
    """What the walk must find at least, told by somebody else: Python itself, importing what the stage enters."""
    code = f"""
import importlib, sys
for name in {STAGES[name]!r}: importlib.import_module(name)
print(*(name for name in sys.modules if name.partition(".")[0] in {PACKAGES!r}))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(ran.stdout.split())
    assert len(loaded) > 50
    assert loaded <= set(sources_of(STAGES[name], ROOT))


def test_what_was_once_forgotten_is_there():
    assert {"strategies/rounds/bucketed.py", "clients/fleet/shipped/default.yaml"} <= set(files_of("federated"))
    assert "fl_peel/kernels/training.py" in files_of("federated")
    assert {"strategies/rivals/compete.py", "strategies/rivals/table_rivals.py"} <= set(files_of("truncated-svd"))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("truncated-svd", "simulations/report/drawing.py"),
        ("truncated-svd", "clients/client_app.py"),
        ("truncated-svd", "strategies/rivals/pep.py"),
        ("truncated-svd", "strategies/rounds/strategy.py"),
        ("federated", "simulations/report/drawing.py"),
        ("federated", "simulations/scenarios/ml-100k.yaml"),
        ("federated", "strategies/rivals/pep.py"),
        ("federated", "fl_peel/attacks/row_attacks.py"),
    ],
)
def test_what_a_stage_does_not_import_leaves_its_checkpoint_alone(copy, name, file):
    assert file not in files_of(name)
    assert not changes(STAGES[name], copy, file)


def test_a_lazy_name_leads_to_its_home_for_those_who_ask_for_it(tmp_path):
    for file, text in {
        "fl_peel/__init__.py": "if TYPE_CHECKING:\n    from fl_peel.home import wanted\n    from fl_peel.rest import x",
        "fl_peel/home.py": "wanted = 1",
        "fl_peel/rest.py": "x = 1",
        "fl_peel/asks.py": "from fl_peel import wanted",
        "fl_peel/module.py": "import fl_peel.home",
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    assert set(sources_of(["fl_peel.asks"], tmp_path)) == {"fl_peel", "fl_peel.asks", "fl_peel.home"}
    assert set(sources_of(["fl_peel.module"], tmp_path)) == {"fl_peel", "fl_peel.module", "fl_peel.home"}


TREE = {
    "fl_peel/__init__.py": "",
    "fl_peel/entry.py": """
        from __future__ import annotations
        import fl_peel.dotted.deep
        from typing import TYPE_CHECKING
        from fl_peel import submodule
        from fl_peel.named import thing
        from . import sibling
        from .relative import thing as other
        if TYPE_CHECKING:
            from fl_peel import typed
        class Lazy:
            def load(self):
                try:
                    import fl_peel.function
                except ImportError:
                    from fl_peel.fallback import thing
    """,
    **{
        f"fl_peel/{name}.py": "thing = 1"
        for name in ("submodule", "named", "sibling", "relative", "typed", "function", "fallback", "by_init", "unused")
    },
    "fl_peel/dotted/__init__.py": "from fl_peel import by_init",
    "fl_peel/dotted/deep.py": "from ..further import thing",
    "fl_peel/dotted/table.yaml": "{}",
    "fl_peel/dotted/shipped/one.yaml": "{}",
    "fl_peel/dotted/inner/__init__.py": "",
    "fl_peel/dotted/inner/two.yaml": "{}",
    "fl_peel/further/__init__.py": "from strategies.across import thing",
    "fl_peel/loose.yaml": "{}",
    "strategies/__init__.py": "",
    "strategies/across.py": "from fl_peel import entry",
}
NOT_IMPORTED = {"fl_peel/unused.py", "fl_peel/dotted/inner/__init__.py", "fl_peel/dotted/inner/two.yaml"}


@pytest.fixture
def tree(tmp_path):
    """A small tree in which every file is reached by one kind of edge alone."""
    for name, text in TREE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.splitlines()
        path.write_text("\n".join(line.removeprefix("        ") for line in lines))
    return tmp_path


@pytest.mark.parametrize("file", TREE)
def test_every_kind_of_edge_is_followed(tree, file):
    assert changes(("fl_peel.entry",), tree, file) == (file not in NOT_IMPORTED)


def test_a_file_that_comes_to_a_package_is_seen(tree):
    before = checkpoint(("fl_peel.entry",), tree)
    (tree / "fl_peel" / "dotted" / "shipped" / "new.yaml").write_text("{}")
    assert checkpoint(("fl_peel.entry",), tree) != before


def test_a_module_of_ours_that_is_not_there_is_refused():
    """Rather than be no source, as a glob that fits nothing is."""
    with pytest.raises(ModuleNotFoundError, match=r"strategies\.trials: no such module in "):
        sources_of(("strategies.trials",), ROOT)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """An installed package with a rival, on the search path."""
    site = tmp_path / "site"
    (site / "shop").mkdir(parents=True)
    (site / "shop" / "__init__.py").write_text("")
    (site / "shop" / "rival.py").write_text(
        "import numpy\nfrom shop.tables import thing\nfrom fl_peel import device_storage"
    )
    (site / "shop" / "tables.py").write_text("thing = 1")
    (site / "other.json").write_text("{}")  # beside the package, none of its own
    (site / "single.py").write_text("import json")
    monkeypatch.syspath_prepend(str(site))
    return site


def test_a_plug_in_is_followed_within_its_own_package_and_ours(plugin):
    result = sources_of(("shop.rival",), ROOT)
    assert {
        "shop",
        "shop.rival",
        "shop.tables",
        "fl_peel",
        "fl_peel.device_storage",
        "fl_peel.data.interactions",
    } <= set(result)
    assert {name.partition(".")[0] for name in result} == {"shop", "fl_peel"}
    before = checkpoint(("shop.rival",), ROOT)
    (plugin / "shop" / "tables.py").write_text("thing = 2")
    assert checkpoint(("shop.rival",), ROOT) != before
    assert sources_of(("single",), ROOT) == {"single": plugin / "single.py"}


def test_what_was_typed_into_an_interpreter_is_never_taken_for_the_same(monkeypatch):
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    modules = (*COMPETING, "__main__")
    assert checkpoint(modules, ROOT) != checkpoint(modules, ROOT)
    assert digest_of(modules, ROOT) == digest_of(modules, ROOT)  # but within one process it is


def test_what_installed_packages_add_to_a_run_belongs_to_it(plugin, monkeypatch):
    points = EntryPoints(
        [
            EntryPoint("tidal", "shop.tables:thing", "fl_peel.budgets"),
            EntryPoint("gone", "no_such_package:thing", "fl_peel.selectors"),
            EntryPoint("fl-peel", "simulations.cli.main:main", "console_scripts"),
            EntryPoint("run", "simulations:run", "fl_peel.api"),
        ]
    )
    monkeypatch.setattr(plugins, "entry_points", lambda **wanted: points.select(**wanted) if wanted else points)
    plugin_modules.cache_clear()
    try:
        assert plugin_modules() == ("shop.tables",)
    finally:
        plugin_modules.cache_clear()


def test_nothing_is_read_twice(tree, monkeypatch):
    digest_of.cache_clear()
    first = digest_of(("fl_peel.entry",), tree)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("read again"))
    assert digest_of(("fl_peel.entry",), tree) == first

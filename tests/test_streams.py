"""No two purposes draw from one stream of randomness: what names a stream is used in one place."""

import ast
from collections import defaultdict

from fl_peel.packages import PACKAGES
from tests.helpers.root import ROOT

NAMING = {"rng_for", "seed_for", "device_seeds", "device_uniforms"}
SHARED = {
    ("local-training",): "the bench's twin of a device trains on what the device trains on",
    ("user-groups",): "clusters made by devices start where those of the server do",
}
"""Why a name is used in several files."""


def names(text):
    """Leading text parts of the streams that a source file draws from."""
    if not any(name in text for name in NAMING):
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            parts = [part.value if isinstance(part, ast.Constant) else None for part in node.args[1:]]
            if called in NAMING and parts and isinstance(parts[0], str):
                yield tuple(part for part in parts if isinstance(part, str))


def test_every_stream_is_drawn_from_in_one_file():
    files = defaultdict(set)
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for name in names(path.read_text(encoding="utf-8")):
                files[name].add(path.relative_to(ROOT).as_posix())
    assert len(files) > 40
    assert {name: sorted(result) for name, result in files.items() if len(result) > 1}.keys() == SHARED.keys()


def test_names_are_found():
    assert list(names('rng_for(seed, "a", user); x.seed_for(1, "b", "c"); device_seeds(s, kind, devices=d)')) == [
        ("a",),
        ("b", "c"),
    ]

"""Files that users bring: lists of phones in the forms they come in, and what the documentation shows."""

from __future__ import annotations

import importlib
import json
import re

import pytest

from clients.fleet.fleet import fleet_from_mapping, load_fleet
from clients.keys.tabular import sizes
from tests.helpers.fleets import PHONES, TABLE, ids
from tests.helpers.root import ROOT


def ram_texts() -> list[str]:
    """The 333 phones, their RAM written in the ways that lists of phones write it."""
    ways = ["{g} GB", "{g}GB", "{m}MB", "{m} MB RAM", "{g}GB RAM", " {g} gb ", "{g}GB LPDDR4X"]
    return [
        ways[i % len(ways)].format(g=f"{size:g}", m=f"{size * 1024:g}")
        for size, count in PHONES.items()
        for i in range(count)
    ]


TEN_LINES = """\
profiles:
  - name: phones
    population_share: 1
    memory:
      total_gb: {{empirical: {{file: {file}, column: ram}}}}
      table_share_per_gb: 0.0125
    budget: {{process: random-walk, largest_step: 0.1}}
"""


@pytest.mark.parametrize(
    "form", ["csv", "semicolon.csv", "tsv", "objects.json", "columns.json", "inner.json", "parquet"]
)
def test_333_phones_become_a_fleet_in_ten_lines(tmp_path, form):
    texts = ram_texts()
    assert len(texts) == 333
    path = tmp_path / f"phones.{form}"
    names = [f'Phone, "{i}"' for i in range(333)]
    if form.endswith("csv") or form == "tsv":
        separator = {"csv": ",", "semicolon.csv": ";", "tsv": "\t"}[form]
        quoted = ['"' + name.replace('"', '""') + '"' for name in names]
        rows = [separator.join(row) for row in zip(quoted, texts, ["2019"] * 333, strict=True)]
        path.write_text("﻿" + "\n".join([separator.join(["Model", "RAM", "Year"]), *rows]) + "\n\n")
    elif form == "objects.json":
        path.write_text(json.dumps([{"model": n, "ram": t} for n, t in zip(names, texts, strict=True)]))
    elif form == "columns.json":
        path.write_text(json.dumps({"model": names, "ram": dict(enumerate(texts))}))
    elif form == "inner.json":
        path.write_text(json.dumps({"source": "x", "phones": [{"model": "m", "ram": t} for t in texts]}))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"model": names, "ram": texts}), path)
    text = TEN_LINES.format(file=path.name)
    assert len(text.splitlines()) <= 10
    (tmp_path / "my-fleet.yaml").write_text(text)
    memory = load_fleet(tmp_path / "my-fleet.yaml").profiles[0].memory
    assert memory.total_gb.values == tuple(sorted(PHONES))
    assert memory.total_gb.shares == pytest.approx(tuple(PHONES[value] / 333 for value in sorted(PHONES)))


def test_json_of_plain_values_and_of_counts(tmp_path):
    def gigabytes(data, **keys):
        (tmp_path / "ram.json").write_text(json.dumps(data))
        empirical = {"empirical": {"file": "ram.json", **keys}}
        document = {"profiles": [{"name": "x", "memory": {"total_gb": empirical, "recommender_share": 0.1}}]}
        quantity = fleet_from_mapping(document, folder=tmp_path).profiles[0].memory.total_gb
        return dict(zip(quantity.values, quantity.shares, strict=True))

    assert gigabytes(["4 GB", "2 GB", "4GB", 4]) == {2.0: 0.25, 4.0: 0.75}
    assert gigabytes({"4 GB": 3, "512MB": 1}) == {0.5: 0.25, 4.0: 0.75}
    assert gigabytes(["4 GB", None, "", "n/a"]) == {4.0: 1.0}
    assert gigabytes(["4 GB", "a lot"], unreadable="skip") == {4.0: 1.0}
    weighted = [{"ram": "4 GB", "users": 30}, {"ram": "8 GB", "users": 10}]
    assert gigabytes(weighted, column="ram", weight_column="users") == {4.0: 0.75, 8.0: 0.25}


@pytest.mark.parametrize(
    ("text", "gigabytes"),
    [
        ("4 GB", [4]),
        ("512MB", [0.5]),
        ("3.5GB RAM", [3.5]),
        ("3,5 GB", [3.5]),
        ("1,024 MB", [1]),
        ("2048 MiB", [2]),
        ("6GB LPDDR5", [6]),
        ("8 GB RAM, 256 GB storage", [8]),
        ("256GB 12GB RAM", [12]),
        ("4/6 GB", [4, 6]),
        ("4 / 6 / 8GB", [4, 6, 8]),
        ("1G", [1]),
        ("4", [4]),
        ("Mi 9 - 6 GB", [6]),
        ("LPDDR4X-8GB", [8]),
        (3, [3]),
    ],
)
def test_sizes_as_people_write_them(text, gigabytes):
    assert sizes(text, 2**30) == gigabytes


RANGES = ("-4 GB", "\u22124GB", "2-4 GB", "2 \u2013 4 GB", "RAM 2-4 GB", "RAM -4 GB")  # neither 4 GB nor two variants


@pytest.mark.parametrize("text", ["a lot", "GB", "4 GB 64 GB", "6GB/128GB", "4.5.6 GB", "version 4", *RANGES])
def test_sizes_that_cannot_be_read(text):
    with pytest.raises(ValueError, match=r"."):
        sizes(text, 2**30)


def test_yaml_anchors_and_exponents_are_understood(tmp_path):
    (tmp_path / "f.yaml").write_text(
        "profiles:\n- &a {name: a, memory: {total_gb: 4, recommender_share: 1e-3}}\n- {<<: *a, name: b}\n"
    )
    fleet = load_fleet(tmp_path / "f.yaml")
    assert fleet.names == ("a", "b")
    assert fleet.profiles[1].memory.recommender_share.value == 0.001


DOCS = ROOT / "docs" / "profiles.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS.read_text(), flags=re.DOTALL | re.MULTILINE)


def test_every_fleet_in_the_documentation_loads(tmp_path):
    (tmp_path / "phones.csv").write_text("model,ram\nx,4 GB\ny,512MB\n")
    (tmp_path / "memory.csv").write_text("device,time_s,memory_bytes\na,0,1000000\na,900,500000\n")
    documents = blocks("yaml")
    assert len(documents) >= 5
    for i, text in enumerate(documents):
        path = tmp_path / f"fleet-{i}.yaml"
        path.write_text(text)
        assert (load_fleet(path).budget_bytes(0, ids(100), 1, full_table_bytes=TABLE) > 0).all(), text


@pytest.mark.usefixtures("api")
def test_the_python_in_the_documentation_runs(tmp_path, monkeypatch):
    (tmp_path / "fleet_snippets.py").write_text("\n".join(blocks("python")))
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("fleet_snippets")
    assert module.later.shape == (2, 1_000_000)
    suite = module.TestTidalBudget()
    tests = [name for name in dir(suite) if name.startswith("test_")]
    assert len(tests) == 5
    for name in tests:
        getattr(suite, name)()
    buoy = {"name": "buoy", "memory": {"table_share": 0.1}, "budget": module.TidalBudget(period_hours=12)}
    fleet = fleet_from_mapping({"profiles": [buoy]})
    # a tenth of 1,000 bytes; the second half of each 12 hours (a round is an hour) has half of it
    assert [fleet.budget_bytes(0, ids(1), t, full_table_bytes=1000)[0] for t in (0, 5, 6, 11, 12)] == [
        100,
        100,
        50,
        50,
        100,
    ]

"""Files that users bring: lists of phones in the forms they come in, and what the documentation shows."""

from __future__ import annotations

import importlib
import json
import re

import pytest
import yaml

from clients.fleet.fleet import fleet_from_mapping, load_fleet
from clients.fleet.tabular import sizes
from tests.helpers.fleets import PHONES, TABLE, ids, one_line
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


GOOD = """\
profiles:
  - {name: a, population_share: 0.5, memory: {table_share: 0.1}}
  - {name: b, population_share: 0.5, memory: {table_share: 0.2}}
"""
P = "profiles[0]"


def keys(**changes) -> dict:
    """Document with one good profile, some of whose keys are changed."""
    return {"profiles": [{"name": "a", "memory": {"table_share": 0.1}, **changes}]}


SPEED, WALK = "compute: {samples_per_s: %s}", "budget: {process: random-walk, largest_step: 0.1, min_factor: 2}"
CHAIN = "budget: {process: markov, states: {a: 1, b: 0.5}, transitions_per_step: %s}"
STATES = "budget: {process: markov, states: %s, transitions_per_step: [[0.9, 0.1], [0.5, 0.5]], first: %s}"
COUNTS = "memory: {total_gb: {empirical: {counts: {%s: 3}}}, recommender_share: 1}"
MALFORMED = [
    # memory
    ("memory: {total_mb: -3, recommender_share: 0.1}", "profiles[0].memory.total_mb: must be > 0 (got -3)"),
    ("memory: {table_share: 0}", "profiles[0].memory.table_share: must be > 0 (got 0)"),
    ("memory: {table_share: 5}", "profiles[0].memory.table_share: must be <= 1 (got 5)"),
    ("memory: {total_tb: 1}", "did you mean 'total_mb'"),
    ("memory: {total_mb: 4 GB, recommender_share: 1}", "must be a number (got '4 GB')"),
    ("memory: {total_mb: 1, total_gb: 1, recommender_share: 1}", "has total_mb and total_gb: keep one"),
    ("memory: {total_mb: 1}", "needs one of recommender_share, table_share_per_gb"),
    ("memory: {total_mb: 1, table_share: 0.1}", "has table_share and total_mb"),
    ("memory: {recommender_share: 0.1}", "needs table_share, or one of total_kb"),
    ("memory: {total_gb: 1.0e+300, recommender_share: 1}", "total_gb: must be <= 8.38861e+06 (got 1e+300)"),
    ("memory: {total_gb: 1, table_share_per_gb: 1.0e+290}", "table_share_per_gb: must be <= 1.04858e+06 (got 1e+290)"),
    ("memory: 512", "profiles[0].memory: must be a mapping of keys to values (got 512)"),
    # keys, names, shares
    ("uplink_mbps: 3", "profiles[0].uplink_mbps: unknown key"),
    ("memorry: {}", "did you mean 'memory'?"),
    ("network: {uplink_kbps: 3}", "did you mean 'uplink_mbps'?"),
    ("name: 7", "profiles[0].name: must be a short name without surrounding blanks (got 7)"),
    ("name: 'a '", "profiles[0].name: must be a short name without surrounding blanks"),
    ("population_share: 0.9", "population_share must sum to 1 over all profiles (got 0.9)"),
    ("population_share: -1", "profiles[0].population_share: must be >= 0 (got -1)"),
    ("population_share: 1\npopulation_count: 3", "keep one"),
    ("population_count: 2.5", "must be a whole number (got 2.5)"),
    ("precision: fp8", "profiles[0].precision: must be one of fp32, fp16, int8, int4 (got 'fp8')"),
    # numbers and distributions
    (SPEED % ".nan", "profiles[0].compute.samples_per_s: must be a finite number (got nan)"),
    (SPEED % ("1" + 400 * "0"), "must be a finite number"),
    (SPEED % "true", "profiles[0].compute.samples_per_s: must be a number (got True)"),
    (SPEED % "0", "must be > 0 (got 0)"),
    (SPEED % "null", "must be a number (got nothing)"),
    ("energy: {train_watts: -1}", "profiles[0].energy.train_watts: must be >= 0 (got -1)"),
    (SPEED % "{unifrm: [1, 2]}", "did you mean 'uniform'?"),
    (SPEED % "{uniform: [1, 2], lognormal: {}}", "(got 2 keys)"),
    (SPEED % "{uniform: [5, 2]}", "samples_per_s.uniform: low 5 is above high 2"),
    (SPEED % "{uniform: [5]}", "must be [low, high]"),
    (SPEED % "{uniform: [-5, 5]}", "must be > 0 (got -5)"),
    (SPEED % "{lognormal: {median: 5}}", "lognormal.sigma: is missing"),
    (SPEED % "{lognormal: {median: 5, sigma: -1}}", "lognormal.sigma: must be >= 0 (got -1)"),
    (SPEED % "{lognormal: {mean: 5}}", "did you mean 'median'?"),
    (SPEED % "{categorical: {values: [1, 2], weights: [1]}}", "categorical.weights: must be a list of 2 numbers, one"),
    (SPEED % "{categorical: {values: [1, 2], weights: [0, 0]}}", "must have weights with a sum > 0"),
    (SPEED % "{categorical: {values: [1, 2], weights: [3, -1]}}", "categorical.weights[1]: must be >= 0 (got -1)"),
    (SPEED % "{categorical: {values: []}}", "values: must be a list of numbers"),
    (SPEED % "{empirical: {counts: {}}}", "counts: must be a mapping"),
    (COUNTS % "lots", "total_gb.empirical.counts.lots: found no size in 'lots'"),
    (COUNTS % "-4 GB", "total_gb.empirical.counts.-4 GB: found a minus or a range in '-4 GB'"),
    ("memory: {total_gb: {empirical: {file: phones.csv}}, recommender_share: 1}", "total_gb.empirical: no file"),
    # budgets
    ("budget: {process: markow}", "budget.process: unknown budget process 'markow'; did you mean 'markov'?"),
    ("budget: {amplitude: 1}", "profiles[0].budget.process: must name a budget process"),
    ("budget: 500", "profiles[0].budget: must be a mapping with process (got 500)"),
    ("budget: {process: constant, value: 3}", "profiles[0].budget.value: unknown key"),
    ("budget: {process: periodic, period_hours: 1, amplitude: 1.5}", "budget.amplitude: must be <= 1 (got 1.5)"),
    ("budget: {process: periodic, period_hours: 0, amplitude: 1}", "period_hours: must be > 0"),
    ("budget: {process: periodic, period_s: 60, amplitude: 1}", "did you mean 'period_hours'?"),
    (CHAIN % "[[0.9, 0.2], [0.5, 0.5]]", "transitions_per_step[0]: must sum to 1 over the next states (got 1.1)"),
    (CHAIN % "[[0.9, 0.1]]", "must have 2 rows, one per state (got 1)"),
    (CHAIN % "[[0.9, 0.1], [1]]", "transitions_per_step[1]: must have 2 numbers, one per state (got 1)"),
    (CHAIN % "[[1.1, -0.1], [0.5, 0.5]]", "[0]: must be <= 1 (got 1.1)"),
    (CHAIN % "{a: [1, 0], c: [0, 1]}", "must have one row per state: a, b"),
    (STATES % ("{}", "a"), "profiles[0].budget.states: must be a mapping from state to its factor"),
    (STATES % ("{a: 1, b: -1}", "a"), "profiles[0].budget.states.b: must be >= 0 (got -1)"),
    (STATES % ("{a: 1, b: 0.5}", "standby"), "profiles[0].budget.first: must be one of a, b (got 'standby')"),
    (WALK, "profiles[0].budget.min_factor: must be below max_factor 1 (got 2)"),
    ("budget: {process: shock, at_round: 5, factor: 0.1, until_round: 5}", "until_round: must be after at_round 5"),
    ("budget: {process: shock, at_round: 5, factor: 0.1, of: {process: x}}", "of.process: unknown budget process 'x'"),
    # availability
    ("availability: often", "profiles[0].availability: must be a probability or one of"),
    (
        "availability: true",
        "profiles[0].availability: must be a probability or one of probability, diurnal, trace",
    ),
    ("availability: [0.5]", "profiles[0].availability: must be a probability or one of"),
    ("availability: {}", "profiles[0].availability: unknown key ''"),
    (
        "availability: {probability: 0.5, diurnal: {window_hours: 3}}",
        "availability: must have one key (one of",
    ),
    ("availability: {probability: 0.5, window: 3}", "profiles[0].availability: unknown key 'window'"),
    ("availability: {probability: 1.5}", "profiles[0].availability.probability: must be <= 1 (got 1.5)"),
    ("availability: {uniform: [0.5, 1.5]}", "profiles[0].availability: must be <= 1 (got 1.5)"),
    ("availability: {uniform: [0.5, x]}", "profiles[0].availability.uniform[1]: must be a number (got 'x')"),
    ("availability: {trace: {file: nowhere.csv}}", "profiles[0].availability.trace.file"),
    ("availability: {diurnal: 3}", "profiles[0].availability.diurnal: must be a mapping of keys to values (got 3)"),
    ("availability: -0.5", "profiles[0].availability: must be >= 0 (got -0.5)"),
    ("availability: {diurnl: {}}", "did you mean 'diurnal'?"),
    ("availability: {diurnal: {}}", "profiles[0].availability.diurnal.window_hours: is missing"),
    ("availability: {diurnal: {window_hours: 30}}", "window_hours: must be <= period_hours 24 (got 30)"),
]
"""Keys of a profile in place of those of the good one, and what is said of them."""
WHOLE = [
    ("profiles: [{name: a}]", "profiles[0].memory: is missing"),
    ("profiles: [{memory: {table_share: 0.1}}]", "profiles[0].name: is missing"),
    ("profile: []", "profile: unknown key; did you mean 'profiles'?"),
    ("profiles: []", "profiles: must be a list with at least one profile"),
    ("profiles: {a: 1}", "must be a list with at least one profile (got a mapping)"),
    ("profiles: [phone]", "profiles[0]: must be a mapping of keys to values (got 'phone')"),
    (GOOD.replace("name: b", "name: a"), "profiles[1].name: 'a' is already the name of profiles[0]"),
    (GOOD.replace("share: 0.5, memory: {table_share: 0.1}", "count: 3, memory: {table_share: 0.1}"), "all need popul"),
    (str({"profiles": [{"name": str(i)} for i in range(1001)]}), "at most 1000"),
    (GOOD + "shocks: [{at_round: -1, factor: 1}]", "shocks[0].at_round: must be >= 0"),
    (GOOD + "shocks: [{at_round: 5, factor: 0.1, until_round: 5}]", "shocks[0].until_round: must be after at_round 5"),
    (GOOD + "clock: {step_s: 0}", "clock.step_s: must be > 0 (got 0)"),
    (GOOD + "clock: {steps_per_round: 1.5}", "clock.steps_per_round: must be a whole number"),
    (GOOD + "clock: {steps_per_round: 9007199254740992}", "steps_per_round: must be <= 1000"),
    # no fleet at all; what is no YAML that hurts nobody: tests/fl_peel/test_safe_yaml.py
    ("- name: a\n", "my-fleet.yaml: must be a mapping with profiles at its top (got a list)"),
    ("hello", "must be a mapping with profiles at its top (got 'hello')"),
    ("# nothing\n", "my-fleet.yaml: is empty; it needs profiles"),
    ("profiles: [\n  {name: a\n", "my-fleet.yaml:3: not valid YAML"),
    (GOOD.replace("name: b,", "name: b, name: c,"), "my-fleet.yaml:3: not valid YAML: the key 'name' is there twice"),
    ("#" * (2**20 + 1), "my-fleet.yaml: has more than 1048576 bytes; put long series into a file of their own"),
]


@pytest.mark.parametrize(("text", "expected"), MALFORMED)
def test_malformed_profiles_give_one_line(text, expected, tmp_path):
    document = keys(**yaml.safe_load(text))
    one_line(lambda: fleet_from_mapping(document, where="my-fleet.yaml", folder=tmp_path), expected)
    one_line(lambda: fleet_from_mapping(document, where="my-fleet.yaml", folder=tmp_path), "my-fleet.yaml: ")


@pytest.mark.parametrize(("text", "expected"), WHOLE, ids=[expected for _, expected in WHOLE])
def test_malformed_files_give_one_line(text, expected, tmp_path):
    (tmp_path / "my-fleet.yaml").write_text(text)
    one_line(lambda: load_fleet(tmp_path / "my-fleet.yaml"), expected)


def test_the_good_file_is_good(tmp_path):
    (tmp_path / "my-fleet.yaml").write_text(GOOD)
    assert load_fleet(tmp_path / "my-fleet.yaml").names == ("a", "b")
    assert load_fleet(str(tmp_path / "my-fleet.yaml")).shares == (0.5, 0.5)


def test_names_and_paths_that_do_not_exist(tmp_path):
    one_line(lambda: load_fleet("defualt"), "did you mean 'default'?")
    one_line(lambda: load_fleet("my-fleet.yaml"), "my-fleet.yaml: no such fleet file or name")
    one_line(lambda: load_fleet(tmp_path), "is a folder; give a fleet file in it")
    one_line(lambda: load_fleet("a\0b"), "no such fleet file or name")
    (tmp_path / "latin.yaml").write_bytes("profiles: é".encode("latin-1"))
    one_line(lambda: load_fleet(tmp_path / "latin.yaml"), "is not UTF-8 text")


HEADER = "device,time_s,memory_bytes\n"
BAD_TRACES = {
    "empty": ("", "trace.csv is empty"),
    "no rows": (HEADER, "has a header and no rows"),
    "time falls": (HEADER + "a,10,5\nb,0,5\na,9,5\n", "data row 3: time_s must rise within a device (got 9 after 10)"),
    "time stands": (HEADER + "a,10,5\na,10,6\n", "data row 2: time_s must rise within a device (got 10 after 10)"),
    "negative memory": (
        HEADER + "a,0,5\na,1,-5\n",
        "data row 2: memory_bytes must be between 0 and 9.0072e+15 (got -5)",
    ),
    "negative time": (HEADER + "a,-1,5\n", "data row 1: time_s must be a finite number >= 0 (got -1)"),
    "NaN": (HEADER + "a,0,nan\n", "data row 1: memory_bytes must be between"),
    "a word": (HEADER + "a,0,5\na,1,many\n", "data row 2: memory_bytes must be a number (got 'many')"),
    "an empty cell": (HEADER + "a,0,\n", "data row 1: memory_bytes must be a number (got '')"),
    "no device": ("time_s,memory_bytes\n0,5\n", "has no column 'device'"),
    "another unit": ("device,time_s,memory_mb\na,0,5\n", "has no column 'memory_bytes'; did you mean 'memory_mb'?"),
    "ragged": (HEADER + "a,0\n", "not a readable trace"),
    "a device without name": (HEADER + "a,0,5\n ,0,5\n", "data row 2: names no device"),
    "columns of one name": ("device,time_s,memory_bytes,memory_bytes\na,0,5,6\n", "2 columns 'memory_bytes': keep one"),
    "nanoseconds": (
        HEADER + "b,0,5\na,0,5\na,86400000000000,5\n",
        "data row 3: 8.64e+13 s after its device's first sample, at most 1e+10; time_s is in seconds",
    ),
}


@pytest.mark.parametrize("what", BAD_TRACES)
def test_malformed_traces_give_one_line(what, tmp_path):
    text, expected = BAD_TRACES[what]
    (tmp_path / "trace.csv").write_text(text)
    document = keys(budget={"process": "trace", "file": "trace.csv"})
    one_line(lambda: fleet_from_mapping(document, where="my-fleet.yaml", folder=tmp_path), expected)
    one_line(
        lambda: fleet_from_mapping(document, where="my-fleet.yaml", folder=tmp_path),
        f"my-fleet.yaml: {P}.budget.file: ",
    )


def test_trace_files_that_cannot_be_read(tmp_path):
    def load(name, data=None):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        return lambda: fleet_from_mapping(keys(budget={"process": "trace", "file": name}), folder=tmp_path)

    one_line(load("missing.csv"), "no file")
    one_line(load("trace.parquet", b"PAR1 or so"), "not a readable trace")
    one_line(load("trace.xlsx", b"x"), "cannot read .xlsx; use .csv, .tsv or .parquet")
    with (tmp_path / "huge.csv").open("wb") as file:
        file.truncate(300 * 2**20)
    one_line(load("huge.csv"), "has 300 MB; at most 256 MB are read")
    # an absolute trace needs no memory, a relative one does
    (tmp_path / "ok.csv").write_text(HEADER + "a,0,5\n")
    trace = {"process": "trace", "file": "ok.csv", "scale": "absolute"}
    fleet = fleet_from_mapping({"profiles": [{"name": "a", "budget": trace}]}, folder=tmp_path)
    assert fleet.budget_bytes(0, ids(2), 9, full_table_bytes=100).tolist() == [5, 5]
    relative = {"profiles": [{"name": "a", "budget": {**trace, "scale": "relative"}}]}
    one_line(lambda: fleet_from_mapping(relative, folder=tmp_path), "memory: is missing")


BAD_TABLES = {
    "phones.csv": [
        ("model,ram\nx,4 GB\ny,plenty\n", "phones.csv:3: found no size in 'plenty'; expected one such as '4 GB'"),
        ("model,ram\nx,4 GB, extra\ny\n", "phones.csv:3 has 1 of 2 columns"),
        ("model,memory\nx,4 GB\n", "has no column 'ram'"),
        ("model,ram\n", "holds no value"),
        ("model,ram\nx,-\n", "holds no value"),
        ("model,ram\nx,4 GB 64 GB\n", "found 2 sizes in '4 GB 64 GB'"),
        ("model,ram\nx,2-4 GB\n", "phones.csv:2: found a minus or a range in '2-4 GB'"),
        ("model,Ram,RAM\nx,2 GB,4 GB\n", "has 2 columns 'ram': keep one"),
        ("model,ram\nx,0 GB\n", "total_gb: must be > 0 (got 0)"),
    ],
    "phones.json": [
        ("[{", "phones.json:1: not JSON"),
        ("7", "holds 7; expected a list"),
        ('["4 GB"]', "leave column out"),
        ('[{"RAM size": "4 GB"}]', "has no column 'ram'"),
    ],
}


@pytest.mark.parametrize(
    ("name", "text", "expected"), [(n, *case) for n, cases in BAD_TABLES.items() for case in cases]
)
def test_malformed_tables_give_one_line(name, text, expected, tmp_path):
    (tmp_path / name).write_text(text)
    memory = {"total_gb": {"empirical": {"file": name, "column": "ram"}}, "recommender_share": 0.1}
    one_line(lambda: fleet_from_mapping(keys(memory=memory), folder=tmp_path), expected)

"""Fleets that came in a message: the same as from their files, whatever these name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clients.fleet.fleet import FleetBudgets, load_fleet, load_sent_fleet, shipped_names
from fl_peel.errors import MessageError, ProfileError
from fl_peel.scenario.fleet_files import fleet_files, sent_files
from tests.helpers.fleets import TABLE, ids
from tests.helpers.root import ROOT

TRACED = """
profiles:
  - name: traced
    population_share: 0.25
    memory: {total_gb: {empirical: {file: ../values.csv, column: ram}}, recommender_share: 1e-3}
    budget: {process: shock, at_round: 2, factor: 0.5, of: {process: trace, file: memory.csv}}
    availability: {trace: {file: there.parquet}}
  - {name: plain, population_share: 0.75, memory: {table_share: {empirical: {counts: {0.5: 2, 1e-3: 1}}}}}
"""


@pytest.fixture
def folder(tmp_path):
    """A fleet file, a table of values and two traces."""
    here = tmp_path / "fleets"
    here.mkdir()
    (here / "traced.yaml").write_text(TRACED)
    (tmp_path / "values.csv").write_text("phone,ram\na,4 GB\nb,6 GB\nc,4/8 GB\n")
    (here / "memory.csv").write_text("device,time_s,memory_bytes\n0,0,100\n0,900,60.5\n1,0,10\n1,1800,30\n")
    pq.write_table(pa.table({"device": ["x", "x"], "time_s": [0, 900], "available": [1, 0]}), here / "there.parquet")
    return here


def everything(fleet):
    """What can be asked of a fleet, of 200 devices over some rounds."""
    budgets = FleetBudgets(fleet, 3, ids(200), TABLE)
    moments = [0.0, 0.5, 1.0, 2.0, 3.25]
    events = [budgets.at(now) for now in moments] + [fleet.available(3, ids(200), now) for now in moments]
    return fleet.names, fleet.shares, np.array(events).tolist(), budgets.ceiling().tolist()


@pytest.mark.parametrize("entry", ["traced.yaml", "traced.yaml:traced", "traced.yaml:plain"])
def test_a_file_gives_the_same_fleet_once_it_is_gone(folder, entry):
    source = str(folder / entry)
    wanted, files = everything(load_fleet(source)), fleet_files(source)
    shutil.rmtree(folder)
    assert everything(load_sent_fleet(source, files)) == wanted


def test_several_give_the_same_fleet(folder):
    sources = ("phones", str(folder / "traced.yaml:plain"), "tablets")
    wanted, files = everything(load_fleet(sources)), fleet_files(sources)
    assert list(sent_files(files)) == [sources[1]]
    shutil.rmtree(folder)
    assert everything(load_sent_fleet(sources, files)) == wanted


@pytest.mark.parametrize("name", shipped_names())
def test_names_stay_names(name):
    assert fleet_files(name) == ""
    assert everything(load_sent_fleet(name, "")) == everything(load_fleet(name))
    first = load_fleet(name).names[0]
    assert load_sent_fleet(f"{name}:{first}", "").names == (first,)


def test_a_recorded_fleet_is_small(tmp_path):
    """A week of a phone, every minute."""
    (tmp_path / "fleet.yaml").write_text(TRACED)
    rows = [f"0,{60 * minute},{2**30 + 4096 * (minute * 7919 % 1000)}" for minute in range(10_080)]
    (tmp_path / "memory.csv").write_text("device,time_s,memory_bytes\n" + "\n".join(rows) + "\n")
    size = (tmp_path / "memory.csv").stat().st_size
    assert len(fleet_files(str(tmp_path / "fleet.yaml"))) < 0.6 * size


def test_only_what_stands_under_the_key_file_is_sent(folder):
    (folder / "phone").write_text("not for anybody")
    (folder / "fleet.yaml").write_text("profiles: [{name: phone, memory: {table_share: 1}}]")
    (one,) = sent_files(fleet_files(str(folder / "fleet.yaml"))).values()
    assert one.data == {}


def test_a_file_that_did_not_come_along_is_one_line(folder):
    source = str(folder / "traced.yaml")
    content = json.loads(fleet_files(source))
    del content[source]["data"]["memory.csv"]
    with pytest.raises(ProfileError, match=r"traced.yaml: profiles\[0\].budget.of.file: names a file that did"):
        load_sent_fleet(source, json.dumps(content))
    with pytest.raises(ProfileError, match="fleet: names no fleet of this node, and its file did not come with it"):
        load_sent_fleet(source, "")


def test_a_file_that_cannot_be_read_is_one_line(folder, monkeypatch):
    def refused(self, *args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(ProfileError, match=r"traced.yaml: cannot be read \(Permission denied\); correct fleet"):
        fleet_files(str(folder / "traced.yaml"))


@pytest.mark.parametrize(
    "text", ["{", "[]", "1", '{"a": 1}', '{"a": {"name": "", "only": "", "content": "?", "data": {}}}', "[" * 10_000]
)
def test_what_holds_no_files_is_one_line(text):
    with pytest.raises(MessageError, match="the setting's fleet holds no fleet files"):
        sent_files(text)


def test_a_small_text_that_unpacks_to_a_huge_one_is_cut(folder, monkeypatch):
    monkeypatch.setattr("fl_peel.scenario.fleet_files.MAX_DATA_BYTES", 10)
    (folder / "memory.csv").write_text("x" * 100_000)
    (one,) = sent_files(fleet_files(str(folder / "traced.yaml"))).values()
    assert len(one.data["memory.csv"]) == 11


def test_the_fleet_of_the_docs_is_sent_whole():
    source = str(ROOT / "docs" / "fleets" / "recorded-memory.yaml")
    assert everything(load_sent_fleet(source, fleet_files(source))) == everything(load_fleet(source))

"""Processes and profiles of installed packages, found through their entry points."""

from __future__ import annotations

import subprocess
import sys

import pytest

from clients.fleet.fleet import fleet_from_mapping, load_fleet
from fl_peel.errors import ProfileError
from simulations.cli.fleets import profiles_list
from tests.helpers.fleets import fleet_of, ids, one_line

PLUGIN = """
import numpy as np
from clients import BudgetProcess, DeviceProfile, Memory, ShareFloat

class EveryOther(BudgetProcess):
    low: ShareFloat
    def budget(self, state, seed, devices, base_bytes, now):
        return base_bytes * np.where((devices + now.step) % 2 == 0, 1.0, self.low)
    def ceiling(self, seed, devices, base_bytes):
        return base_bytes

class Kiosk(DeviceProfile):
    name: str = "kiosk"
    memory: Memory | None = Memory(table_share=0.5)
    population_share: float | None = 1.0
    def rates(self, seed, devices):
        return {**super().rates(seed, devices), "latency_ms": np.full(len(devices), 7.0)}

def two():
    return [Kiosk(name="a", population_share=0.5), Kiosk(name="b", population_share=0.5)]

def broken():
    raise RuntimeError("no luck\\ntoday")
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A package as pip leaves it behind: a module, and its entry points in a dist-info folder."""
    site = tmp_path / "site"
    (site / "shop-1.0.dist-info").mkdir(parents=True)
    (site / "shop.py").write_text(PLUGIN)
    (site / "shop-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    (site / "shop-1.0.dist-info" / "entry_points.txt").write_text(
        "[fl_peel.budgets]\nevery-other = shop:EveryOther\nlost = shop:Nothing\nconstant-too = shop:two\n"
        "kiosk-too = shop:Kiosk\n"
        "[fl_peel.profiles]\nkiosk = shop:Kiosk\nkiosks = shop:two\nbroken = shop:broken\n"
    )
    monkeypatch.syspath_prepend(str(site))
    yield site
    sys.modules.pop("shop", None)


@pytest.mark.usefixtures("plugin")
def test_a_registered_budget_process_is_found():
    fleet = fleet_of(budget={"process": "every-other", "low": 0.5})
    assert fleet.budget_bytes(0, ids(4), 0, full_table_bytes=1000).tolist() == [100, 50, 100, 50]
    assert fleet.budget_bytes(0, ids(4), 0.25, full_table_bytes=1000).tolist() == [50, 100, 50, 100]
    with pytest.raises(ProfileError, match=r"profiles\[0\].budget.low: must be <= 1 \(got 2\)"):
        fleet_of(budget={"process": "every-other", "low": 2})


@pytest.mark.usefixtures("plugin")
def test_a_registered_profile_is_found_by_name_and_within_a_file():
    alone = load_fleet("kiosk")
    assert alone.names == ("kiosk",)
    assert alone.rates(0, ids(2))["latency_ms"].tolist() == [7.0, 7.0]
    assert load_fleet("kiosks").names == ("a", "b")
    memory = {"table_share": 0.1}
    mixed = fleet_from_mapping(
        {
            "profiles": [
                {"use": "kiosk", "population_share": 0.25, "memory": memory},
                {"name": "phone", "population_share": 0.75, "memory": memory},
            ]
        }
    )
    assert mixed.shares == (0.25, 0.75)
    kiosks = mixed.classes(0, ids(100)) == 0
    assert (mixed.rates(0, ids(100))["latency_ms"][kiosks] == 7).all()
    assert (mixed.budget_bytes(0, ids(100), 0, full_table_bytes=1000) == 100).all()


@pytest.mark.usefixtures("plugin")
def test_a_plug_in_that_fails_says_so_in_one_line():
    one_line(lambda: fleet_of(budget="lost"), "budget process 'lost' of shop:Nothing cannot be imported")
    for no_process in ("constant-too", "kiosk-too"):  # a function, and a class of something else
        one_line(
            lambda name=no_process: fleet_of(budget=name), "no subclass of clients.processes.budgets.BudgetProcess"
        )
    one_line(lambda: load_fleet("broken"), "the profile 'broken' cannot be made: RuntimeError: no luck today")
    one_line(lambda: fleet_from_mapping({"profiles": [{"use": "kiosks"}]}), "profiles[0].use: 'kiosks' is a list")


@pytest.mark.usefixtures("plugin")
def test_a_broken_package_hides_no_other_fleet(capsys):
    profiles_list()
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "RuntimeError: no luck today" in rows["broken"]
    assert {"default", "mixed", "kiosk", "kiosks"} <= set(rows)


def test_two_packages_that_claim_a_name(plugin):
    other = plugin / "rival-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[fl_peel.budgets]\nmarkov = shop:EveryOther\n")
    one_line(lambda: fleet_of(budget={"process": "markov"}), "'markov' is registered more than once")


def test_the_fleet_code_needs_no_flower():
    code = "import sys, clients.fleet.contracts; sys.exit(bool({'flwr', 'ray', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

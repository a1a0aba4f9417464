"""Fleets: values by hand, contracts, and every device the same in any company."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.fleet.contracts import ProfileContract
from clients.fleet.fleet import fleet_from_mapping, load_fleet, shipped_names
from fl_peel.errors import ProfileError
from simulations.cli.lists import profiles_list
from tests.helpers.examples import examples
from tests.helpers.fleets import PHONES, TABLE, fleet_of, ids, one_line


class TestPlainProfile(ProfileContract):
    def make(self):
        return fleet_of().profiles[0]


# ---------------------------------------------------------------- what a fleet is


def test_the_shipped_fleets():
    first = ("default", "microcontrollers", "mixed", "night-charging", "phones", "pressured-phones")
    assert shipped_names() == (*first, "shock", "stragglers", "tablets", "tight", "wearables")
    assert load_fleet("default").names == ("low-end", "mid-range", "high-end")
    assert {type(p.budget).__name__ for p in load_fleet("default").profiles} == {"MarkovBudget", "ConstantBudget"}


def test_phones_are_the_333_models():
    fleet = load_fleet("phones")
    # 10 + 4 + 40 + 7, 18 + 13 + 96, 78 + 57 + 1 + 9
    assert [p.population_count for p in fleet.profiles] == [61, 127, 145]
    sample = fleet.sample(4, ids(100_000))
    values, counts = np.unique(sample["total_bytes"] / 2**30, return_counts=True)
    assert values.tolist() == sorted(PHONES)
    expected = np.array([PHONES[value] for value in sorted(PHONES)]) / 333
    assert np.abs(counts / 100_000 - expected).max() < 0.008  # five standard errors of sqrt(.29 * .71 / 1e5)


def test_microcontrollers_have_64_to_512_kb():
    total = load_fleet("microcontrollers").sample(0, ids(5000))["total_bytes"]
    assert (total.min(), total.max()) == (65_536, 524_288)


def test_classes_follow_the_population_shares():
    fleet = fleet_from_mapping(
        {
            "profiles": [
                {"name": "a", "population_share": 0.2, "memory": {"table_share": 0.1}},
                {"name": "none", "population_share": 0, "memory": {"table_share": 0.1}},
                {"name": "b", "population_share": 0.8, "memory": {"table_share": 0.2}},
            ]
        }
    )
    classes = fleet.classes(9, ids(50_000))
    assert classes.dtype == np.int16
    share = np.bincount(classes, minlength=3) / 50_000
    assert share[1] == 0
    assert abs(share[0] - 0.2) < 0.01  # five standard errors are 0.009
    assert not np.array_equal(classes, fleet.classes(10, ids(50_000)))
    budgets = fleet.budget_bytes(9, ids(50_000), 0, full_table_bytes=1000)
    assert np.array_equal(budgets, np.array([100, 0, 200])[classes])


def test_profiles_without_shares_are_alike_and_one_profile_needs_none():
    assert fleet_of().shares == (1.0,)
    memory = {"table_share": 0.1}
    two = fleet_from_mapping({"profiles": [{"name": "a", "memory": memory}, {"name": "b", "memory": memory}]})
    assert two.shares == (0.5, 0.5)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ({"total_mb": 4, "recommender_share": 0.25}, 2**20),  # a quarter of 4 * 2^20
        ({"total_kb": 64, "recommender_share": 0.5}, 32 * 1024),
        ({"total_gb": 4, "recommender_share": 0.001}, 4_294_967),  # 2^32 / 1000, rounded down
        ({"table_share": 0.05}, 500_000),  # of 10 MB
        ({"total_gb": 4, "table_share_per_gb": 0.0125}, 500_000),  # 4 * 1.25% of 10 MB
        ({"total_kb": 64, "table_share_per_gb": 1000}, 65_536),  # 610,351 bytes would not fit the device
    ],
)
def test_budgets_by_hand(memory, expected):
    assert fleet_of(memory=memory).budget_bytes(0, ids(2), 3, full_table_bytes=TABLE).tolist() == [expected] * 2


def test_distributions_have_the_moments_they_say():
    def drawn(quantity):
        return fleet_of(compute={"samples_per_s": quantity}).rates(1, ids(100_000))["samples_per_s"]

    assert set(drawn(7)) == {7.0}
    uniform = drawn({"uniform": [10, 30]})
    assert abs(uniform.mean() - 20) < 0.1  # standard error 20 / sqrt(12 * 1e5) = 0.018
    assert uniform.min() >= 10
    assert uniform.max() <= 30
    lognormal = drawn({"lognormal": {"median": 100, "sigma": 0.5}})
    assert abs(np.log(lognormal).mean() - np.log(100)) < 0.01
    assert abs(np.log(lognormal).std() - 0.5) < 0.01
    clipped = drawn({"lognormal": {"median": 100, "sigma": 2, "min": 50, "max": 200}})
    assert (clipped.min(), clipped.max()) == (50, 200)
    categorical = drawn({"categorical": {"values": [1, 2, 4], "weights": [1, 0, 3]}})
    assert set(categorical) == {1.0, 4.0}
    assert abs((categorical == 4).mean() - 0.75) < 0.01
    assert abs((drawn({"categorical": {"values": [1, 2]}}) == 2).mean() - 0.5) < 0.01


def test_several_fleets_become_one():
    both = load_fleet(["default", "tablets"])
    assert both.names == (*load_fleet("default").names, *load_fleet("tablets").names)
    assert both.shares == pytest.approx((0.15, 0.225, 0.125, 0.25, 0.25))
    with pytest.raises(ProfileError, match="several have a profile 'high-end'"):
        load_fleet(["default", "default"])
    assert load_fleet(["phones"]).shares == load_fleet("phones").shares
    with pytest.raises(ProfileError, match="no fleet given"):
        load_fleet([])


def test_one_class_of_a_fleet():
    assert load_fleet("default:high-end").names == ("high-end",)
    assert load_fleet("default:high-end").shares == (1.0,)
    with pytest.raises(ProfileError, match=r"did you mean 'high-end'\?"):
        load_fleet("default:highend")


@examples(60)
@given(
    name=st.sampled_from(shipped_names()),
    seed=st.integers(0, 2**63),
    devices=st.lists(st.integers(0, 2**62), min_size=1, max_size=40, unique=True),
    time=st.floats(0, 100),
    data=st.data(),
)
def test_any_subset_in_any_order_gives_the_same(name, seed, devices, time, data):
    fleet, whole = load_fleet(name), np.asarray(devices, dtype=np.int64)
    place = np.asarray(data.draw(st.permutations(range(len(devices)))))[: data.draw(st.integers(1, len(devices)))]
    part = whole[place]
    assert np.array_equal(fleet.classes(seed, whole)[place], fleet.classes(seed, part))
    assert np.array_equal(fleet.available(seed, whole, time)[place], fleet.available(seed, part, time))
    sampled, again = fleet.sample(seed, whole), fleet.sample(seed, part)
    for key, values in sampled.items():
        assert np.array_equal(values[place], again[key]), key
    budgets = fleet.budget_bytes(seed, whole, time, full_table_bytes=TABLE)
    assert np.array_equal(budgets[place], fleet.budget_bytes(seed, part, time, full_table_bytes=TABLE))
    assert (budgets <= sampled["ceiling_bytes"]).all()


def test_device_ids_must_be_integers():
    with pytest.raises(TypeError, match="device ids"):
        load_fleet("default").classes(0, np.zeros(3))


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
        one_line(lambda name=no_process: fleet_of(budget=name), "no subclass of clients.fleet.budgets.BudgetProcess")
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

"""Synthetic populations: the same in chunks and whole, out-of-core, with the popularity and the groups planted."""

import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_peel.data.datasets import Population, read_splits
from fl_peel.data.interactions import PARTS
from fl_peel.device_storage import device_splits
from fl_peel.errors import DataError
from simulations.scenario_files import load_scenario
from tests.helpers.examples import examples


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@examples(15)
@given(seed=st.integers(0, 99), chunk=st.integers(1, 50), groups=st.sampled_from([1, 3]))
def test_chunks_equal_the_whole(tmp_path_factory, seed, chunk, groups):
    noise = 0.2 if groups > 1 else 0.0
    population = Population(seed, 40, 60, groups, median_items=6, min_items=2, noise=noise)
    whole, pieces = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("pieces")
    population.write(whole, chunk=1000)
    population.write(pieces, chunk=chunk)
    assert files(whole) == files(pieces)
    rows = population.rows(0, 40)
    for start, part in population.chunks(chunk):
        for i in range(part.num_users):
            assert (part.row(i) == rows.row(start + i)).all()


def test_a_larger_population_begins_with_the_smaller_one():
    small, large = Population(3, 20, 500, 4).rows(0, 20), Population(3, 900, 500, 4).rows(0, 20)
    assert (small.items == large.items).all()
    assert (Population(4, 20, 500, 4).rows(0, 20).items[:50] != small.items[:50]).any()


def test_devices_have_each_item_once_and_their_items_split_in_three(tmp_path):
    population = Population(0, 300, 400, 4, held_out=0.2)
    population.write(tmp_path)
    scenario = load_scenario("ml-100k", ["data.name=null", f"data.path={tmp_path}"])
    splits = device_splits(scenario, "", str(tmp_path / "unused"))
    assert (splits.num_users, splits.num_items) == (300, 400)
    assert not (tmp_path / "unused").exists()
    rows = population.rows(0, 300)
    for device in range(300):
        mine = np.concatenate([getattr(splits, part).row(device) for part in PARTS])
        assert mine.tolist() == rows.row(device).tolist()
        assert len(set(mine.tolist())) == len(mine)
        held_out = len(mine) // 5
        assert len(splits.test.row(device)) == len(splits.validation.row(device)) == held_out


def test_popularity_falls_by_the_power_law():
    """Where no device takes much of the world, an item of rank r is taken in proportion to (r + 1) ** -exponent."""
    population = Population(1, 40_000, 2000, 1, median_items=4, sigma=0.1, min_items=1, noise=0.0, exponent=0.7)
    popularity = population.rows(0, 40_000).popularity(2000)
    ranks = np.arange(1, 2001)
    inner = (ranks >= 20) & (ranks <= 1000)  # many takers each, and far from saturated
    slope = np.polyfit(np.log(ranks[inner]), np.log(popularity[inner]), 1)[0]
    assert slope == pytest.approx(-0.7, abs=0.03)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_planted_groups(noise):
    population = Population(2, 4000, 1203, 3, noise=noise)  # worlds of 401 items
    rows = population.rows(0, 4000)
    group = population.groups(np.arange(4000))
    assert np.bincount(group) / 4000 == pytest.approx([1 / 3] * 3, abs=0.03)
    foreign = rows.items % 3 != np.repeat(group, rows.counts())
    assert foreign.mean() == pytest.approx(noise, abs=0.005)  # 90,000 draws


def test_counts_are_log_normal():
    counts = Population(5, 50_000, 16_000, median_items=20, sigma=0.5, min_items=1).counts(0, 50_000)
    assert np.median(counts) == pytest.approx(20, abs=0.5)
    assert np.log(counts).std() == pytest.approx(0.5, abs=0.02)


def test_memory_holds_a_chunk_and_not_the_population(tmp_path):
    """60,000 devices of about 25 items are 6 MB of items; a chunk of 2,000 needs a fraction of a megabyte."""
    population = Population(0, 60_000, 4000)
    population.rows(0, 10)  # compile
    tracemalloc.start()
    population.write(tmp_path, chunk=2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(len(content) for content in files(tmp_path).values()) > 6e6
    assert peak < 2.5e6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_groups": 0}, "num_groups=0"),
        ({"noise": 1.5}, "noise=1.5"),
        ({"num_groups": 1}, "noise=0.1 needs a second group"),
        ({"min_items": 60}, "min_items=60 must lie in 1..50"),
        ({"held_out": 0.5}, "held_out=0.5"),
        ({"num_devices": 0}, "num_devices=0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change, words):
    with pytest.raises(DataError, match=words.replace("..", r"\.\.")):
        Population(**{"seed": 0, "num_devices": 10, "num_items": 400, "num_groups": 4} | change)


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "no array": lambda path: path.write_bytes(b"not an array"),
    "pickle": lambda path: np.save(path, np.array([{}], object), allow_pickle=True),
    "floats": lambda path: np.save(path, np.zeros(3)),
    "negative": lambda path: np.save(path, -np.load(path)),
    "large": lambda path: np.save(path, np.load(path) + np.load(path).dtype.type(1 << 20)),
    "deeper": lambda path: np.save(path, np.load(path)[..., None]),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
@pytest.mark.parametrize("name", ["train-indptr", "test-items", "num_items"])
def test_a_folder_that_is_damaged_is_refused_in_one_line(tmp_path, damage, name):
    """Before anybody computes with a number of it."""
    Population(0, 9, 200, num_groups=2).write(tmp_path)
    if (damage, name) == ("large", "num_items"):
        np.save(tmp_path / "num_items.npy", np.int64(1 << 40))
    else:
        DAMAGES[damage](tmp_path / f"{name}.npy")
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}: no devices' items: ")) as caught:
        read_splits(tmp_path)
    assert "\n" not in str(caught.value)


def test_devices_of_a_timeline_may_have_items_beyond_the_table(tmp_path):
    Population(0, 9, 200, num_groups=2).write(tmp_path)
    np.save(tmp_path / "num_items.npy", np.int64(3))
    assert read_splits(tmp_path, beyond=True).num_items == 3
    with pytest.raises(DataError, match="not 0 to 2"):
        read_splits(tmp_path)

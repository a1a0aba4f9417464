"""How a device joins, by hand: several at a time, what is saved in halves, and what does not fit."""

from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from fl_peel.data.interactions import UserItems
from fl_peel.errors import ModelError
from fl_peel.model import device as module
from fl_peel.model.device import FittedJoining, MappedJoining, as_halves
from fl_peel.pretraining.clusters import fit_user_embeddings
from tests.helpers.models import LAYOUT, fitted, mapped


def test_devices_that_join_together_join_as_each_alone():
    joining = mapped(np.random.default_rng(2), LAYOUT, groups=5)
    rows = UserItems(np.array([0, 3, 4, 6]), np.array([3, 20, 7, 1, 9, 2], np.int32))
    users, groups = joining.join(rows)
    assert users.shape == (3, 8)
    for device in range(3):
        alone, group = joining.join(rows.select(np.array([device])))
        assert (alone[0].tobytes(), group.tolist()) == (users[device].tobytes(), [groups[device]])


def test_numbers_in_halves_have_a_unit_for_each_column():
    """Of 3 and -5 the unit is 8, of 0.25 it is 0.25, and of nothing but 0 it hardly is."""
    table = np.array([[3, 0.25, 0], [-5, -0.125, 0]], np.float32)
    halved, units = as_halves(table[None], flat=True)
    assert (halved.dtype, halved.shape) == (np.float16, (2, 3))
    assert units.tolist() == [[8, 0.25, 2.0**-99]]
    assert (halved.astype(np.float32) * units == table).all()
    together, both = as_halves(np.stack([table, 2 * table]))
    assert (together.dtype, together.shape) == (np.float16, (2, 2, 3))
    assert both[1].tolist() == [16, 0.5, 2.0**-99]
    nothing, units = as_halves(np.zeros((2, 0, 3), np.float32))
    assert (nothing.dtype, nothing.shape, units.shape) == (np.float16, (2, 0, 3), (2, 3))


@pytest.mark.parametrize("place", [0, 1, 2, 8])
def test_one_number_that_halves_do_not_have_and_all_stay_as_they_are(place, monkeypatch):
    """Wherever it is: looked at two rows at a time."""
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 2)
    tables = np.ones((2, 9, 1), np.float32)
    tables[1, place] = 1.0001
    kept, units = as_halves(tables)
    assert (kept.dtype, kept.tolist(), units.tolist()) == (np.float32, tables.tolist(), [[1], [1]])
    kept, units = as_halves(tables[1:], flat=True)
    assert (kept.tolist(), units.tolist()) == (tables[1].tolist(), [[1]])
    halved, _ = as_halves(tables[:1], flat=True)
    assert halved.tolist() == tables[0].tolist()
    assert halved.dtype == np.float16


FITS = mapped(np.random.default_rng(0), LAYOUT)
"""30 items, 2 user groups, vectors of 6 numbers, of which 4 choose the group; 8 columns."""


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"own": np.zeros((), np.float16)}, r"own of shape \(\), not \(30, 0\)"),
        ({"own": np.zeros((29, 6), np.float16)}, r"own of shape \(29, 6\), not \(30, 6\)"),
        ({"own_units": np.ones((2, 6), np.float32)}, r"own_units of shape \(2, 6\), not \(1, 6\)"),
        ({"maps": np.zeros((2, 6, 7), np.float16)}, r"maps of shape \(2, 6, 7\), not \(2, 6, 8\)"),
        ({"map_units": np.ones((2, 6), np.float32)}, r"map_units of shape \(2, 6\), not \(2, 8\)"),
        ({"own": np.full((30, 6), np.nan, np.float16)}, "own holds numbers that are not finite"),
        ({"centroids": np.full((2, 4), np.inf, np.float32)}, "centroids holds numbers that are not finite"),
        ({"centroids": np.zeros((2, 7), np.float32)}, r"centroids of shape \(2, 7\) for vectors of 6 numbers"),
        ({"centroids": np.zeros((2, 0), np.float32)}, r"centroids of shape \(2, 0\) for vectors of 6 numbers"),
        ({"centroids": np.zeros((2, 4, 1), np.float32)}, r"centroids of shape \(2, 4, 1\) for vectors"),
    ],
)
def test_what_does_not_fit_is_named(changes, why):
    with pytest.raises(ModelError, match=f"^{why}"):
        replace(FITS, **changes).check(30, 8)


def test_who_fits_an_embedding_is_told_what_does_not_fit():
    joining = fitted(np.random.default_rng(0), LAYOUT)
    joining.check(30, 8)
    with pytest.raises(ModelError, match=r"^centroids of shape \(2, 7\), not \(2, 8\)"):
        replace(joining, centroids=joining.centroids[:, :7]).check(30, 8)


def test_sums_are_of_one_thread(monkeypatch):
    """More would add up in another order, and end in other digits."""
    result = []

    def noted(table, rows):
        result.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return fit_user_embeddings(table, rows)

    monkeypatch.setattr(module, "fit_user_embeddings", noted)
    with threadpool_limits(limits=2):
        fitted(np.random.default_rng(0), LAYOUT).join(UserItems(np.array([0, 2]), np.array([3, 5], np.int32)))
    assert result
    assert set(result) == {1}


@pytest.mark.parametrize("columns", [1, 4, 6])
def test_a_group_is_chosen_by_some_numbers_of_a_vector_or_all(columns):
    replace(FITS, centroids=np.ones((2, columns), np.float32)).check(30, 8)
    assert isinstance(FITS, MappedJoining)


def test_a_model_from_before_there_were_axes_leaves_embeddings_as_they_are_fitted():
    joining = fitted(np.random.default_rng(3), LAYOUT)
    before = {name: array for name, array in joining.tensors().items() if name != "maps"}
    rows = UserItems(np.array([0, 3]), np.array([3, 20, 7], np.int32))
    users, groups = FittedJoining.from_tensors(before).join(rows)
    again, same = FittedJoining.from_tensors(joining.tensors()).join(rows)
    assert groups.tolist() == same.tolist()
    assert users.tobytes() == fit_user_embeddings(joining.item_table, rows).tobytes()
    assert again[0] == pytest.approx(users[0].astype(np.float64) @ joining.maps[groups[0]], rel=1e-5)

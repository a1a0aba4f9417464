"""Named columns: they add up under their names, and come back from the array they travel in."""

import numpy as np
import pytest

from fl_peel.array_specs import IntColumns
from fl_peel.exchange.counters import ClassCounts, ClockCounts, DeviceTraces

KINDS = [ClassCounts, ClockCounts]


def filled(kind, start, size=2):
    """Column c holds start + 10 c, start + 10 c + 1, ..."""
    width = len(kind.names())
    return kind.unstacked(start + 10 * np.arange(width)[None, :] + np.arange(size)[:, None])


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_and_back(kind):
    counts = filled(kind, 5)
    array = counts.stacked()
    assert array.shape == (2, len(kind.names()))
    again = kind.unstacked(array)
    for place, name in enumerate(kind.names()):
        assert getattr(again, name).tolist() == [5 + 10 * place, 6 + 10 * place]


@pytest.mark.parametrize("kind", KINDS)
def test_every_column_adds_up_under_its_own_name(kind):
    both = filled(kind, 0) + filled(kind, 1000)
    for place, name in enumerate(kind.names()):
        assert getattr(both, name).tolist() == [1000 + 20 * place, 1002 + 20 * place]
        assert int(getattr(both.total(), name)) == 2002 + 40 * place
        assert int(getattr(both[1], name)) == 1002 + 20 * place


def test_zeros_can_be_added_to_in_place():
    counts = ClockCounts.zeros(3)
    np.add.at(counts.time_us, [0, 2, 2], [5, 6, 7])
    assert counts.time_us.tolist() == [5, 0, 13]
    assert counts.stacked().sum() == 18


def test_an_array_of_another_width_is_refused():
    with pytest.raises(ValueError, match="ClassCounts has 9 columns, the array 6"):
        ClassCounts.unstacked(np.zeros((2, 6), np.int64))


def test_what_does_not_count_is_zero():
    assert ClassCounts.names() == (
        "devices",
        "budget_bytes",
        "download_bytes",
        "upload_bytes",
        "reselections",
        "violations",
        "stored_bytes",
        "peak_bytes",
        "working_violations",
    )
    assert filled(ClassCounts, 1, 1).without_update().stacked().tolist() == [[0, 0, 21, 31, 41, 51, 0, 0, 81]]
    assert filled(ClockCounts, 1, 1).without_update().stacked().tolist() == [[1, 11, 21, 31, 41, 51, 61, 71, 0, 0]]
    assert filled(ClockCounts, 1, 2).asked_alone().stacked().tolist() == [[3] + [0] * 9, [0] * 10]


def test_traces_are_put_one_after_the_other():
    both = filled(DeviceTraces, 1, 1) + filled(DeviceTraces, 2, 2)
    assert both.device.tolist() == [1, 2, 3]
    assert both.kept_blocks.tolist() == [41, 42, 43]
    assert len(DeviceTraces.zeros(0).device) == 0
    assert issubclass(DeviceTraces, IntColumns)


@pytest.mark.parametrize("kind", KINDS)
def test_every_column_is_added_to_in_place(kind):
    total = kind.zeros(3)
    total[1:].add(filled(kind, 5))
    total[1:].add(filled(kind, 1000))
    for place, name in enumerate(kind.names()):
        assert getattr(total, name).tolist() == [0, 1005 + 20 * place, 1007 + 20 * place]


@pytest.mark.parametrize("kind", KINDS)
def test_devices_add_up_in_their_cells(kind):
    sums = filled(kind, 1, 3).by_cell(np.array([2, 0, 2]), 4)
    for place, name in enumerate(kind.names()):
        assert getattr(sums, name).tolist() == [2 + 10 * place, 0, 4 + 20 * place, 0]

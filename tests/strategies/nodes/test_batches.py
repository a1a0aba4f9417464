"""What goes into one message."""

import weakref

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from strategies.nodes.members import batches, packed_batches


def test_batches_by_hand():
    """Of at most 10: 4 + 6, then 7; 12 alone; 1 + 0 + 9."""
    result = list(batches([4, 6, 7, 12, 1, 0, 9], lambda item: item, 10))
    assert result == [[4, 6], [7], [12], [1, 0, 9]]
    assert list(batches([], lambda item: item, 10)) == []


@given(st.lists(st.integers(0, 20)), st.integers(1, 15))
def test_nothing_is_lost_and_no_batch_is_too_large(items, most):
    result = list(batches(items, lambda item: item, most))
    assert [item for batch in result for item in batch] == items
    assert all(sum(batch) <= most or len(batch) == 1 for batch in result)
    assert all(result)


def test_of_what_is_packed_memory_holds_what_a_message_has():
    made = []

    def pack(group):
        assert not [array for array in made if array() is not None], "the arrays of a group before it are still there"
        array = np.full(1000, group)
        made.append(weakref.ref(array))
        return {"blocks": array}

    result = list(packed_batches(range(5), pack, 2 * 8000))
    assert [list(batch) for batch in result] == [[0, 1], [2, 3], [4]]
    assert result[2][4]["blocks"].numpy().tolist() == [4] * 1000

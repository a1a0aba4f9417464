"""Own ids: what an item is called, and where the same item is in another catalogue."""

import numpy as np
import pytest

from fl_peel.errors import ModelError
from fl_peel.model.model_files import Catalogue
from tests.helpers.blocks import layout_of

SINGLE = layout_of("single", 4, 4, 2, 1, 0)


def test_ids_become_numbers_each_once_in_their_order():
    catalogue = Catalogue(SINGLE, ("b", "50", "050", "a"))
    assert catalogue.items(["a", 50, "b", "a"]).tolist() == [3, 1, 0]
    assert catalogue.items([]).tolist() == []
    assert [catalogue.id_of(item) for item in (3, 2)] == ["a", "050"]
    assert catalogue.find("050") == 2


def test_where_the_numbers_are_the_ids_these_are_taken():
    assert Catalogue(SINGLE).items(["3", 0, np.int64(2)]).tolist() == [3, 0, 2]
    assert Catalogue(SINGLE).by_row() == ["0", "1", "2", "3"]


@pytest.mark.parametrize("given", ["4", "-1", "03", "x", "", "٣", 10**30, "9" * 5000])
def test_an_id_of_no_item_is_one_line(given):
    with pytest.raises(
        ModelError, match="is none of the model's 4; ids are those of its data, such as 0, 1, 2"
    ) as events:
        Catalogue(SINGLE).items([given])
    assert len(str(events.value)) < 200
    assert Catalogue(SINGLE).find(str(given)) == -1


def test_a_number_is_written_in_one_way():
    catalogue = Catalogue(layout_of("single", 30, 30, 2, 1, 0))
    assert (catalogue.find("3"), catalogue.find("03")) == (3, -1)


@pytest.mark.parametrize("given", [True, 1.0, None, b"1"])
def test_what_is_no_id_at_all_is_one_line(given):
    with pytest.raises(ModelError, match="is no id; give text or whole numbers"):
        Catalogue(SINGLE).items([given])


def test_ids_by_row_follow_the_catalogue():
    layout = layout_of("unequal", 7, 3, 2, 1, 3)
    by_row = Catalogue(layout, tuple("abcdefg")).by_row()
    assert by_row == ["abcdefg"[item] for item in np.argsort(layout.item_group, kind="stable")]
    assert by_row != list("abcdefg")


def test_single_items_are_found_by_name():
    wider = layout_of("single", 5, 5, 2, 1, 0)
    mine, theirs = Catalogue(SINGLE, tuple("bcde")), Catalogue(wider, tuple("aedcb"))
    among = np.array([4, 0, 2])  # b, a, d
    assert mine.places_of(theirs, np.array([0, 1, 2, 3]), among).tolist() == [0, -1, 2, -1]


def test_item_groups_are_found_by_number_where_nothing_else_differs():
    layout, other = layout_of("contiguous", 6, 3, 2, 2, 0), layout_of("contiguous", 6, 2, 2, 2, 0)
    blocks = np.arange(layout.num_blocks)
    mine = Catalogue(layout, tuple("abcdef"))
    assert mine.places_of(mine, blocks, blocks[::-1]).tolist() == blocks[::-1].tolist()
    for theirs in (Catalogue(layout, tuple("abcdeg")), Catalogue(other, tuple("abcdef"))):
        assert (mine.places_of(theirs, blocks[: other.num_blocks], blocks[: other.num_blocks]) == -1).all()


def test_blocks_of_another_shape_are_not_there():
    other = layout_of("single", 4, 4, 1, 2, 0)
    some = np.arange(4)
    assert Catalogue(SINGLE).places_of(Catalogue(other), some, some).tolist() == [-1] * 4


def test_single_items_are_no_item_groups_whatever_their_names():
    grouped = Catalogue(layout_of("contiguous", 4, 2, 2, 1, 0), tuple("abcd"))
    single, some = Catalogue(SINGLE, tuple("abcd")), np.arange(2)
    assert single.places_of(grouped, some, some).tolist() == [-1, -1]
    assert grouped.places_of(single, some, some).tolist() == [-1, -1]

"""A device that a model serves: never a byte over its budget, and the same bytes however it came to them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fl_peel
from fl_peel.blocks.resizing import listed
from fl_peel.blocks.stored import HEADER_BYTES, StoredEmbedding, overhead_bytes
from fl_peel.errors import BudgetError, ModelError
from fl_peel.model import model as module
from fl_peel.model.device import MAGIC
from tests.helpers.blocks import LAYOUT_KINDS, layout_of, random_table
from tests.helpers.deltas import applied
from tests.helpers.examples import examples
from tests.helpers.models import ids_of, saved

LEAST, WHOLE = overhead_bytes(6), overhead_bytes(12)
MOST = 1200


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Of every kind of layout, and saved in every way."""
    result = {}
    for kind in LAYOUT_KINDS:
        layout = layout_of(kind, 25, 8, 6, 2, 1)
        for large in (False, True):
            folder = tmp_path_factory.mktemp("models") / "model"
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(module, "WHOLE_BYTES", 0 if large else 10**9)
                saved(folder, layout=layout)
            result[kind, large] = fl_peel.load(folder)
    return result


def items(numbers):
    return [f"item {number}" for number in numbers]


kinds = st.tuples(st.sampled_from(LAYOUT_KINDS), st.booleans())
had = st.lists(st.integers(0, 24), min_size=1, max_size=20)
budgets = st.integers(LEAST, MOST)


@examples(150)
@given(kind=kinds, had=had, budget=budgets)
def test_never_a_byte_over_the_budget_and_no_block_that_would_fit_is_left(models, kind, had, budget):
    device = models[kind].device(items(had))
    result = device.embedding(budget)
    assert result.num_bytes == len(result.to_bytes()) <= budget
    assert StoredEmbedding.from_bytes(result.to_bytes()).user_group == device.group
    everything = device.embedding(100_000)
    if len(result.stored.blocks) < len(everything.stored.blocks):
        some = everything.stored.blocks[: len(result.stored.blocks) + 1]
        stored = overhead_bytes(6 * (1 + max(some % 2))) + models[kind].layout.block_bytes("int8")[some].sum()
        assert stored > budget


@examples(150)
@given(kind=kinds, had=had, first=budgets, second=budgets)
def test_whoever_grows_or_shrinks_has_what_a_download_gives(models, kind, had, first, second):
    device = models[kind].device(items(had))
    low, high = sorted((first, second))
    small, large = device.embedding(low), device.embedding(high)
    assert large.shrink(low).to_bytes() == small.to_bytes()
    grown = small.grow(high)
    assert grown.embedding.to_bytes() == large.to_bytes()
    assert grown.num_bytes == len(grown.content)
    new = large.num_bytes - small.num_bytes - 2 * (len(large.stored.user) - len(small.stored.user))
    assert grown.num_bytes >= new  # and the blocks that it passes over, and the id that closes the list
    assert large.shrink(low).grow(high).embedding.to_bytes() == large.to_bytes()


def test_what_is_read_to_grow_is_told_to_the_byte(models):
    """Single items of 12 columns in 2 slices, int8: a block takes 2 + 2 + 6 bytes, an id 2."""
    device = models["single", False].device(items([3]))
    grown = device.embedding(WHOLE + 20).grow(WHOLE + 45)
    blocks = models["single", False].blocks(device.group).blocks
    passed = int(np.isin(blocks[2:5] // 2, [3]).sum())
    assert grown.num_bytes == (2 + passed) * 10 + 2
    assert device.embedding(LEAST).grow(10**6).num_bytes == 50 * 10  # all of the list, which nothing closes


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_what_is_read_to_grow_is_the_list_from_behind_the_last_block(models, precision):
    model = models["single", False]
    device = model.device(items([3]))
    ranked = model.blocks(device.group, precision)
    table = np.zeros((25, 12), np.float32)
    table[ranked.items] = ranked.table
    sent = list(listed(ranked.layout, precision, ranked.blocks, table))
    held = device.embedding(WHOLE + 2 * len(sent[0]), precision)
    behind = ranked.rank_of_block[held.stored.blocks[-1]] + 1
    everything = held.grow(10**6)
    assert everything.content == b"".join(sent[behind:])
    assert everything.embedding.to_bytes() == device.embedding(10**6, precision).to_bytes()
    some = held.grow(held.num_bytes + 3 * len(sent[0]) + 1)
    assert some.content == b"".join(sent[behind:])[: some.num_bytes]
    assert some.num_bytes in (n * len(sent[0]) + 2 for n in (3, 4, 5))  # two blocks are of what was seen


@examples(60)
@given(kind=kinds, had=had, budget=budgets, n=st.integers(1, 30))
def test_the_best_items_are_named_scored_and_were_not_seen(models, kind, had, budget, n):
    result = models[kind].device(items(had), also_seen=items([1])).embedding(budget)
    best = result.top(n)
    assert len(best) <= n
    assert not {name for name, _ in best} & {*items(had), "item 1"}
    assert [score for _, score in best] == sorted((score for _, score in best), reverse=True)
    layout, stored = models[kind].layout, result.stored
    score_of = dict(zip(layout.catalogue[stored.scores()[0]].tolist(), stored.scores()[1].tolist(), strict=True))
    assert all(score_of[int(name.removeprefix("item "))] == score for name, score in best)
    others = set(score_of) - {int(name.removeprefix("item ")) for name, _ in best} - {*had, 1}
    assert len(best) == n or not others
    assert all(score_of[item] <= best[-1][1] for item in others if best)


def test_ten_items_are_named_unless_others_are_asked_for(models):
    result = models["single", False].device(items([3])).embedding(MOST)
    assert result.top() == result.top(10)
    assert len(result.top()) == 10


def test_budgets_that_go_the_wrong_way_or_hold_nothing_are_one_line(models):
    result = models["single", False].device(items([3])).embedding(LEAST + 20)
    with pytest.raises(BudgetError, match=f"budget {LEAST + 21} B is above {LEAST + 20} B: to hold more, grow"):
        result.shrink(LEAST + 21)
    with pytest.raises(BudgetError, match=f"budget {LEAST} B is below {LEAST + 20} B: to hold less, shrink"):
        result.grow(LEAST)
    for too_small in (lambda: result.shrink(LEAST - 1), lambda: result.device.embedding(LEAST - 1)):
        with pytest.raises(BudgetError, match="does not hold header and user embedding"):
            too_small()


def newer(folder, kind, *, changed, scaled, ids=None):
    """A model that goes on from ``models``: some items have other rows, some the same row times two."""
    layout = layout_of(kind, 25, 8, 6, 2, 1)
    _, tables = saved(folder / "model", layout=layout)
    for table in tables:
        table[sorted(changed)] += 1
        table[sorted(scaled)] *= 2
    saved(folder / "model", layout=layout, tables=tables, ids=ids)
    return fl_peel.load(folder / "model")


some = st.sets(st.integers(0, 24), max_size=6)


@examples(60)
@given(kind=kinds, had=had, first=budgets, second=budgets, changed=some, scaled=some)
def test_an_update_gives_what_a_download_gives_in_so_many_bytes(
    models, tmp_path_factory, kind, had, first, second, changed, scaled
):
    before = models[kind].device(items(had)).embedding(first)
    after = newer(tmp_path_factory.mktemp("newer"), kind[0], changed=changed, scaled=scaled - changed)
    wanted = after.device(items(had)).embedding(second).to_bytes()
    delta = before.update(after, second)
    assert delta.embedding.to_bytes() == wanted
    assert applied(before.stored, delta.content).to_bytes() == wanted  # which is all that a device needs
    assert delta.num_bytes == len(delta.content) <= len(wanted)
    assert before.update(after).embedding.budget_bytes == first


def same_group(folder, **changes):
    """A device of single items before and after, whose group is the same, with room for everything."""
    saved(folder / "before", layout=layout_of("single", 25, 8, 6, 2, 1))
    before = fl_peel.load(folder / "before").device(items([3]))
    after = newer(folder, "single", **changes)
    assert after.device(items([3])).group == before.group
    return before.embedding(100_000), after


def test_what_is_as_it_was_is_not_sent(tmp_path):
    """50 blocks but for 2 that are seen, 48: header 44, user 24, an id 2, a quarter of a byte and a place 2 each; a
    block that changed has 2 + 6 bytes in place of its place, one that is scaled 2 besides."""
    before, after = same_group(tmp_path, changed=[], scaled=[])
    frame = HEADER_BYTES + 24 + 48 * 2 + 12
    assert before.update(after).num_bytes == frame + 48 * 2
    assert before.update(after).content.startswith(MAGIC)
    _, after = same_group(tmp_path, changed=[5], scaled=[])
    assert before.update(after).num_bytes == frame + 46 * 2 + 2 * 8
    _, after = same_group(tmp_path, changed=[], scaled=[5, 6])
    assert before.update(after).num_bytes == frame + 48 * 2 + 4 * 2
    _, after = same_group(tmp_path, changed=range(25), scaled=[])
    fresh = before.update(after)
    assert fresh.content == fresh.embedding.to_bytes()  # a download is shorter


def test_an_update_keeps_what_was_seen_and_the_precision(tmp_path):
    before, after = same_group(tmp_path, changed=[5], scaled=[])
    device = before.device.source.device(items([3]), also_seen=items([9, 5]))
    updated = device.embedding(400, "int4").update(after).embedding
    assert (updated.device.seen, updated.device.items) == ((3, 5, 9), (3,))
    assert updated.stored.precision == "int4"
    assert updated.to_bytes() == after.device(items([3]), also_seen=items([5, 9])).embedding(400, "int4").to_bytes()


def test_items_that_moved_in_the_catalogue_are_not_sent_again(tmp_path):
    """Five new items, and all numbers differ: blocks are known by their items' names."""
    before, _ = same_group(tmp_path, changed=[], scaled=[])
    moved = fl_peel.load(moved_model(tmp_path))
    delta = before.update(moved)
    assert applied(before.stored, delta.content).to_bytes() == delta.embedding.to_bytes()
    frame = HEADER_BYTES + 24 + 58 * 2 + 15
    assert delta.num_bytes == frame + 48 * 2 + 10 * 8


def moved_model(folder):
    """Of the same rows, with five items in front of them."""
    old = layout_of("single", 25, 8, 6, 2, 1)
    layout, rng = layout_of("single", 30, 8, 6, 2, 1), np.random.default_rng(9)
    _, tables = saved(folder / "old", layout=old)
    joining = fl_peel.load(folder / "old").joining
    more = random_table(rng, layout)[:5]
    ids = (*(f"new {i}" for i in range(5)), *ids_of(old))
    wider = replace(joining, item_table=np.concatenate([np.zeros((5, 12), np.float32), joining.item_table]))
    together = [np.concatenate([more, table]) for table in tables]
    saved(folder / "moved", layout=layout, tables=together, joining=wider, ids=ids)
    return folder / "moved"


def test_a_device_whose_items_are_gone_is_told(models, tmp_path):
    before = models["single", False].device(items([3])).embedding(300)
    layout = layout_of("single", 25, 8, 6, 2, 1)
    after = newer(tmp_path, "single", changed=[], scaled=[], ids=ids_of(layout, 100))
    with pytest.raises(ModelError, match="interactions: none are given"):
        before.update(after)

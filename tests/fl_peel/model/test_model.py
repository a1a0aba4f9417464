"""A saved model: what is saved is what is served, in whatever form it lies there."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import fl_peel
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import RankedBlocks, pack_blocks
from fl_peel.blocks.resizing import ElasticEmbedding
from fl_peel.data.interactions import UserItems
from fl_peel.errors import ModelError
from fl_peel.model import model as module
from fl_peel.model.device import KINDS, FittedJoining, MappedJoining
from fl_peel.model.model import ModelContent, changed_blocks
from fl_peel.model.model_files import ABOUT, Catalogue
from fl_peel.pretraining.clusters import choose_group, fit_user_embeddings
from fl_peel.pretraining.spectral import embeddings, halves, turned
from fl_peel.scenario.settings import PRECISIONS
from fl_peel.steps.base import add_rows, nearest, unit_vectors
from tests.helpers.blocks import LAYOUT_KINDS, layout_of, random_table
from tests.helpers.examples import examples
from tests.helpers.models import LAYOUT, fitted, ids_of, mapped, saved
from tests.helpers.root import ROOT

GIVEN = ["item 3", "item 20", "item 7"]


def listed(layout, precision, order, table):
    """The list as devices of a run decode it."""
    return RankedBlocks.unpack(layout, precision, pack_blocks(layout, precision, order, table))


def same(one, other):
    return (one.precision, one.blocks.tolist(), one.items.tolist(), one.table.tobytes()) == (
        other.precision,
        other.blocks.tolist(),
        other.items.tolist(),
        other.table.tobytes(),
    )


@pytest.mark.parametrize("kind", LAYOUT_KINDS)
@pytest.mark.parametrize("slices", [1, 2])
def test_every_group_has_its_own_table_in_its_own_order_in_every_precision(tmp_path, kind, slices):
    layout = layout_of(kind, 25, 6, 3, slices, 1)
    orders, tables = saved(tmp_path / "model", layout=layout)
    model = fl_peel.load(tmp_path / "model")
    assert (model.num_items, model.num_groups, model.precision, model.precisions) == (25, 2, "int8", PRECISIONS)
    for group in range(2):
        for precision in PRECISIONS:
            assert same(model.blocks(group, precision), listed(layout, precision, orders[group], tables[group]))
        assert model.blocks(group).precision == "int8"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", LAYOUT_KINDS)
def test_large_tables_are_saved_as_devices_read_them(tmp_path, monkeypatch, precision, kind):
    monkeypatch.setattr(module, "WHOLE_BYTES", 0)
    layout = layout_of(kind, 25, 6, 3, 2, 1)
    orders, tables = saved(tmp_path / "model", layout=layout, precision=precision)
    model = fl_peel.load(tmp_path / "model")
    assert (model.tables, model.precisions) == (precision, PRECISIONS if precision == "fp32" else (precision,))
    for group in range(2):
        assert same(model.blocks(group), listed(layout, precision, orders[group], tables[group]))
    if precision == "int8":
        with pytest.raises(ModelError, match="tables are in int8 alone, not int4; leave out the precision"):
            model.blocks(0, "int4")


@examples(30)
@given(
    kind=st.sampled_from(LAYOUT_KINDS),
    precision=st.sampled_from(PRECISIONS),
    changed=st.lists(st.sets(st.integers(0, 24), max_size=5), min_size=3, max_size=3),
)
def test_groups_that_have_much_in_common_are_saved_as_what_differs(tmp_path_factory, kind, precision, changed):
    layout, rng, folder = layout_of(kind, 25, 12, 3, 2, 1), np.random.default_rng(0), tmp_path_factory.mktemp("model")
    base = random_table(rng, layout)
    tables = [base.copy() for _ in changed]
    for table, items in zip(tables, changed, strict=True):
        table[sorted(items), 1:2] += 1.0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "WHOLE_BYTES", 0)
        orders, _ = saved(folder / "model", layout=layout, groups=3, precision=precision, tables=tables, base=base)
    result = fl_peel.load(folder / "model")
    for group, table in enumerate(tables):
        assert same(result.blocks(group), listed(layout, precision, orders[group], table))


def test_what_differs_alone_is_much_smaller(tmp_path):
    layout = layout_of("single", 2000, 2000, 16, 1, 0)
    base = random_table(np.random.default_rng(0), layout)
    tables = [base.copy() for _ in range(8)]
    tables[3][5:10] += 1
    saved(tmp_path / "a", layout=layout, groups=8, tables=tables)
    saved(tmp_path / "b", layout=layout, groups=8, tables=tables, base=base)
    sizes = [sum(file.stat().st_size for file in (tmp_path / name).glob("[bg]*")) for name in ("a", "b")]
    assert sizes[1] < 0.25 * sizes[0]
    assert not list((tmp_path / "a").glob("base*"))


def test_blocks_that_differ_by_hand():
    """Items 0 and 2, 1 and 3, and 4, two slices of two columns each."""
    layout = BlockLayout(np.array([0, 1, 0, 1, 2], np.int32), 4, 2)
    base = np.zeros((5, 4), np.float32)
    table = base.copy()
    table[[3, 3, 2, 4], [0, 1, 3, 2]] = 1.0
    assert changed_blocks(layout, base, table).tolist() == [1, 2, 5]
    assert changed_blocks(layout, base, base).tolist() == []
    single = BlockLayout(np.arange(len(base), dtype=np.int32), base.shape[1], 2)
    rows, halves = np.nonzero((base != table).reshape(len(base), 2, -1).any(axis=2))
    assert changed_blocks(single, base, table).tolist() == (2 * rows + halves).tolist()
    assert changed_blocks(single, base, table).dtype == np.int64


@pytest.mark.parametrize(("changed", "worth"), [(3, True), (4, False)])
def test_a_base_is_worth_it_up_to_eight_tenths_of_all_blocks(tmp_path, changed, worth):
    """Two groups of ten blocks: sixteen, ten of which are in the base, and three of one group."""
    layout = layout_of("single", 10, 10, 2, 1, 0)
    base = random_table(np.random.default_rng(0), layout)
    tables = [base.copy(), base.copy()]
    tables[0][:3] += 1
    tables[1][5 : 5 + changed] += 1
    orders, _ = saved(tmp_path / "model", layout=layout, tables=tables, base=base)
    assert (tmp_path / "model" / module.BASE).exists() == worth
    result = fl_peel.load(tmp_path / "model")
    for group in range(2):
        assert same(result.blocks(group), listed(layout, "int8", orders[group], tables[group]))


@pytest.mark.parametrize(("base", "whole"), [(False, 2.0), (True, 1.4)])
def test_tables_are_saved_whole_up_to_a_number_of_bytes_with_the_base(tmp_path, monkeypatch, base, whole):
    """Two tables of ten blocks of 8 bytes; or a base, and two blocks of each."""
    layout = layout_of("single", 10, 10, 2, 1, 0)
    table = random_table(np.random.default_rng(0), layout)
    tables = [table.copy(), table.copy()]
    for one in tables:
        one[4:6] += 1
    for most, precision in ((whole * 80, "fp32"), (whole * 80 - 1, "int8")):
        monkeypatch.setattr(module, "WHOLE_BYTES", most)
        saved(tmp_path / "model", layout=layout, tables=tables, base=table if base else None)
        assert fl_peel.load(tmp_path / "model").tables == precision


def test_what_saving_returns_is_the_bytes_of_all_that_is_listed(tmp_path):
    joining, tables = fitted(np.random.default_rng(0), LAYOUT), [random_table(np.random.default_rng(1), LAYOUT)] * 2
    orders = [np.arange(LAYOUT.num_blocks)] * 2
    content = ModelContent(Catalogue(LAYOUT), joining, "fp16", orders, tables)
    num_bytes = module.save(tmp_path / "a", content)
    assert num_bytes == sum(file.stat().st_size for file in (tmp_path / "a").iterdir() if file.name != ABOUT)


def test_one_group_needs_no_base(tmp_path):
    table = random_table(np.random.default_rng(0), LAYOUT)
    saved(tmp_path / "model", groups=1, tables=[table.copy()], base=table)
    assert not (tmp_path / "model" / module.BASE).exists()


def test_a_device_joins_as_one_of_a_run_that_gave_nothing(tmp_path):
    joining = fitted(np.random.default_rng(5), LAYOUT, 4)
    saved(tmp_path / "model", groups=4, joining=joining)
    device = fl_peel.load(tmp_path / "model").device(GIVEN)
    rows = UserItems(np.array([0, 3]), np.array([3, 20, 7], np.int32))
    user = fit_user_embeddings(joining.item_table, rows)
    assert [device.group] == choose_group(user, joining.centroids).tolist()
    assert device.user.tobytes() == turned(user, np.array([device.group]), joining.maps)[0].tobytes()
    assert (device.items, device.seen) == ((3, 20, 7), (3, 7, 20))


def test_a_device_joins_as_one_of_a_run_that_collects_nothing(tmp_path):
    joining = mapped(np.random.default_rng(5), LAYOUT, 4)
    saved(tmp_path / "model", groups=4, joining=joining)
    device = fl_peel.load(tmp_path / "model").device(GIVEN)
    rows = UserItems(np.array([0, 3]), np.array([3, 20, 7], np.int32))
    vector = unit_vectors(add_rows(joining.rows_of(np.arange(30)), rows))
    (group,) = nearest(vector, joining.centroids).tolist()
    assert device.group == group
    assert device.user.tobytes() == embeddings(vector, joining.map_of(group))[0].tobytes()


def test_rows_and_maps_are_saved_as_they_are_sent_if_that_loses_nothing():
    rng = np.random.default_rng(5)
    own = halves(rng.normal(size=(30, 6)).astype(np.float32) * np.float32([1e-6, 1, 1e3, 1, 0, 1]))
    maps = np.stack([halves(rng.normal(size=(6, 8)).astype(np.float32) * size) for size in (1.0, 1e-5)])
    centroids = np.zeros((2, 4), np.float32)
    for rows, kind in ((own, np.float16), (own + np.float32(1e-6), np.float32)):
        joining = MappedJoining.from_rows(centroids, rows, maps)
        assert (joining.own.dtype, joining.maps.dtype) == (kind, np.float16)
        again = KINDS["mapped"].from_tensors(joining.tensors())
        assert isinstance(again, MappedJoining)
        assert again.rows_of(np.arange(30)).tobytes() == rows.tobytes()
        assert [again.map_of(group).tobytes() for group in range(2)] == [one.tobytes() for one in maps]


class Joins(FittedJoining):
    """A user embedding that is given; or one that cannot be found."""

    user: NDArray[np.float32] | None = None

    def join(self, rows):
        if self.user is None:
            raise np.linalg.LinAlgError("Singular matrix")
        return self.user, np.zeros(1, np.int32)


@pytest.mark.parametrize("largest", [65_504.0, 70_000.0, np.inf, np.nan, None])
def test_a_user_embedding_that_cannot_be_stored_is_one_line(tmp_path, monkeypatch, largest):
    saved(tmp_path / "model")
    model = fl_peel.load(tmp_path / "model")
    joining = Joins(**model.joining.tensors())
    monkeypatch.setattr(Joins, "user", None if largest is None else np.array([[1.0] * 7 + [largest]], np.float32))
    model = replace(model, joining=joining)
    if largest == 65_504.0:
        assert model.device(GIVEN).user[-1] == largest
        return
    with pytest.raises(ModelError) as events:
        model.device(GIVEN)
    assert str(events.value).startswith(
        f"{tmp_path / 'model' / module.JOINING}: gives no user embedding that can be stored; save the model again"
    )


def test_a_device_without_interactions_is_told(tmp_path):
    saved(tmp_path / "model")
    with pytest.raises(ModelError, match="interactions: none are given, and a device joins by them"):
        fl_peel.load(tmp_path / "model").device([])


def test_the_artefact_is_the_one_that_the_run_would_store(tmp_path):
    orders, tables = saved(tmp_path / "model")
    device = fl_peel.load(tmp_path / "model").device(GIVEN, also_seen=["item 1"])
    ranked = listed(LAYOUT, "int8", orders[device.group], tables[device.group])
    wanted = ElasticEmbedding(ranked, device.user, np.array([1, 3, 7, 20]), device.group).at(200).to_bytes()
    assert device.embedding(200).to_bytes() == wanted


def test_a_table_may_be_one_block(tmp_path):
    layout = layout_of("single", 1, 1, 2, 1, 0)
    orders, tables = saved(tmp_path / "model", layout=layout)
    assert same(fl_peel.load(tmp_path / "model").blocks(1), listed(layout, "int8", orders[1], tables[1]))


def test_a_few_groups_are_held_ready_and_no_more(tmp_path):
    saved(tmp_path / "model", groups=6)
    model = fl_peel.load(tmp_path / "model")
    first = model.blocks(0)
    assert model.blocks(0) is first
    for group in range(1, 1 + module.MOST_LISTS):
        model.blocks(group)
    assert model.blocks(0) is not first
    assert len(model._lists) == module.MOST_LISTS


@pytest.mark.parametrize("group", [-1, 2])
def test_a_group_that_there_is_not_is_one_line(tmp_path, group):
    saved(tmp_path / "model")
    with pytest.raises(ModelError, match=f"user group {group}: there are 2, which count from 0"):
        fl_peel.load(tmp_path / "model").blocks(group)
    with pytest.raises(ModelError, match="precision 'int3' is unknown; choose from fp32, fp16, int8, int4"):
        fl_peel.load(tmp_path / "model").blocks(0, "int3")  # type: ignore[arg-type]


def test_the_same_model_has_the_same_digest_and_another_one_another(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        saved(tmp_path / name, seed)
    one, again, other = (fl_peel.load(tmp_path / name) for name in "abc")
    assert one.digest == again.digest != other.digest
    assert json.loads((tmp_path / "a" / "model.json").read_text())["package"] == fl_peel.__version__


def test_numbers_as_ids_are_saved_as_none(tmp_path):
    saved(tmp_path / "model", ids=())
    assert (tmp_path / "model" / module.CATALOGUE).read_text() == '{"ids": []}'
    assert fl_peel.load(tmp_path / "model").device([3]).items == (3,)
    assert len(ids_of(LAYOUT)) == LAYOUT.num_items


PAGE = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")


def test_the_snippet_runs(tmp_path, monkeypatch, capsys):
    layout = layout_of("single", 400, 400, 64, 1, 0)
    for seed, name in enumerate("ab"):
        ids = tuple(str(number + 1) for number in range(400))
        saved(tmp_path / "out" / name / "model", seed, layout=layout, ids=ids)
    monkeypatch.chdir(tmp_path)
    (text,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(text, {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 12
    assert printed[-2].endswith("bytes to read")

"""Files of a model: whole or not at all, and whatever is not as it was saved is one line."""

import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

import fl_peel
from fl_peel.errors import FlPeelError, ModelError
from fl_peel.model import model_files as module
from fl_peel.model.model import CATALOGUE, ITEMS, JOINING
from fl_peel.model.model_files import ABOUT, DIGEST, Catalogue, ModelFiles, _digest_of_about, digest_of, writing
from tests.helpers.blocks import layout_of
from tests.helpers.examples import examples
from tests.helpers.models import LAYOUT, mapped, saved

GROUP = "group-00000.safetensors"


@pytest.fixture
def folder(tmp_path):
    saved(tmp_path / "model")
    return tmp_path / "model"


def use(folder):
    """All that a device asks of a model."""
    model = fl_peel.load(folder)
    for group in range(model.num_groups):
        model.blocks(group)
    return model.device(["item 3"]).embedding(200).top(3)


def resealed(folder, name, data):
    """Put other bytes into a file, with a digest that fits: who can write one can write the other."""
    (folder / name).write_bytes(data)
    about = json.loads((folder / ABOUT).read_text())
    about["files"][name] = {"bytes": len(data), "digest": digest_of(data)}
    about[DIGEST] = _digest_of_about(about)
    (folder / ABOUT).write_text(json.dumps(about))


def changed_about(folder, **changes):
    """Change what model.json says, digest and all."""
    about = json.loads((folder / ABOUT).read_text()) | changes
    about[DIGEST] = _digest_of_about(about)
    (folder / ABOUT).write_text(json.dumps(about))


def test_nothing_but_safetensors_and_json_is_there(folder):
    assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors"}
    assert use(folder)


@pytest.mark.parametrize("name", [CATALOGUE, ITEMS, JOINING, GROUP])
def test_a_file_that_was_changed_cut_off_or_lost_is_one_line(folder, name):
    data = (folder / name).read_bytes()
    place = len(data) // 2
    for broken, why in (
        (data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], "its digest does not match: it was changed"),
        (data[:-1], f"{len(data) - 1} bytes, not {len(data)}: it was cut off or changed"),
        (None, "is missing"),
    ):
        (folder / name).unlink()
        if broken is not None:
            (folder / name).write_bytes(broken)
        with pytest.raises(ModelError) as events:
            use(folder)
        assert str(events.value) == f"{folder / name}: {why}; save the model again, or copy all of its folder"
        (folder / name).write_bytes(data)
    assert use(folder)


def test_a_pipe_is_not_waited_for(folder):
    (folder / GROUP).unlink()
    os.mkfifo(folder / GROUP)
    with pytest.raises(ModelError, match=f"{GROUP}: is missing"):
        use(folder)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"format": "another"}, "is not of a model of fl-peel"),
        ({"version": 2, "package": "9.9"}, "format 2, where this release reads 1; it was saved by fl-peel 9.9"),
        ({"items": 31}, "item_group is not of 31 items"),
        ({"items": 0}, "items is 0, not a whole number from 1 to 10000000"),
        ({"items": True}, "items is True, not a whole number"),
        ({"items": 10**30}, "items is 10000000000"),
        ({"embedding_dim": 16_385}, "embedding_dim is 16385, not a whole number from 1 to 16384"),
        ({"embedding_dim": 6}, "item_table of shape"),
        ({"slices": 3}, "slices 3 do not divide 8 columns"),
        ({"slices": 9}, "slices is 9, not a whole number from 1 to 8"),
        ({"user_groups": 3}, "does not list group-00002.safetensors"),
        ({"user_groups": 1}, "centroids of shape .* for 1 user groups"),
        ({"user_groups": 10**9}, "user_groups is 1000000000, not a whole number from 1 to 5"),
        ({"joining": "guessed"}, "joining is 'guessed', none of fitted, mapped"),
        ({"joining": "mapped"}, "own_units is missing, or holds no floats"),
        ({"precision": "int3"}, "precision is 'int3', none of fp32"),
        ({"tables": "int4"}, "its tables are in int4, and its devices read int8"),
        ({"tables": "int8"}, "codes are not"),
        ({"tables": ["fp32"]}, "tables is"),
        ({"files": []}, "lists no files"),
        ({"files": {"a": {}}}, "lists no files"),
        ({"files": {"a": 1}}, "lists no files"),
        ({"files": {"a": {"bytes": 1}}}, "lists no files"),
        ({"files": {"a": {"bytes": True, "digest": "x"}}}, "lists no files"),
        ({"files": {"../a": {"bytes": 1, "digest": "x"}}}, f"does not list {ITEMS}"),
    ],
    ids=str,
)
def test_what_model_json_says_is_looked_at(folder, changes, why):
    changed_about(folder, **changes)
    with pytest.raises(ModelError, match=why) as events:
        use(folder)
    assert "\n" not in str(events.value)


def test_model_json_itself_has_a_digest(folder):
    about = json.loads((folder / ABOUT).read_text()) | {"package": "9.9"}
    (folder / ABOUT).write_text(json.dumps(about))
    with pytest.raises(ModelError, match=r"model\.json: its digest does not match: it was changed"):
        use(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"format": "fl-peel model"', "\x00"])
def test_what_is_no_model_json_is_one_line(folder, text):
    (folder / ABOUT).write_text(text)
    with pytest.raises(ModelError, match=r"model\.json: (cannot be read|is not of a model)"):
        fl_peel.load(folder)


def test_a_model_json_that_is_too_large_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(module, "MOST_ABOUT_BYTES", (folder / ABOUT).stat().st_size)
    fl_peel.load(folder)
    monkeypatch.setattr(module, "MOST_ABOUT_BYTES", (folder / ABOUT).stat().st_size - 1)
    with pytest.raises(ModelError, match=r"bytes are no model\.json"):
        fl_peel.load(folder)


def test_the_folder_of_the_run_names_the_right_one(folder):
    with pytest.raises(ModelError, match=r"holds no model\.json; name the folder model in it"):
        fl_peel.load(folder.parent)
    with pytest.raises(ModelError, match=r"nowhere/model\.json: no such file; name the folder model/ that a run"):
        fl_peel.load(folder.parent / "nowhere")


NAN = np.full((30, 8), np.nan, np.float32)


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        (GROUP, {"order": None}, "order is missing"),
        (GROUP, {"order": np.zeros(60, np.uint16)}, "order names a block twice, or one beyond 60"),
        (GROUP, {"order": np.arange(1, 61, dtype=np.uint16)}, "order names a block twice, or one beyond 60"),
        (GROUP, {"order": np.arange(59, dtype=np.uint16)}, "order has 59 of 60 blocks"),
        (GROUP, {"order": np.arange(60, dtype=np.int64)}, "no list of uint16"),
        (GROUP, {"order": np.arange(60, dtype=np.uint16).reshape(1, 60)}, "no list of uint16"),
        (GROUP, {"codes": None}, r"codes are not \(60, 4\) of float32"),
        (GROUP, {"codes": np.zeros((60, 3), np.float32)}, r"codes are not \(60, 4\) of float32"),
        (GROUP, {"codes": np.zeros((60, 4), np.int8)}, r"codes are not \(60, 4\) of float32"),
        (GROUP, {"codes": np.full((60, 4), np.inf, np.float32)}, "not finite"),
        (GROUP, {"scales": np.zeros(60, np.float16)}, r"scales are not \(0,\)"),
        (GROUP, {"blocks": np.array([3], np.uint16)}, r"codes are not \(1, 4\)"),
        (GROUP, {"blocks": np.array([3, 1], np.uint16)}, "its blocks are not ascending"),
        (
            GROUP,
            {"blocks": np.array([3], np.uint16), "codes": np.zeros((1, 4), np.float32)},
            "the model has no base with the others",
        ),
        (ITEMS, {"item_group": None}, "item_group is not of 30 items"),
        (ITEMS, {"item_group": np.arange(30)}, "item_group is not of 30 items"),
        (ITEMS, {"item_group": np.full(30, 2**31 - 1, np.int32)}, "its item groups are not numbered from 0 without"),
        (ITEMS, {"item_group": np.full(30, -1, np.int32)}, "its item groups are not numbered from 0 without gaps"),
        (ITEMS, {"item_group": np.ones(30, np.int32)}, "its item groups are not numbered from 0 without gaps"),
        (ITEMS, {"item_group": np.zeros((5, 6), np.int32)}, "item_group is not of 30 items"),
        (JOINING, {"item_table": NAN}, "item_table holds numbers that are not finite"),
        (JOINING, {"item_table": NAN[:, :7]}, "item_table of shape"),
        (JOINING, {"item_table": np.full((30, 8), 1e30, np.float32)}, "gives no user embedding that can be stored"),
        (JOINING, {"centroids": np.zeros(2, np.float32)}, "centroids of shape"),
        (JOINING, {"centroids": np.zeros((2, 8), np.int32)}, "centroids is missing, or holds no floats"),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(folder, name, changes, why):
    tensors = safetensors.numpy.load((folder / name).read_bytes()) | changes
    kept = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    resealed(folder, name, safetensors.numpy.save(kept))
    with pytest.raises(ModelError, match=rf"model/{name}: (.* )?{why}"):
        use(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"own": np.zeros((30, 5), np.float16)},
        {"own": np.zeros(30, np.float16)},
        {"map_units": np.full((2, 8), 1e38, np.float32)},
        {"own_units": np.zeros((2, 6), np.float32)},
        {"maps": np.zeros((2, 5, 8), np.float16)},
        {"maps": np.zeros((2, 6), np.float16)},
        {"map_units": np.zeros((1, 8), np.float32)},
        {"map_units": np.full((2, 8), np.nan, np.float32)},
        {"centroids": np.zeros((2, 7), np.float32)},
        {"centroids": np.zeros((2, 0), np.float32)},
    ],
    ids=lambda changes: "".join(f"{key} {value.shape}" for key, value in changes.items()),
)
def test_rows_and_maps_that_do_not_fit_are_one_line(tmp_path, changes):
    folder = tmp_path / "model"
    saved(folder, joining=mapped(np.random.default_rng(0), LAYOUT))
    assert use(folder)
    tensors = safetensors.numpy.load((folder / JOINING).read_bytes()) | changes
    resealed(folder, JOINING, safetensors.numpy.save(tensors))
    with pytest.raises(ModelError, match=rf"model/{JOINING}: "):
        use(folder)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", r"is no JSON \(Expecting value: line 1 column 1 \(char 0\)\)"),
        ("{", "is no JSON"),
        ("[" * 99_999, "is no JSON"),
        ("[]", "has no list of ids"),
        ("{}", "has no list of ids"),
        ('{"ids": [1]}', "has no list of ids"),
        (json.dumps({"ids": "abcdefghijklmnopqrstuvwxyz0123"}), "has no list of ids"),
        ('{"ids": ["a"]}', "has 1 different ids for 30 items"),
        (json.dumps({"ids": [*map(str, range(30)), "29"]}), "has 30 different ids for 30 items"),
    ],
)
def test_a_catalogue_that_makes_no_sense_is_one_line(folder, content, why):
    resealed(folder, CATALOGUE, content.encode())
    with pytest.raises(ModelError, match=rf"model/{CATALOGUE}: {why}"):
        use(folder)


def test_what_was_found_is_quoted_and_no_more_than_40_characters_of_it():
    files = ModelFiles(Path("model"), {"text": "x" * 50, "number": 10**60, "list": [1], "most": 7})
    assert (files.text("text"), files.number("most", 7)) == ("x" * 50, 7)
    for events, wanted in (
        (lambda: files.number("number", 7), f"number is 1{'0' * 39}, not a whole number from 1 to 7"),
        (lambda: files.text("text", "a", "b"), f"text is '{'x' * 40}', none of a, b"),
        (lambda: files.text("list"), "list is '[1]'"),
        (lambda: files.text("nothing", "a"), "nothing is 'None', none of a"),
    ):
        with pytest.raises(ModelError) as error:
            events()
        assert str(error.value) == f"model/model.json: {wanted}; save the model again, or copy all of its folder"


def test_what_libraries_say_is_cut_after_80_characters(folder, monkeypatch):
    def failing(data):
        raise ValueError("x" * 100)

    files = ModelFiles.open(folder)
    monkeypatch.setattr(module, "json", SimpleNamespace(loads=failing))
    monkeypatch.setattr(module.safetensors.numpy, "load", failing)
    with pytest.raises(ModelError, match=rf"{CATALOGUE}: is no JSON \(x{{80}}\); save"):
        files.json(CATALOGUE)
    with pytest.raises(ModelError, match=rf"{ITEMS}: holds no arrays \(x{{80}}\); save"):
        files.tensors(ITEMS)


def test_a_disk_that_fails_is_one_line(folder, monkeypatch):
    def failing(path):
        raise OSError(5, "Input/output error")

    files = ModelFiles.open(folder)
    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(ModelError, match=rf"model/{ITEMS}: cannot be read \(Input/output error\); save"):
        files.read(ITEMS)


def test_digests_are_those_that_others_compute():
    """With Python's hashlib alone; a release that digests in another way reads no model that was saved before."""
    assert digest_of(b"") == "cae66941d9efbd404e4d88758ea67670"
    text = b'{"a": "\\u00e9", "b": [1, {"c": null}]}'
    wanted = hashlib.blake2b(text, digest_size=16).hexdigest()
    assert _digest_of_about({"b": [1, {"c": None}], "a": "é", DIGEST: "anything"}) == wanted


def test_a_model_is_made_beside_its_place_and_is_for_all_to_read(tmp_path):
    folder = tmp_path / "not" / "there" / "model"
    with writing(folder, {"package": "é"}) as written:
        assert written.folder.parent == folder.parent
        assert written.folder.name.startswith(".model-")
        written.add_json("b", {"name": "é"})
        written.add("a", b"1")
        with pytest.raises(ValueError, match="not JSON compliant"):
            written.add_json("c", float("nan"))
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "b").read_bytes() == '{"name": "é"}'.encode()
    about = {
        **{"format": "fl-peel model", "version": 1, "package": "é"},
        "files": {
            "a": {"bytes": 1, "digest": digest_of(b"1")},
            "b": {"bytes": 14, "digest": digest_of('{"name": "é"}'.encode())},
        },
    }
    about["digest"] = _digest_of_about(about)
    assert (folder / ABOUT).read_bytes() == (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode()


@examples(150)
@given(
    name=st.sampled_from([CATALOGUE, ITEMS, JOINING, GROUP]),
    place=st.integers(0, 10_000),
    value=st.integers(0, 255),
    keep=st.integers(0, 10_000),
)
def test_whatever_a_file_says_it_is_read_or_one_line(fuzzed, name, place, value, keep):
    """With digests that fit, so that what is behind them is looked at, too."""
    folder, whole = fuzzed
    data = bytearray(whole[name][: max(keep, 1)] if keep < len(whole[name]) and keep % 3 == 0 else whole[name])
    data[place % len(data)] = value
    resealed(folder, name, bytes(data))
    events = ""
    try:
        use(folder)
    except FlPeelError as error:
        events = str(error)
    assert "\n" not in events
    resealed(folder, name, whole[name])


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed") / "model"
    saved(folder)
    return folder, {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_model_that_could_not_be_finished_leaves_nothing(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("mine")

    def stopped():
        with writing(tmp_path / "model", {}) as written:
            written.add("a", b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine"]


def test_a_newer_model_takes_the_place_of_an_older_one(tmp_path):
    saved(tmp_path / "model", groups=3)
    saved(tmp_path / "model", 1)
    assert fl_peel.load(tmp_path / "model").num_groups == 2
    assert not (tmp_path / "model" / "group-00002.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


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

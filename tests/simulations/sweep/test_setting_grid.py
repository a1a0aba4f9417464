"""Which settings a sweep has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_peel.errors import ScenarioError
from simulations.sweep.space import settings_of, split_values


def test_every_combination_the_last_key_fastest():
    result = settings_of(["refinement.rounds=1, 2", "selector=exposure,popularity", "blocks.precision=int4"])
    assert [one.label for one in result] == [
        *("rounds=1, selector=exposure", "rounds=1, selector=popularity"),
        *("rounds=2, selector=exposure", "rounds=2, selector=popularity"),
    ]
    assert result[1].overrides == ["blocks.precision=int4", "refinement.rounds=1", "selector=popularity"]
    assert result[1].folder == "refinement.rounds=1,selector=popularity"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2", ["1", "2"]),
        ("[1%, 5%],[10%]", ["[1%, 5%]", "[10%]"]),
        ("{kind: flat, norm: 1.0}, null", ["{kind: flat, norm: 1.0}", "null"]),
        ("'a,b',\"c,]\",d", ["'a,b'", '"c,]"', "d"]),
        ("x]y,z", ["x]y", "z"]),
        ("", [""]),
    ],
)
def test_commas_within_brackets_and_quotes_part_nothing(text, values):
    assert split_values(text) == values


def test_labels_say_whole_keys_where_last_names_are_the_same():
    (one, *_) = settings_of(["refinement.local.batch_size=1,2", "pretraining.batch_size=3,4"])
    assert one.label == "refinement.local.batch_size=1, pretraining.batch_size=3"


@given(
    st.lists(st.text(max_size=120).filter(lambda text: not set(",[]{}'\"") & set(text) and text.strip()), min_size=2)
)
def test_folders_are_told_apart_and_are_names_of_folders(values):
    texts = list(dict.fromkeys(value.strip() for value in values))
    folders = [settings_of([f"a.b={text},other one"])[0].folder for text in texts if text != "other one"]
    assert len(set(folders)) == len(folders)
    for folder in folders:
        assert len(folder.encode()) < 255
        assert not {"/", "\0"} & set(folder)
        assert folder.startswith("a.b=")


@pytest.mark.parametrize(
    ("asked", "output"),
    [
        ([], "nothing varies; give a key several values"),
        (["a=1"], "nothing varies"),
        (["a=1,1"], "nothing varies"),
        (["a"], " a: expected path=value,value"),
        (["=1,2"], "expected path=value,value"),
        (["a=1,"], "expected path=value,value"),
        (["a=1,2", "a=3"], "a is given twice; write all its values in one --set"),
        (["seed=1,2"], "seeds are not a setting; give --seed and --seeds"),
        ([f"a={','.join(map(str, range(40)))}", f"b={','.join(map(str, range(40)))}"], "more than 1000 combinations"),
    ],
)
def test_what_is_no_sweep_is_refused(asked, output):
    with pytest.raises(ScenarioError, match=f"^--set.*{output}"):
        settings_of(asked)

"""Which settings a sweep has."""

import json
import re
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from fl_peel.errors import EngineError, ScenarioError
from simulations import runner
from simulations.sweep import sweep, sweep_page, sweep_plot
from simulations.sweep_space import search, settings_of, space_of, split_values
from tests.simulations.conftest import QUICK
from tests.simulations.test_sweep import stop

pytestmark = pytest.mark.usefixtures("undrawn")


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


LOOKED_FOR = ["refinement.local.learning_rate=0.001..1(log)", "refinement.local.batch_size=2..8"]


def reached_by(space, value_of, own=None, trials=30, seed=0):
    """Settings in the order of trials, with what they reached."""
    result = []
    search(
        space,
        own or {},
        value_of,
        trials=trials,
        seed=seed,
        on_trial=lambda number, setting, value: result.append((setting, value)),
    )
    return result


def at(setting, place=0):
    return float(setting.values[place][1])


def test_it_finds_the_best_of_what_it_is_told_and_does_so_again():
    space = space_of(["x=0.001..1000(log)", "kind=good,bad"])

    def value_of(setting):
        return -abs(at(setting) - 3.0) - (setting.values[1][1] == "bad")

    result = reached_by(space, value_of, trials=60)
    best = max(result, key=lambda one: one[1])[0]
    assert 1.5 < at(best) < 6
    assert best.values[1][1] == "good"
    assert reached_by(space, value_of, trials=60) == result
    assert reached_by(space, value_of, trials=7) == result[:7]  # more trials go on behind fewer
    assert reached_by(space, value_of, trials=7, seed=1) != result[:7]


def test_what_it_is_told_decides_what_it_tries():
    space = space_of(["x=0..1"])
    up, down = (reached_by(space, lambda setting, sign=sign: sign * at(setting), trials=40) for sign in (1, -1))
    mean = [sum(at(setting) for setting, _ in result[20:]) / 20 for result in (up, down)]
    assert mean[0] > 0.7
    assert mean[1] < 0.3


@pytest.mark.parametrize(
    ("text", "own", "possible"),
    [
        ("x=1..4", 3, {"1", "2", "3", "4"}),
        ("x=8..32(step 8)", 16, {"8", "16", "24", "32"}),
        ("x=0.1..0.5(step 0.2)", 0.3, {"0.1", "0.3", "0.5"}),
        ("x=a,b", "b", {"a", "b"}),
        ("x=1..100(log)", 10, {str(value) for value in range(1, 101)}),
    ],
)
def test_values_are_those_of_the_space_and_the_scenarios_own_come_first(text, own, possible):
    result = reached_by(space_of([text]), lambda setting: 0.0, {"x": own})
    values = [setting.values[0][1] for setting, _ in result]
    assert values[0] == str(own)
    assert set(values) <= possible
    assert len(set(values)) > 1
    assert reached_by(space_of([text]), lambda setting: 0.0, {"x": "elsewhere"}) is not None


def test_numbers_have_four_digits_and_stay_within_their_range():
    result = reached_by(space_of(["x=0.123456..0.123457"]), at)
    assert all(0.123456 <= at(setting) <= 0.123457 for setting, _ in result)
    texts = [setting.values[0][1] for setting, _ in reached_by(space_of(["x=0.1..1"]), at)]
    assert max(map(len, texts)) == len("0.1234")


def test_a_space_is_read():
    space = space_of(["a.b=1%..10%", "c=2..8(step 2)", "d=[1, 2],[3]"], ["e=7"])
    assert space.varied == {
        "a.b": FloatDistribution(0.01, 0.1),
        "c": IntDistribution(2, 8, step=2),
        "d": CategoricalDistribution(("[1, 2]", "[3]")),
    }
    assert space.fixed == ("e=7",)
    edges = [setting.overrides for setting in space.edges]
    assert edges == [["e=7", "a.b=0.01", "c=2", "d=[1, 2]"], ["e=7", "a.b=0.1", "c=8", "d=[3]"]]
    assert space_of(["fleet=../a.yaml,../b.yaml"]).varied["fleet"].choices == ("../a.yaml", "../b.yaml")


@pytest.mark.parametrize(
    ("searched", "asked", "output"),
    [
        (["x"], [], "--search x: expected path=low..high"),
        (["=1..2"], [], "expected path=low..high"),
        (["x=3"], [], "one value is for --set"),
        (["x=2..1"], [], "from 2 to 1 there is no value; give the lower end first"),
        (["x=1..1"], [], "there is no value"),
        (["x=a..b"], [], "a is not a number; expected low..high"),
        (["x=0..nan"], [], "nan is not a number"),
        (["x=0..1(log)"], [], "must hold for `log=True`"),
        (["x=0..1(ln)"], [], "(ln) is unknown; known: (log), (step 8)"),
        (["x=0..9(step 0)"], [], "`step > 0` must hold"),
        (["x=0..9(step 0.5)"], [], "a whole number where the ends are"),
        (["seed=1..2"], [], "give --seed and --seeds"),
        (["x=1..2", "x=1,2"], [], "--search x: is given twice; leave one out"),
        (["x=1..2"], ["x=1"], "--search x: is given twice; leave one out"),
        (["x=1..2"], ["y=1,2"], "--set y: has several values; in a search, give them with --search"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(searched, asked, output):
    with pytest.raises(ScenarioError) as caught:
        space_of(searched, asked)
    assert output in str(caught.value)


def words(searched, changes=QUICK):
    return [word for change in changes for word in ("--set", change)] + [
        word for one in searched for word in ("--search", one)
    ]


@pytest.mark.slow
def test_a_search_is_a_sweep_that_goes_by_validation(tiny, tmp_path, command_line, made_up):
    out = tmp_path / "out"
    typed = ("sweep", tiny, *words(LOOKED_FOR), "--trials", 4, "--seed", 3, "--out", out)
    code, shown, err = command_line(*typed)
    assert code == 0, err
    plain = json.loads((out / "sweep.json").read_text())
    assert plain["search"] == LOOKED_FOR
    assert (plain["trials"], plain["seeds"]) == (4, [3])
    assert "--search 'refinement.local.learning_rate=0.001..1(log)'" in plain["command"]
    rows = plain["rows"]
    assert rows[0]["values"] == {"refinement.local.learning_rate": "0.05", "refinement.local.batch_size": "4"}
    assert len(rows) == len({row["setting"] for row in rows}) == len(made_up) > 1
    assert plain["chosen"] == max(rows, key=lambda row: row["validation"])["setting"]
    assert [one.refinement.local.learning_rate for one in made_up] == [
        float(row["values"]["refinement.local.learning_rate"]) for row in rows
    ]
    assert all((out / row["folder"] / "seeds.html").is_file() for row in rows)
    page = (out / "sweep.html").read_text()
    assert "a search over refinement.local.learning_rate, refinement.local.batch_size" in page
    assert "4 trials of a search on validation" in page
    assert (out / "sweep.svg").is_file()
    assert f"report: {out / 'sweep.html'}" in shown
    assert "search 4/4" in err or "[4/4]" in err
    assert all(f"validation {row['validation']:.4f}" in err for row in rows)

    del made_up[:]
    assert command_line(*typed)[0] == 0
    assert not made_up, "what is done is read"
    assert json.loads((out / "sweep.json").read_text()) == plain


@pytest.mark.slow
def test_a_search_goes_on_where_it_was_stopped(tiny, tmp_path, monkeypatch, made_up):
    out = tmp_path / "out"
    looked_for = {"searched": LOOKED_FOR, "trials": 3}
    whole = sweep(tiny, QUICK, out=tmp_path / "whole", **looked_for)
    settings = [one.refinement for one in made_up]
    del made_up[:]
    engine = stop(monkeypatch, lambda scenario: len(made_up) == 2)
    with pytest.raises(EngineError, match="plug"):
        sweep(tiny, QUICK, out=out, **looked_for)
    monkeypatch.setattr(runner, "simulated", engine)
    assert sweep(tiny, QUICK, out=out, **looked_for) == whole
    assert [one.refinement for one in made_up] == settings

    many = replace(
        whole, rows=tuple(replace(whole.rows[0], setting=f"number {n}", validation=n / 9) for n in range(10))
    )
    drawn = sweep_plot(many)
    assert "number 2 goes" in drawn.alt
    assert "number 1 goes" not in drawn.alt
    wide, narrow = (float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1]) for svg in (drawn.svg, drawn.narrow))
    assert narrow < wide / 1.5
    assert "By setting (the best eight on validation), with" in sweep_page(many).html()


@pytest.mark.parametrize(
    ("searched", "output"),
    [
        (["refinement.local.learning_rate=-1..1"], "refinement.local.learning_rate"),
        (["refinement.round=1..2"], "did you mean 'rounds'"),
        (["refinement.rounds=1..2", "fleet=fleet.yaml,nowhere.yaml"], "nowhere.yaml"),
        (["refinement.rounds=0..2"], "--search: needs validation recall after the last round"),
    ],
)
def test_bad_values_are_refused_before_anything_runs(tiny, tmp_path, command_line, without_engine, searched, output):
    out = tmp_path / "out"
    changes = [one for one in QUICK if not one.startswith("refinement.rounds")]
    code, _, err = command_line("sweep", tiny, *words(searched, changes), "--out", out)
    assert (code, err.count("\n")) == (2, 1), err
    assert output in err
    assert not without_engine
    assert not out.exists()


def test_trials_are_those_of_a_search(tiny, command_line):
    code, _, err = command_line("sweep", tiny, "--set", "refinement.rounds=1,2", "--trials", 3)
    assert (code, err.count("\n")) == (2, 1)
    assert "--trials: needs a search; give --search PATH=LOW..HIGH, or leave it out" in err


def test_without_optuna_one_line_says_what_to_install(tiny, tmp_path, monkeypatch, command_line, without_engine):
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = command_line("sweep", tiny, *words(LOOKED_FOR), "--out", tmp_path / "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "pip install 'fl-peel[search]'" in err
    assert not without_engine
    assert not (tmp_path / "out").exists()

"""Scenarios: every bad key or value is one line that names its place, and what is written reads back the same."""

import re

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from fl_peel.errors import ScenarioError
from fl_peel.scenario.scenario import Scenario
from simulations.engine.inputs import checked
from simulations.scenario_files import load_scenario, shipped_scenarios, validated
from tests.helpers.examples import examples
from tests.helpers.light import loaded_by

BASE = {"name": "test", "data": {"name": "ml-100k"}}


def error_of(**parts):
    with pytest.raises(ScenarioError) as caught:
        validated(Scenario, BASE | parts, "s.yaml")
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("s.yaml: ")
    return text.removeprefix("s.yaml: ")


NOISED = "privacy: {mechanism: central-gaussian, target_epsilon: 8, clipping: {kind: flat}}"
BAD = [
    ("dta: {}", "unknown key dta; did you mean 'data'?"),
    ("pretraining: {collected: {shares: 1}}", "unknown key pretraining.collected.shares; did you mean 'share'?"),
    ("refinement: {round: 3}", "unknown key refinement.round; did you mean 'rounds'?"),
    ("refinement: {aggregation: {optimiser: sgd}}", "unknown key refinement.aggregation.optimiser"),
    ("engine: {xyzzy: 3}", "unknown key engine.xyzzy; known: backend, nodes, "),
    ("seed: -1", "seed: must be 0 or more (got -1)"),
    ("seed: x", "seed: must be a whole number"),
    ("data: {}", "data: give either name (a named data set) or path (a file of your own)"),
    ("data: {name: a, format: xls}", "data.format: must be one of auto"),
    ("data: {name: a, test_share: 1}", "data.test_share: must be less than 1 (got 1)"),
    ("data: {name: a, validation_share: -0.1}", "data.validation_share: must be "),
    ("pretraining: {model: svd}", "pretraining.model: must be one of lightgcn"),
    ("pretraining: {embedding_dim: 0}", "pretraining.embedding_dim: must be 1 or more"),
    ("pretraining: {learning_rate: 0}", "pretraining.learning_rate: must be greater than 0 (got 0)"),
    ("pretraining: {learning_rate: .nan}", "pretraining.learning_rate: must be a finite number"),
    ("pretraining: {collected: {share: -1}}", "pretraining.collected.share: must be "),
    ("pretraining: {collected: {share: 0}}", "pretraining: collected.share: 0 leaves the server no interactions to"),
    ("pretraining: {source: devices}", "pretraining: source: devices needs model: spectral; lightgcn is trained on"),
    ("pretraining: {model: spectral, sum_bits: 32}", "pretraining: sum_bits applies to sums from devices"),
    ("pretraining: {model: spectral}\n" + NOISED, "pretraining.source: collected lets devices choose the filter in"),
    ("pretraining: {model: spectral, source: devices, columns: null}\n" + NOISED, "pretraining.columns: more columns"),
    ("pretraining: {model: spectral, source: devices, sum_bits: 32}\n" + NOISED, "pretraining.sum_bits has no bound"),
    ("pretraining: {collected: {mode: all}}", "pretraining.collected.mode: must be one of users"),
    ("pretraining: {collected: {share: half%}}", "pretraining.collected.share: 'half%' is not a share"),
    ("user_groups: {min_size: 0}", "user_groups.min_size: must be 1 or more (got 0)"),
    ("blocks: {precision: int2}", "blocks.precision: must be one of fp32"),
    ("blocks: {item_groups: random}", "blocks.item_groups: must be one of contiguous"),
    ("blocks: {num_slices: 3}", "blocks.num_slices: 3 does not divide pretraining.embedding_dim 64"),
    ("pretraining: {diversity_slices: 7}", "pretraining.diversity_slices: 7 does not divide"),
    ("controller: {features: []}", "controller.features: tuple should have at least 1 item"),
    ("controller: {features: [mood]}", "controller.features[0]: must be one of exposure"),
    ("controller: {hidden: [0]}", "controller.hidden[0]: must be 1 or more (got 0)"),
    ("controller: {signal_momentum: 2}", "controller.signal_momentum: must be at most 1 (got 2)"),
    ("refinement: {cohort_share: 120%}", "refinement.cohort_share: must be at most 1"),
    ("refinement: {local: {loss: hinge}}", "refinement.local.loss: must be one of bpr"),
    ("refinement: {aggregation: {optimizer: lion}}", "refinement.aggregation.optimizer: must be one of sgd"),
    ("refinement: 3", "refinement: must be a mapping of keys: rounds, "),
    ("selector: popularty", "selector: unknown selector 'popularty'; did you mean 'popularity'?"),
    ("evaluation: {selectors: [nope]}", "evaluation.selectors[0]: unknown selector 'nope'; known: controller, "),
    ("evaluation: {budgets: [0]}", "evaluation.budgets[0]: must be greater than 0 (got 0)"),
    ("evaluation: {budgets: [150%]}", "evaluation.budgets[0]: must be at most 1"),
    ("evaluation: {top_n: 0}", "evaluation.top_n: must be 1 or more (got 0)"),
    ("data: {name: a, test_path: t}", "data: test_path describes path, and a is a named data set; leave it out"),
    ("data: {name: a, format: csv}", "data: format describes path, and a is a named data set; leave it out"),
    ("data: {name: a, columns: {user: u}}", "data: columns describes path, and a is a named data set; leave it"),
    ("data: {name: a, time_zone: UTC}", "data: time_zone describes path, and a is a named data set; leave it out"),
    ("data: {path: a, columns: {user: x, item: 'x '}}", "data.columns: columns: x is given twice; leave"),
    ("data: {path: a, format: movielens-tab, columns: {user: u}}", "data: columns: format movielens-tab has"),
    ("data: {path: a, columns: {timestamp: t}}", "unknown key data.columns.timestamp; did you mean"),
    ("data: {path: a, time_zone: Europe/Berlon}", "data.time_zone: no such time zone; did you mean 'Europe/Berlin'?"),
    ("data: {path: a, time_zone: ../x}", "data.time_zone: no such time zone; give UTC, or a name like Europe/"),
    ("pretraining: {loss: bpr, num_negatives: 0}", "pretraining: num_negatives: bpr needs at least 1; 0 (all"),
    ("pretraining: {diversity_weight: 0.1, diversity_form: cosine, diversity_slices: 1}", "pretraining:"),
    ("pretraining: {diversity_weight: 0.1}", "pretraining: diversity_weight 0.1 has no effect with diversity_form"),
    ("evaluation: {budgets: [1%, 0.01]}", "evaluation: budgets: 0.01 is given twice; leave one out"),
    ("evaluation: {precisions: [int8, int8]}", "evaluation: precisions: int8 is given twice; leave one out"),
    ("evaluation: {selectors: [random, random]}", "evaluation: selectors: random is given twice; leave one out"),
    ("fairness: {exclude_below: 0.1}\nrefinement: {min_budget_share: 0.2}", "fairness.exclude_below: 0.1 is below"),
    ("controller: {features: [loss, loss]}", "controller: features: loss is given twice; leave one out"),
    ("refinement: {rounds: true}", "refinement.rounds: takes no true; give a number, or quote it where it is a text"),
    ("controller: {hidden: [8, false]}", "controller.hidden: takes no false; give a number"),
    ("evaluation: {budgets: [1e2%]}", "evaluation.budgets[0]: '1e2%' is not a share; write e.g. 1%"),
    ("evaluation: {budgets: [\u0663%]}", "evaluation.budgets[0]: '\u0663%' is not a share; write e.g. 1%"),
    ("poisoning: {target_items: [7, 8, 7]}", "poisoning: target_items: 7 is given twice; leave one out"),
    ("poisoning: {share: 0.1}\n" + NOISED, "poisoning.share: the effect of malicious devices is measured by refining"),
    ("privacy: {mechanism: laplace}", "privacy.mechanism: unknown mechanism 'laplace'; did you mean 'local-laplace'?"),
    ("privacy: {signals_norm: 1.0e+300}", "privacy.signals_norm: must be at most 1000000000"),
    ("privacy: {counts_norm: 1.0e+300}", "privacy.counts_norm: must be at most 1000000000"),
    ("privacy: {clipping: {norm: 1.0e+300}}", "privacy.clipping.norm: must be at most"),
    ("privacy: {clipping: {learning_rate: 5000}}", "privacy.clipping.learning_rate: must be at most 10 (got 5000)"),
    ("engine: {nodes: 0}", "engine.nodes: must be 1 or more (got 0)"),
    ("engine: {reply_timeout_s: -1}", "engine.reply_timeout_s: must be greater than 0 (got -1)"),
]


@pytest.mark.parametrize(("text", "line"), BAD, ids=[line[:40] for _, line in BAD])
def test_a_bad_key_or_value_is_one_line_that_names_it(text, line):
    assert error_of(**yaml.safe_load(text)).startswith(line)


def test_percentages_are_shares():
    scenario = validated(Scenario, BASE | {"evaluation": {"budgets": ["0.25%", 0.5, "100%"]}}, "s.yaml")
    assert scenario.evaluation.budgets == (0.0025, 0.5, 1.0)


def test_local_temperature_defaults_to_that_of_pretraining():
    scenario = validated(Scenario, BASE | {"pretraining": {"temperature": 0.3}}, "s.yaml")
    assert scenario.refinement.local.config(scenario.pretraining.temperature).temperature == 0.3
    own = validated(Scenario, BASE | {"refinement": {"local": {"temperature": 0.7}}}, "s.yaml")
    assert own.refinement.local.config(0.3).temperature == 0.7


@pytest.mark.parametrize("name", sorted(shipped_scenarios()))
def test_shipped_scenarios_load_and_say_what_they_ask(name):
    scenario = load_scenario(name)
    assert scenario.name == name
    assert scenario.question.endswith("?")
    assert load_scenario(shipped_scenarios()[name]) == scenario
    assert shipped_scenarios()[name].read_text().startswith("# ")
    assert checked(scenario, None), "its fleet exists"


def test_a_resolved_scenario_reads_back_the_same(tmp_path):
    scenario = load_scenario("ml-100k", ["refinement.rounds=3", "fleet=[default, phones]", "evaluation.budgets=[1%]"])
    (tmp_path / "resolved.yaml").write_text(scenario.to_yaml())
    assert load_scenario(tmp_path / "resolved.yaml") == scenario
    assert Scenario.from_json(scenario.to_json()) == scenario


@examples(30)
@example(rounds=1, learning_rate=0.1, budgets=[0.1], seed=0, question="line\x85end \u2028 \ufeff \x00 é")
@given(
    rounds=st.integers(0, 10**6),
    learning_rate=st.floats(1e-12, 1e6),
    budgets=st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=5, unique=True),
    seed=st.integers(0, 2**63),
    question=st.text(max_size=30),
)
def test_any_scenario_reads_back_the_same(rounds, learning_rate, budgets, seed, question):
    parts = {
        "seed": seed,
        "question": question,
        "refinement": {"rounds": rounds, "local": {"learning_rate": learning_rate}},
        "evaluation": {"budgets": budgets},
    }
    scenario = validated(Scenario, BASE | parts, "s.yaml")
    assert validated(Scenario, yaml.safe_load(scenario.to_yaml()), "again") == scenario
    assert Scenario.from_json(scenario.to_json()) == scenario


def test_overrides_change_one_key_and_leave_the_file_alone():
    plain = load_scenario("ml-100k")
    changed = load_scenario("ml-100k", ["refinement.local.epochs=3", "evaluation.budgets=[1%, 10%]"], seed=9)
    assert changed.refinement.local.epochs == 3
    assert changed.evaluation.budgets == (0.01, 0.1)
    assert changed.seed == 9
    assert changed.refinement.local.batch_size == plain.refinement.local.batch_size
    assert load_scenario("ml-100k") == plain


def test_the_last_override_wins_and_the_seed_option_wins_over_it():
    assert load_scenario("ml-100k", ["seed=1", "seed=2"]).seed == 2
    assert load_scenario("ml-100k", ["seed=1"], seed=3).seed == 3


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("refinement.rounds", "--set refinement.rounds: expected path=value, e.g. refinement.rounds=5"),
        ("=5", "--set =5: expected path=value"),
        ("a..b=5", "--set a..b=5: expected path=value"),
        ("refinement.rounds=[", "--set refinement.rounds=[: not valid YAML: expected the node content, but found"),
        ("data.name.x=1", "--set data.name.x=1: data.name is a value and has no keys"),
        ("refinement.roundz=1", "ml-100k: unknown key refinement.roundz; did you mean 'rounds'?"),
    ],
)
def test_a_bad_override_is_one_line(override, line):
    with pytest.raises(ScenarioError) as caught:
        load_scenario("ml-100k", [override])
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("data: [", "not valid YAML"),
        ("- a\n- b\n", "is not a mapping of keys"),
        ("", "is not a mapping of keys"),
        ("question: x\n", "data: is missing"),
        ("data: {name: ml-100k}\nseed: \xff", "seed: must be a whole number"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, text, line):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)
    assert re.match(rf"{re.escape(str(path))}(:\d+)?: {line}", str(caught.value))
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_one_line(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ScenarioError, match=r"bad\.yaml:1: is not UTF-8 text \(byte 0\); correct it"):
        load_scenario(tmp_path / "bad.yaml")


def test_a_scenario_that_is_nowhere():
    with pytest.raises(ScenarioError, match=r"^ml-10k: no such scenario or file; did you mean 'ml-100k'\? known: "):
        load_scenario("ml-10k")
    with pytest.raises(ScenarioError, match=r"^xyzzy: no such scenario or file; known: .*ml-100k"):
        load_scenario("xyzzy")


def test_a_file_without_a_name_takes_its_own(tmp_path):
    (tmp_path / "my-study.yaml").write_text("data: {name: ml-100k}")
    assert load_scenario(tmp_path / "my-study.yaml").name == "my-study"


@pytest.mark.parametrize("module", ["fl_peel.scenario", "fl_peel.scenario.method", "simulations.scenario_files"])
def test_reading_a_scenario_loads_nothing_that_computes(module):
    """Not even NumPy: what a scenario may say is known from light modules alone."""
    assert loaded_by(f"import {module}") <= {"fl_peel", "simulations"}


def test_a_walk_that_finds_nothing_would_pass_the_test_above():
    assert "numpy" in loaded_by("import fl_peel.randomness")


HOSTILE = {
    "refinement.rounds=2020-13-45": "not valid YAML: '2020-13-45' is no valid timestamp; quote it",
    "name=2020-01-01": "name: must be text (got the date 2020-01-01; quote it if it is text)",
    "seed=18446744073709551616": "seed: must be at most 18446744073709551615",
    f"a{'.b' * 3000}=1": "expected path=value",
    f"refinement.rounds={'x' * 100_000}": "must be a whole number (got 'xxxxxxxxx",
    f"refinement.{'x' * 100_000}=1": "unknown key refinement.xxxxxxxxx",
    "privacy.noise_multiplier=1e300": "noise_multiplier: must be at most 100000",
    'name="\\ud800"': "name: must be text in Unicode",
    'data={path: "\\ud800.csv"}': "data.path: must be text in Unicode",
    'data={path: "a\\0b"}': "data.path: contains the character with code 0, which file names cannot contain",
    "fleet=[]": "fleet: names 0 fleets; give 1 to 1000",
    f"fleet=[{'a' * 256}]": "a part of the path has more than 255 bytes",
    f"data={{path: {'a/' * 2048}}}": "data.path: has more than 4095 characters",
    "controller.hidden=[1000000,1000000]": "controller.hidden[0]: must be at most 4096 (got",
    f"controller.hidden=[{'4,' * 17}]": "controller.hidden: has more than 16 entries",
    "pretraining.embedding_dim=1000000": "embedding_dim: must be at most 16384 (got 1000000)",
    "refinement.rounds=1000001": "refinement.rounds: must be at most 1000000",
    "engine.nodes=4097": "engine.nodes: must be at most 4096 (got 4097)",
    f"evaluation.budgets=[{'1%,' * 1001}]": "evaluation.budgets: has more than 1000 entries",
    "data.timeline={periods: 1001}": "data.timeline.periods: must be at most 1000",
}


@pytest.mark.parametrize("override", HOSTILE, ids=lambda text: text[:40])
def test_what_would_hurt_is_one_short_line(override):
    with pytest.raises(ScenarioError) as caught:
        load_scenario("ml-100k", [override])
    assert HOSTILE[override] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700

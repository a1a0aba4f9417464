"""Shipped scenarios and fleets with something changed at random: read, or refused in one short line.

Through what the command line calls; without Ray.
"""

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from clients.fleet.fleet import SHIPPED_FOLDER, load_fleet
from fl_peel.errors import MAX_MESSAGE, FlPeelError
from fl_peel.scenario.scenario import Scenario
from simulations.cli import main as cli
from simulations.cli.console import one_line
from simulations.engine.inputs import absolute
from simulations.scenario_files import load_scenario, shipped_scenarios
from tests.helpers.examples import examples

SCENARIOS = [path.read_bytes() for path in shipped_scenarios().values()]
FLEETS = [path.read_bytes() for path in sorted(SHIPPED_FOLDER.glob("*.yaml"))]
STRANGE = [
    *("null", "~", "true", "nan", ".nan", ".inf", "-1", "0", "1e400", "1e-400", "-0.0", "''", "[]", "{}", "[[]]", "%"),
    *("2020-13-45", "2020-01-01", "!!int x", "!!bool x", "!!binary x", "!!set {a}", "!!python/name:os.system", "*a"),
    *(
        "&a [*a]",
        "<<",
        "=",
        "0x_",
        "1:60",
        "9" * 5000,
        "[" * 500,
        "x" * 5000,
        '"\\ud800"',
        '"\\0"',
        "~root",
        "/dev/zero",
    ),
    *("1" * 400, "- - -", "? a", "|", ">", "@", "`", "\t", "\ufeff", "\u2028", "99999999999999999999", "1%", "101%"),
]


@st.composite
def changed(draw, texts):
    """One of the texts, with bytes, lines and values replaced."""
    text = draw(st.sampled_from(texts))
    for _ in range(draw(st.integers(1, 4))):
        lines = text.splitlines(keepends=True) or [b""]
        place = draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(["byte", "twice", "gone", "value", "cut"]))
        if kind == "byte" and text:
            at = draw(st.integers(0, len(text) - 1))
            text = text[:at] + draw(st.binary(max_size=2)) + text[at + 1 :]
            continue
        if kind == "twice":
            lines.insert(draw(st.integers(0, len(lines))), lines[place])
        elif kind == "gone":
            del lines[place]
        elif kind == "value":
            key, colon, _ = lines[place].partition(b":")
            lines[place] = key + colon + b" " + draw(st.sampled_from(STRANGE)).encode() + b"\n"
        else:
            lines[place] = lines[place][: draw(st.integers(0, len(lines[place])))]
        text = b"".join(lines)
    return text


def refusal(read):
    """What is read, or None where it is refused as it should be."""
    try:
        return read()
    except FlPeelError as mistake:
        output, shown = str(mistake), one_line(mistake)
    assert len(output) <= MAX_MESSAGE
    assert "\n" not in shown
    return None


quick = examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(changed(SCENARIOS))
@quick
def test_a_changed_scenario_is_read_or_refused(tmp_path, text):
    (tmp_path / "x.yaml").write_bytes(text)
    scenario = refusal(lambda: absolute(load_scenario(tmp_path / "x.yaml")))
    if scenario is not None:
        assert Scenario.from_json(scenario.to_json()) == scenario
        scenario.to_yaml()


@given(
    st.sampled_from(["name", "seed", "refinement", "refinement.rounds", "fleet", "evaluation.budgets", "data.path"]),
    st.one_of(st.sampled_from(STRANGE), st.text(max_size=20)),
)
@quick
def test_any_override_is_read_or_refused(key, value):
    scenario = refusal(lambda: load_scenario("ml-100k", [f"{key}={value}"]))
    if scenario is not None:
        assert Scenario.from_json(scenario.to_json()) == scenario


@given(changed(FLEETS))
@quick
def test_a_changed_fleet_is_read_or_refused(tmp_path, text):
    (tmp_path / "x.yaml").write_bytes(text)
    fleet = refusal(lambda: load_fleet(tmp_path / "x.yaml"))
    assert fleet is None or fleet.names


@pytest.mark.parametrize("value", ["[" * 3000, '"\\ud800"', "x" * 9000])
def test_the_command_line_says_one_line(monkeypatch, capfd, value):
    monkeypatch.setattr("sys.argv", ["fl-peel", "run", "ml-100k", "--set", f"refinement.rounds={value}"])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    out, err = capfd.readouterr()
    assert (leaving.value.code, out) == (2, "")
    assert err.startswith("fl-peel: error: ")
    assert err.count("\n") == 1
    assert len(err) <= MAX_MESSAGE + 20

"""What a round releases, by hand: the one value that both sides and the masked vector are built from."""

import pytest

from fl_peel.exchange.release import GroupShape, Release, layout_of
from fl_peel.privacy.noise_plan import make_plan
from fl_peel.privacy.report import report_of
from fl_peel.scenario.scenario import Scenario
from fl_peel.secure.vector import CHECK

GROUP = GroupShape(rows=6, slices=2, dim=4, blocks=5)
NOISE = {"mechanism": "central-gaussian", "noise_multiplier": 1, "clipping": {"kind": "flat"}}
MEASURED = {"counters": "measured"}
OPEN = ["sums", "touched", "row_loss", "row_examples", "holders"]
SIGNALS = ["hits", "shown", "exposed"]
COUNTERS = ["classes", "clock", "totals"]


def scenario(**privacy):
    content = {"name": "released", "data": {"path": "pairs.csv"}, "selector": "controller", "privacy": privacy}
    return Scenario.model_validate(content)


@pytest.mark.parametrize(
    ("privacy", "parts", "withheld"),
    [
        ({}, None, False),
        ({"rows": "all-sent"}, ("updates", "signals"), True),
        ({"rows": "all-sent"} | MEASURED, ("updates", "signals"), False),
        (NOISE, ("updates", "signals"), True),
        (NOISE | {"shares": {"counts": 0.1}}, ("updates", "signals", "counts"), True),
        (NOISE | {"clipping": {"kind": "adaptive"}} | MEASURED, ("updates", "signals", "quantile"), False),
    ],
)
def test_what_is_released_and_what_is_withheld(privacy, parts, withheld):
    for signals in (True, False):
        release = Release.from_scenario(scenario(**privacy), signals=signals)
        assert release.bounded == (parts is not None)
        assert release.parts == tuple(part for part in parts or () if signals or part != "signals")
        assert release.withheld == withheld
        events = report_of(scenario(**privacy), make_plan(scenario(**privacy)), [])
        assert (events.bounded, events.withholds) == (release.bounded, release.withheld)


@pytest.mark.parametrize(
    ("privacy", "output"),
    [
        ({}, [*OPEN, *SIGNALS, *COUNTERS]),
        (NOISE, ["updates", "signals"]),
        (NOISE | MEASURED, ["updates", "signals", *COUNTERS]),
    ],
)
def test_a_masked_vector_has_words_for_that_and_no_others(privacy, output):
    def vector(signals):
        return layout_of(scenario(**privacy), num_devices=9, group=GROUP, num_classes=3, signals=signals)

    assert [field.name for field in vector(True).fields] == [*output, CHECK]
    apart = {"signals", *SIGNALS}
    assert [field.name for field in vector(False).fields] == [name for name in [*output, CHECK] if name not in apart]
    shapes = {field.name: field.shape for field in vector(True).fields}
    assert shapes.get("updates", shapes.get("sums")) == (6, 4)
    counters = {name: shape for name, shape in shapes.items() if name in COUNTERS}
    assert counters in ({}, {"classes": (3, 9), "clock": (3, 10), "totals": (5,)})

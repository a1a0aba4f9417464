"""A stage 1 by devices that is stopped goes on after its last step, and ends in the same figures."""

from __future__ import annotations

import zlib
from collections import Counter
from typing import Any

import pytest

from fl_peel import wire
from simulations.scenario_files import load_scenario
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers.loopback import LoopbackGrid, let_through
from tests.strategies.run.test_checkpoints import Stopped, figures

SPECTRAL = (
    *("pretraining.model=spectral", "pretraining.columns=8", "pretraining.passes=2", "selector=exposure"),
    *("refinement.rounds=1", "elasticity={rounds: 0, falls: []}", "fairness.tiers=[]", "data.validation_share=20%"),
)
BY_DEVICES = (*SPECTRAL, "pretraining.source=devices")
NOISE = (
    *("privacy.mechanism=central-gaussian", "privacy.noise_multiplier=0.1", "privacy.clipping.kind=flat"),
    *("privacy.delta=1e-2", "refinement.sampling=poisson", "pretraining.collected.share=0"),
)
STOPPED_AT = ("pass", "choice", "moments")
KINDS = {
    "collected": SPECTRAL,
    "refit": (*BY_DEVICES, "data.refit=true", "refinement.rounds=0"),
    "noised": (*BY_DEVICES, *NOISE),
    "masked": (
        *BY_DEVICES,
        "secure_aggregation.enabled=true",
        "secure_aggregation.min_devices=4",
        "secure_aggregation.neighbours=4",
    ),
}
ASKED = {wire.STEP: wire.StepRequest, wire.SECURE_STEP: wire.SecureStepRequest}


def asked(message: Any) -> str:
    """Which step of stage 1 a message begins; "" for another."""
    kind = ASKED.get(message.metadata.message_type)
    if kind is None:
        return ""
    request = wire.unpack(kind, message.content)
    return f"{request.step.question.name} at {request.time} of {zlib.crc32(request.setting.scenario.encode())}"


def served(scenario: Any, run_dir: Any, kept: Any, *, stop_at: str = "") -> tuple[Any, Counter[str]]:
    """The result, None if it was stopped at a step, and how often nodes were asked for each."""
    steps: Counter[str] = Counter()

    def interfere(partition: int, message: Any) -> Any:
        step = asked(message)
        if step:
            if step == stop_at:
                raise Stopped
            steps[step] += 1
        return let_through(partition, message)

    try:
        return serve(LoopbackGrid(2, interfere), scenario, RunPaths("", str(run_dir), "", str(kept))), steps
    except Stopped:
        return None, steps


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_steps_that_are_done_are_not_asked_for_again(kind, tiny, tmp_path):
    """A run that is stopped at the last step of each kind, and every time goes on from where it was stopped before."""
    scenario = load_scenario(tiny, KINDS[kind])
    whole, steps = served(scenario, tmp_path / "whole", "")
    order = list(steps)
    last = {step.partition(" ")[0]: step for step in order}
    kept = tmp_path / "kept"
    asked: Counter[str] = Counter()
    for stop_at in sorted((last[name] for name in STOPPED_AT if name in last), key=order.index):
        stopped, before = served(scenario, tmp_path / f"stopped-{order.index(stop_at)}", kept, stop_at=stop_at)
        assert stopped is None
        assert not before.keys() & asked.keys(), f"stopped at {stop_at}: asked again"
        asked += before
    result, after = served(scenario, tmp_path / "again", kept)
    assert figures(result) == figures(whole)
    assert not after.keys() & asked.keys(), "asked again"
    assert (asked | after).keys() == steps.keys()
    assert not list(kept.glob("step-*")), "gone with the stage"

"""Every request served, options settled on validation, the chosen one measured on the test, once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fl_peel.events import Event
from strategies.rivals.base import NOTHING_FITS, ListOption, Material, Option, Request, Rival
from strategies.rivals.quality import device_quality, quality, replicates


def compete(rival: Rival, material: Material, requests: Sequence[Request]) -> list[dict[str, Any]]:
    """Serve every request, choose among options on validation, and measure the chosen one on the test, once.

    Returns a row per request: precision, share, budget_bytes, stored_bytes_max, validation, test, seconds, note;
    trials, the settings that were looked at on validation; and the test figures in the replicates of a bootstrap.
    """
    best: dict[Request, tuple[dict[str, float], Option | ListOption]] = {}
    seconds = dict.fromkeys(requests, 0.0)
    trials = dict.fromkeys(requests, 0)
    rows: dict[Request, dict[str, Any]] = {}
    for done, option in enumerate(rival.options(material, requests), start=1):
        request = option.request
        assert int(option.stored.max(initial=0)) <= request.budget_bytes, f"{rival.name}: above the budget"
        seconds[request] += option.seconds
        trials[request] += option.trials
        validation = quality(option, material, "validation")
        if request not in best or validation["recall@20"] > best[request][0]["recall@20"]:
            best[request] = (validation, option)
        material.on_event(Event(rival.name, min(done, len(requests)), len(requests), _text(option, validation)))
    for request in requests:
        start = time.perf_counter()
        if request in best:
            validation, option = best[request]
            on_test = device_quality(option, material, "test")
            rows[request] = _row(request, int(option.stored.max(initial=0)), seconds[request], option.label) | {
                "trials": trials[request],
                "validation": validation,
                "test": on_test.mean(),
                "replicates": replicates(on_test),
                "evaluation_seconds": time.perf_counter() - start,
            }
        else:
            rows[request] = empty_row(request, rival.why_nothing(material))
    material.on_event(Event(rival.name, len(requests), len(requests), ""))
    return [rows[request] for request in requests]


def _text(option: Option | ListOption, validation: dict[str, float]) -> str:
    recall = validation["recall@20"]
    return f"{option.request.precision}, {option.request.share:.3%}: validation recall@20 {recall:.4f} {option.label}"


def empty_row(request: Request, note: str = NOTHING_FITS) -> dict[str, Any]:
    """The row of a budget that can serve nothing."""
    nothing = {"recall@20": 0.0, "ndcg@20": 0.0}
    measured = {"validation": nothing, "test": nothing, "evaluation_seconds": 0.0}
    return _row(request, 0, 0.0, note) | {"trials": 0, **measured}


def _row(request: Request, stored: int, seconds: float, note: str) -> dict[str, Any]:
    return {
        "precision": request.precision,
        "share": request.share,
        "budget_bytes": request.budget_bytes,
        "stored_bytes_max": stored,
        "seconds": seconds,
        "note": note,
    }

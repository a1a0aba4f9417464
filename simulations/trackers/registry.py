"""Trackers by name, as `fl-peel run --track NAME=PLACE` has them; cheap to import."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from fl_peel.errors import FieldError, ScenarioError
from fl_peel.events import Callback, Event, OnEvent, plain_name
from fl_peel.plugins import Registry
from fl_peel.scenario.scenario import Scenario

if TYPE_CHECKING:
    from strategies.figures.schema import RunResult

TRACKERS: Registry[Callable[[str], Callback]] = Registry(
    "tracker",
    "fl_peel.trackers",
    MappingProxyType(
        {"tensorboard": "simulations.trackers.shipped:TensorBoard", "mlflow": "simulations.trackers.shipped:MLflow"}
    ),
)
"""Each is called with the place that its name is followed by."""


def trackers(asked: Iterable[str]) -> list[Callback]:
    """A callback for each ``NAME=PLACE``.

    Raises:
        ScenarioError: no such tracker, or no place.
        MissingExtraError: its package is not installed.
        FlPeelError: it cannot write there.
    """
    return [kind(place) for kind, place in tracker_kinds(asked)]


def tracker_kinds(asked: Iterable[str]) -> list[tuple[Callable[[str], Callback], str]]:
    """Return what makes the callback, and its place, for each ``NAME=PLACE``; nothing is made or written yet.

    Raises:
        ScenarioError: no such tracker, or no place.
    """
    kinds = []
    for text in asked:
        name, _, place = text.partition("=")
        if not name.strip() or not place.strip():
            raise ScenarioError(f"--track {text}: expected NAME=PLACE, e.g. tensorboard=out/tensorboard")
        try:
            kind = TRACKERS.get(name.strip())
        except FieldError as error:
            raise ScenarioError(f"--track {text}: {error}") from None
        kinds.append((kind, place.strip()))
    return kinds


# ---- Callbacks of a run: they get its events, and never stop it


logger = logging.getLogger("fl_peel")

Figures = TypeVar("Figures")


@dataclass
class CallbackGroup:
    """The callbacks that get the same events; one that fails gets no more."""

    callbacks: Iterable[Callback]
    _active: list[Callback] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._active = list(self.callbacks)

    def tell(self, what: Callable[[Callback], None]) -> None:
        """Tell each of them something."""
        for callback in list(self._active):
            try:
                what(callback)
            except Exception as error:
                self._active.remove(callback)
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                name = type(callback).__name__
                logger.warning(
                    "%s failed (%s) and receives no further events of this run, which continues", name, reason
                )

    def event(self, event: Event) -> None:
        """Tell each of them an event."""
        self.tell(lambda callback: callback.on_event(event))


def watched(
    work: Callable[[OnEvent], Figures],
    scenario: Scenario,
    callbacks: Iterable[Callback],
    on_event: OnEvent,
    to_figures: Callable[[Figures], Mapping[str, Any]],
    last: Callable[[Figures], Mapping[str, float]],
) -> Figures:
    """Return the result of ``work``, whose events callbacks and ``on_event`` get.

    A run begins with its first event: one that is refused before leaves no trace in any tracker. to_figures: the result
    as callbacks get it; last: figures of it that no event has told, told as those of a last one.
    """
    watchers, started = CallbackGroup(callbacks), False

    def on_work_event(event: Event) -> None:
        nonlocal started
        on_event(event)
        if not started:
            started = True
            watchers.tell(lambda callback: callback.on_start(scenario))
        watchers.event(event)

    try:
        result = work(on_work_event)
    except BaseException as error:
        stopped = error
        if started:
            watchers.tell(lambda callback: callback.on_error(stopped))
        raise
    watchers.event(Event("report", 1, 1, figures=last(result)))
    watchers.tell(lambda callback: callback.on_end(to_figures(result)))
    return result


def figures_on_test(result: RunResult) -> dict[str, float]:
    """Recall and NDCG of every budget and full table, by their names in events: ``test/recall_at_20/1pct``, where the
    precision and selector are not the scenario's own ``1pct_fp16_popularity``, and ``test/ndcg_at_20/full_refined``.
    """
    from simulations.report.table_view import format_share

    own, figures = (result.scenario["blocks"]["precision"], result.scenario["selector"]), {}
    for row in result.figures:
        metric, _, top_n = row.name.partition("@")
        if row.part == "budgets" and metric in ("recall", "ndcg"):
            share, kind = format_share(row.where["budget_share"]), (row.where["precision"], row.where["selector"])
            name = plain_name(share if kind == own else "_".join((plain_name(share), *kind)))
        elif row.part == f"full_table.{row.where.get('table')}" and metric in ("recall", "ndcg"):
            name = f"full_{row.where['table']}"
        else:
            continue
        figures[f"test/{metric}_at_{top_n}/{name}"] = row.value
    return figures

"""Trackers of runs by name, as `fl-peel run --track NAME=PLACE` has them: TensorBoard, MLflow (extras of these names),
and what installed packages add; cheap to import.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from fl_peel.errors import FieldError, ScenarioError, shortened
from fl_peel.events import Callback, Event, OnEvent, plain_name
from fl_peel.json_codec import laid_flat
from fl_peel.packages import optional
from fl_peel.plugins import Registry
from fl_peel.scenario.scenario import Scenario
from simulations.engine.inputs import check_out

if TYPE_CHECKING:
    from strategies.figures.schema import RunResult

TRACKERS: Registry[Callable[[str], Callback]] = Registry(
    "tracker",
    "fl_peel.trackers",
    MappingProxyType({"tensorboard": "simulations.trackers:TensorBoard", "mlflow": "simulations.trackers:MLflow"}),
)
"""Each is called with the place that its name is followed by."""


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
    active, started = list(callbacks), False

    def tell(what: Callable[[Callback], None]) -> None:
        """Tell each callback something; one that fails gets no more."""
        for callback in list(active):
            try:
                what(callback)
            except Exception as error:
                active.remove(callback)
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                name = type(callback).__name__
                logger.warning(
                    "%s failed (%s) and receives no further events of this run, which continues", name, reason
                )

    def on_work_event(event: Event) -> None:
        nonlocal started
        on_event(event)
        if not started:
            started = True
            tell(lambda callback: callback.on_start(scenario))
        tell(lambda callback: callback.on_event(event))

    try:
        result = work(on_work_event)
    except BaseException as error:
        stopped = error
        if started:
            tell(lambda callback: callback.on_error(stopped))
        raise
    tell(lambda callback: callback.on_event(Event("report", 1, 1, figures=last(result))))
    tell(lambda callback: callback.on_end(to_figures(result)))
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


EXPERIMENT = "fl-peel"
MAX_VALUE = 500
"""Characters of a parameter, which every MLflow accepts."""
MAX_PARAMETERS = 100
"""Largest number of parameters in one message, which every MLflow accepts."""


class MLflow(Callback):
    """Figures as metrics, scenario keys as parameters, the report as an artifact.

    place: a folder of MLflow's file store, or the address of a server or database, with ``://``.
    """

    def __init__(self, place: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a simulation reports to nobody
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 wants to be told so
        what = "the tracker 'mlflow'"
        optional("mlflow", "mlflow", what)
        self._entities = optional("mlflow.entities", "mlflow", what)
        uri = place
        if "://" not in place:
            check_out(Path(place), "--track mlflow=")
            uri = Path(place).resolve().as_uri()
        self._client: Any = optional("mlflow.tracking", "mlflow", what).MlflowClient(tracking_uri=uri)
        self._run = ""

    def on_start(self, scenario: Scenario) -> None:
        """Begin a run, with the scenario's keys."""
        existing = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = existing.experiment_id if existing else self._client.create_experiment(EXPERIMENT)
        name = f"{scenario.name}-seed-{scenario.seed}"
        self._run = self._client.create_run(experiment, run_name=name).info.run_id
        parameters = [
            self._entities.Param(key, shortened(value if isinstance(value, str) else json.dumps(value), MAX_VALUE))
            for key, value in laid_flat(scenario.model_dump(mode="json")).items()
        ]
        for begin in range(0, len(parameters), MAX_PARAMETERS):
            self._client.log_batch(self._run, params=parameters[begin : begin + MAX_PARAMETERS])

    def on_event(self, event: Event) -> None:
        for name, value in event.figures.items():
            self._client.log_metric(self._run, name, value, step=event.step)

    def on_end(self, result: Mapping[str, Any]) -> None:
        self._client.log_text(self._run, json.dumps(dict(result), indent=2), "report.json")
        self._client.set_terminated(self._run, "FINISHED")

    def on_error(self, error: BaseException) -> None:
        self._client.set_tag(self._run, "error", shortened(f"{type(error).__name__}: {error}", MAX_VALUE))
        self._client.set_terminated(self._run, "FAILED" if isinstance(error, Exception) else "KILLED")


# ---- TensorBoard: every run a folder of event files within the folder given (extra ``tensorboard``)


class TensorBoard(Callback):
    """Figures as scalars, the scenario as text. place: a folder; each run gets one of its own there."""

    def __init__(self, place: str) -> None:
        self._kind = optional("torch.utils.tensorboard", "tensorboard", "the tracker 'tensorboard'").SummaryWriter
        self._folder = Path(place)
        check_out(self._folder, "--track tensorboard=")
        self._writer: Any = None

    def on_start(self, scenario: Scenario) -> None:
        """Begin a folder of event files."""
        self._writer = self._kind(
            log_dir=str(_free(self._folder / plain_name(f"{scenario.name}-seed-{scenario.seed}")))
        )
        self._writer.add_text("scenario", f"```yaml\n{scenario.to_yaml()}```")

    def on_event(self, event: Event) -> None:
        """Write its figures; what has been written can be looked at while the run goes on."""
        for name, value in event.figures.items():
            self._writer.add_scalar(name, value, event.step)
        if event.figures:
            self._writer.flush()

    def on_end(self, result: Mapping[str, Any]) -> None:
        self._writer.close()

    def on_error(self, error: BaseException) -> None:
        self._writer.add_text("error", f"{type(error).__name__}: {error}")
        self._writer.close()


def _free(folder: Path) -> Path:
    """The folder, or the first of ``folder-2`` and so on that is not there: runs are not mixed."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free

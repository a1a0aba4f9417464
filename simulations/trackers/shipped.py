"""Trackers that ship.

MLflow: every run a run of the experiment ``fl-peel`` (extra ``mlflow``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_peel.errors import shortened
from fl_peel.events import Callback, Event, plain_name
from fl_peel.json_codec import laid_flat
from fl_peel.lazy_imports import optional
from fl_peel.scenario.scenario import Scenario
from simulations.engine.inputs import check_out

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
        """Write its figures."""
        for name, value in event.figures.items():
            self._client.log_metric(self._run, name, value, step=event.step)

    def on_end(self, result: Mapping[str, Any]) -> None:
        """Add the report."""
        self._client.log_text(self._run, json.dumps(dict(result), indent=2), "report.json")
        self._client.set_terminated(self._run, "FINISHED")

    def on_error(self, error: BaseException) -> None:
        """Mark the run as over."""
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
        """Finish the files: all is written."""
        self._writer.close()

    def on_error(self, error: BaseException) -> None:
        """Write the error, and keep what is written."""
        self._writer.add_text("error", f"{type(error).__name__}: {error}")
        self._writer.close()


def _free(folder: Path) -> Path:
    """The folder, or the first of ``folder-2`` and so on that is not there: runs are not mixed."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free

"""TensorBoard: every run a folder of event files within the folder given (extra ``tensorboard``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_peel.callbacks import Callback
from fl_peel.events import Event, plain_name
from fl_peel.lazy_imports import optional
from fl_peel.scenario.scenario import Scenario
from simulations.engine.inputs import check_out


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


__all__ = ["TensorBoard"]

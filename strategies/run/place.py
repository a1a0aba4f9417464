"""Where a run finds and leaves things, and what its stages take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Place:
    """Where a run finds and leaves things. data_dir: data sets ("" for the default places); run_dir: devices' state;
    cache_dir: pretrained tables ("" keeps none); kept_dir: what is done of a run that may be stopped (likewise);
    model_dir: the model that serves new devices (likewise).
    """

    data_dir: str
    run_dir: str
    cache_dir: str = ""
    kept_dir: str = ""
    model_dir: str = ""


@dataclass
class Stages:
    """Wall seconds of each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

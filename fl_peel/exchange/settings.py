"""Contents and statistics of installed packages, by name. Imports nothing: a scenario's keys are read with it."""

from __future__ import annotations

from typing import Any

from fl_peel.errors import FieldError
from fl_peel.plugins import Registry, did_you_mean

DEVICE_CONTENTS: Registry[Any] = Registry("device contents", "fl_peel.device_contents")
SERVER_CONTENTS: Registry[Any] = Registry("server contents", "fl_peel.server_contents")
STATISTICS: Registry[Any] = Registry("statistic", "fl_peel.statistics")


def check_contents(name: str | None) -> str | None:
    """The name itself, or None.

    Raises:
        FieldError: neither device nor server contents have this name, or one of them is claimed twice.
    """
    if name is None:
        return None
    known = [registry for registry in (DEVICE_CONTENTS, SERVER_CONTENTS) if name in registry.added()]
    if not known:
        names = sorted({*DEVICE_CONTENTS.added(), *SERVER_CONTENTS.added()})
        raise FieldError(f"unknown contents {name!r}; {did_you_mean(name, names)}")
    for registry in known:
        registry.check(name)
    return name


__all__ = ["DEVICE_CONTENTS", "SERVER_CONTENTS", "STATISTICS", "check_contents"]

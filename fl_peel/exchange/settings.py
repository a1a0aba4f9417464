"""Contents and statistics of installed packages, by name. Imports nothing: a scenario's keys are read with it."""

from __future__ import annotations

from typing import Any

from fl_peel.errors import FieldError, ScenarioError
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


def named_contents(
    name: str | None, registry: Registry[Any], kind: type[Any], held: type[Any], *, sums_only: bool
) -> type[Any] | None:
    """The class that a scenario's ``refinement.contents`` names; None where it names none of this registry.

    held: the kind that keeps what ``privacy.*`` releases, and that is asked for where sums alone are released.

    Raises:
        ScenarioError: what is registered is none, or does not keep the privacy that the scenario asks for.
    """
    if name is None or name not in registry.added():
        return None
    try:
        found = registry.get(name)
    except FieldError as error:
        raise ScenarioError(f"refinement.contents: {error}") from None
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ScenarioError(f"refinement.contents: {name!r} is no {kind.__name__}; subclass it")
    if sums_only and not issubclass(found, held):
        raise ScenarioError(
            f"refinement.contents: {name!r} is not held to what privacy.* releases; subclass "
            f"{held.__name__}, or leave privacy.mechanism and privacy.rows as they are"
        )
    return found


__all__ = ["DEVICE_CONTENTS", "SERVER_CONTENTS", "STATISTICS", "check_contents", "named_contents"]

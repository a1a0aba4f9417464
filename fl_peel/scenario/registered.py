"""Mechanisms, statistics and contributions by name, those of installed packages too. Imports no NumPy: the scenario's
keys are read with it.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from fl_peel.errors import FieldError, ScenarioError
from fl_peel.plugins import Registry, did_you_mean

LARGEST_MULTIPLIER = 1e5
"""Noise beyond this leaves nothing: a target that asks for more cannot be met."""
NO_MECHANISM = "none"
"""The name that stands for no noise at all."""

MECHANISMS: Registry[Any] = Registry(
    "mechanism",
    "fl_peel.mechanisms",
    MappingProxyType(
        {
            "central-gaussian": "fl_peel.privacy.mechanisms:CentralGaussian",
            "local-gaussian": "fl_peel.privacy.mechanisms:LocalGaussian",
            "local-laplace": "fl_peel.privacy.mechanisms:LocalLaplace",
        }
    ),
    reserved=(NO_MECHANISM,),
)
"""Subclasses of :class:`fl_peel.privacy.mechanisms.Mechanism`: the values of ``privacy.mechanism``."""


DEVICE_CONTENTS: Registry[Any] = Registry("device contribution", "fl_peel.device_contents")
SERVER_CONTENTS: Registry[Any] = Registry("server contribution", "fl_peel.server_contents")
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
        raise FieldError(f"unknown contribution {name!r}; {did_you_mean(name, names)}")
    for registry in known:
        registry.check(name)
    return name


def contents_kind(
    scenario: Any,
    registry: Registry[Any],
    kind: type[Any],
    open_kind: type[Any],
    bounded_kind: type[Any],
    bucketed_kind: type[Any],
) -> type[Any]:
    """Return the class that a scenario's ``refinement.contribution`` names or, where this registry does not have it,
    that its other keys ask for. kind: the base class; bounded_kind: keeps what ``privacy.*`` releases, where sums alone
    are released; bucketed_kind: knows sub-cohorts, where ``refinement.aggregation.robust`` has any; open_kind: any
    other.

    Raises:
        ScenarioError: what is registered is none, or does not keep the privacy or know the sub-cohorts
            that the scenario asks for.
    """
    name, robust = scenario.refinement.contribution, scenario.refinement.aggregation.robust
    bounded = scenario.privacy.sums_only
    if name is None or name not in registry.added():
        if bounded:
            return bounded_kind
        return bucketed_kind if robust.in_buckets else open_kind
    try:
        contents = registry.get(name)
    except FieldError as error:
        raise ScenarioError(f"refinement.contribution: {error}") from None
    if not (isinstance(contents, type) and issubclass(contents, kind)):
        raise ScenarioError(f"refinement.contribution: {name!r} is no {kind.__name__}; subclass it")
    if bounded and not issubclass(contents, bounded_kind):
        raise ScenarioError(
            f"refinement.contribution: {name!r} is not held to what privacy.* releases; subclass "
            f"{bounded_kind.__name__}, or leave privacy.mechanism and privacy.rows as they are"
        )
    if robust.in_buckets and not issubclass(contents, bucketed_kind):
        raise ScenarioError(
            f"refinement.contribution: {name!r} does not support sub-cohorts, which "
            f"refinement.aggregation.robust.rule: {robust.rule} needs; subclass {bucketed_kind.__name__}, or set mean"
        )
    return contents

"""The methods of a comparison that need no federation: who competes, at which precisions, and what is looked up to."""

from __future__ import annotations

from collections.abc import Iterable

from fl_peel.blocks.settings import Precision
from fl_peel.errors import ScenarioError
from strategies.rivals.base import Rival
from strategies.rivals.groups import PerGroup
from strategies.rivals.hashing import Hashing
from strategies.rivals.pep import Pep
from strategies.rivals.quantized import ProductQuantization
from strategies.rivals.rule import Rule
from strategies.rivals.server import CachedList, Ease, ItemNeighbours
from strategies.rivals.table_rivals import FixedTiers, MagnitudePruning, SmallerDimension, TruncatedSvd

DENSE: tuple[Precision, ...] = ("fp32", "int8", "int4")
SPARSE: tuple[Precision, ...] = ("fp16", "int8", "int4")
SMALL: tuple[Precision, ...] = ("int8", "int4")
BOOKS: tuple[Precision, ...] = ("fp16", "int8")
"""Precisions of codebooks; where groups have their own, int8 alone, which halves the time."""

RIVALS: tuple[tuple[Rival, tuple[Precision, ...]], ...] = (
    (SmallerDimension(), DENSE),
    (TruncatedSvd(), DENSE),
    (PerGroup("truncated-svd-groups", (TruncatedSvd(closest=("plain",)), TruncatedSvd(closest=("by scores",)))), DENSE),
    (MagnitudePruning(), SPARSE),
    (PerGroup("magnitude-pruning-groups", (MagnitudePruning(),)), SPARSE),
    (Pep(), SPARSE),
    (ProductQuantization(), BOOKS),
    (PerGroup("product-quantization-groups", ProductQuantization().settings()), ("int8",)),
    (Hashing(), SMALL),
    (FixedTiers(), DENSE),
    (Rule(), DENSE),
    (CachedList(), ("fp32",)),
)
"""Rivals under every budget, and the precisions each is tried at."""
CEILINGS: tuple[Rival, ...] = (Ease(), ItemNeighbours())
"""Methods of a server that knows no budget: measured once."""


def some(names: Iterable[str]) -> tuple[tuple[tuple[Rival, tuple[Precision, ...]], ...], tuple[Rival, ...]]:
    """Return the members of ``RIVALS`` and of ``CEILINGS`` that have these names.

    Raises:
        ScenarioError: a name that none of them has.
    """
    wanted = set(names)
    known = [rival.name for rival, _ in RIVALS] + [ceiling.name for ceiling in CEILINGS]
    if strange := sorted(wanted - set(known)):
        raise ScenarioError(f"--rivals: unknown {', '.join(strange)}; choose from {', '.join(known)}")
    return (
        tuple(one for one in RIVALS if one[0].name in wanted),
        tuple(one for one in CEILINGS if one.name in wanted),
    )


def modules_of(rival: Rival) -> tuple[str, ...]:
    """Modules that a rival's stage enters: its own, and those of the rivals that it makes for every user group."""
    inside = rival.settings if isinstance(rival, PerGroup) else ()
    return tuple(dict.fromkeys(type(one).__module__ for one in (rival, *inside)))

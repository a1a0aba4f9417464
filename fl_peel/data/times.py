"""Times of interactions as text: seconds since 1970, or ISO 8601 -> whole seconds.

A time without an offset means something only in a zone, which the user names: it is never guessed.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fl_peel.data.settings import ZONE_UTC
from fl_peel.errors import DataError
from fl_peel.safe_yaml import kind_of

MAX_TIME = 2.0**63
REMEDY = "set data.time_zone to UTC, or to a name like Europe/Berlin"
_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_CLOCK = r"[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]+)?)?"
_OFFSET = r"(?:Z|[+-][0-9]{2}(?::?[0-9]{2})?)"
_ISO = rf"^{_DATE}(?:{_CLOCK}{_OFFSET}?)?$"
_ZONED = rf"^{_DATE}{_CLOCK}{_OFFSET}$"
_FRACTION = r"[.,][0-9]+"
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def seconds_of(texts: Any, zone: str | None) -> NDArray[np.int64]:
    """Whole seconds of (N,) texts, N > 0, which are all numbers or all ISO 8601; fractions are rounded down.

    zone: of times without an offset. Where clocks go through an hour twice, it is the first time.

    Raises:
        ValueError: one of them is neither, is of the other kind than the first, out of range, lacks a zone, or is
            skipped by the clocks of its zone.
    """
    if not is_date(texts[0].as_py() or ""):
        return _numbers(texts)
    if not pc.all(pc.match_substring_regex(texts, _ISO)).as_py():
        raise ValueError("not all times are ISO 8601")
    zoned = pc.match_substring_regex(texts, _ZONED)
    whole = pc.replace_substring_regex(texts, _FRACTION, "")
    if pc.all(zoned).as_py():
        return _as_numpy(pc.cast(whole, pa.timestamp("s", ZONE_UTC)))
    local = local_seconds(pc.cast(whole.filter(pc.invert(zoned)), pa.timestamp("s")), zone)
    seconds = np.empty(len(texts), np.int64)
    is_zoned = zoned.to_numpy(zero_copy_only=False)
    seconds[~is_zoned] = local
    seconds[is_zoned] = _as_numpy(pc.cast(whole.filter(zoned), pa.timestamp("s", ZONE_UTC)))
    return seconds


def local_seconds(local: Any, zone: str | None) -> NDArray[np.int64]:
    """Seconds since 1970 of (N,) Arrow timestamps[s] that clocks of a zone showed.

    Raises:
        ValueError: no zone, or clocks of the zone skipped one of them.
        DataError: the machine has no such zone.
    """
    if zone is None:
        raise ValueError(f"has no time zone; {REMEDY}")
    if zone == ZONE_UTC:
        return _as_numpy(local)
    try:
        return _as_numpy(pc.assume_timezone(local, zone, ambiguous="earliest"))
    except pa.ArrowInvalid as error:
        if "Cannot locate" in str(error):
            raise DataError(f"data.time_zone: Arrow finds no {zone}; install the system's tzdata") from error
        raise


def whole_seconds(times: NDArray[np.floating]) -> NDArray[np.int64]:
    """Round (N,) times down to whole seconds; ValueError where one is not finite or does not fit."""
    if not (np.abs(times) < MAX_TIME).all():  # false for NaN too
        raise ValueError("a timestamp is not a number or out of range")
    seconds: NDArray[np.int64] = np.floor(times).astype(np.int64)
    return seconds


def is_date(text: str) -> bool:
    """Whether a text looks like ISO 8601."""
    return re.fullmatch(_ISO, text) is not None


def time_fault(text: str, zone: str | None, *, dates: bool) -> str | None:
    """What is wrong with one of the texts, with the remedy, or None. dates: whether the first of them was one."""
    if not is_date(text):
        fault = number_fault(text, limit=MAX_TIME)
        if fault is None and dates:
            return f"is {kind_of(text)}, and times before it are dates; write all of them one way"
        return fault and fault.replace("not a number", "not a number of seconds or a time like 2026-03-01T09:30:00Z")
    if not dates:
        return f"is {text}, and times before it are numbers; write all of them one way"
    try:
        seconds_of(pa.array([text]), zone)
    except ValueError:
        if zone is None and not re.fullmatch(_ZONED, text):
            return f"is {text}, without a time zone; {REMEDY}, or write its offset"
        if zone not in (None, ZONE_UTC) and _skipped(text, zone):
            return f"is {text}, which clocks in {zone} skipped; correct it, or write its offset"
        return f"is {text}, which is no date of the calendar; correct or remove the line"
    return None


def number_fault(text: str, *, limit: float = math.inf) -> str | None:
    """What is wrong with a number, with the remedy, or None. limit: of its size."""
    text = text.strip(" ")
    if not _NUMBER.fullmatch(text):
        return f"is {kind_of(text)}, not a number; correct or remove the line"
    if not abs(float(text)) < limit:
        return f"is {kind_of(text)}, out of range; correct or remove the line"
    return None


def _numbers(texts: Any) -> NDArray[np.int64]:
    try:
        return _as_numpy(pc.cast(texts, pa.int64()))
    except pa.ArrowInvalid:
        return whole_seconds(pc.cast(texts, pa.float64()).to_numpy(zero_copy_only=False))


def _skipped(text: str, zone: str) -> bool:
    """Whether clocks never showed this time: there and back again it is another one."""
    try:
        local = datetime.fromisoformat(re.sub(_FRACTION, "", text))
        back = local.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC).astimezone(ZoneInfo(zone))
    except (ValueError, OverflowError):
        return False
    return back.replace(tzinfo=None) != local


def _as_numpy(column: Any) -> NDArray[np.int64]:
    return np.asarray(pc.cast(column, pa.int64()).to_numpy(zero_copy_only=False))

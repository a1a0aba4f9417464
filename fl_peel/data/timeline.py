"""Times of interactions, and periods of a timeline.

A time without an offset means something only in a zone, which the user names: it is never guessed.

Users and items are numbered as they first appear, so that whoever and whatever is there before a period has the first
numbers: nothing of what comes later, not even that it will, is in the splits of a period (:meth:`Timeline.splits`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fl_peel.data.interactions import FloatArray, IntArray, Interactions, Splits, UserItems
from fl_peel.errors import DataError
from fl_peel.problems import kind_of
from fl_peel.scenario.settings import ZONE_UTC, Phase

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


SECONDS_PER_DAY = 86_400


QUARTERS = 4
"""Parts of a period in which uses are counted apart, so that later ones can count more."""


@dataclass(frozen=True)
class Timeline:
    """All interactions, oldest first. users, items: (N,) numbered by first appearance; times: (N,) seconds; edges:
    (P + 1,) of periods, as places: the first begins at ``edges[0]``, and what is before is the past; before: (2,)
    places at which the two periods before the first one would begin: what is chosen on, and what was recent then.
    leaving: periods in which a user who does nothing forgets half of what it says in sums, None for nobody who leaves.
    """

    users: IntArray
    items: IntArray
    times: IntArray
    edges: IntArray
    before: IntArray
    leaving: float | None = None

    @staticmethod
    def from_interactions(
        interactions: Interactions,
        *,
        start: float,
        periods: int,
        share: float,
        days: float | None,
        leaving: float | None = None,
    ) -> Timeline:
        """Cut into periods, of a ``share`` of all interactions each, or of so many ``days``; start: share of all
        interactions that are past when the first begins. Ties in time are broken by user and item.

        Raises:
            DataError: no timestamps, or too few interactions for a past and so many periods.
        """
        if interactions.timestamps is None:
            raise DataError(f"{interactions.name}: has no timestamps, which data.timeline needs; leave it out")
        pairs = interactions.pairs
        order = np.lexsort((pairs.items, pairs.users(), interactions.timestamps))
        times = np.asarray(interactions.timestamps, np.int64)[order]
        count, first = len(order), round(start * len(order))
        if days is None:
            steps = first + np.rint(np.arange(-2, periods + 1) * share * count).astype(np.int64)
            places = np.minimum(steps, count)
        else:
            moments = (times[first] if first < count else 0) + np.arange(-2, periods + 1) * days * SECONDS_PER_DAY
            places = np.searchsorted(times, moments, side="left")
            places[2] = first
        if places[0] <= 0 or (np.diff(places) <= 0).any():
            raise DataError(
                f"{interactions.name}: {count:,} interactions do not hold a past and {periods} periods with something "
                "in each; lower data.timeline.periods, or change start, share or days"
            )
        users, items = (_as_they_appear(values[order]) for values in (pairs.users(), pairs.items))
        return Timeline(users, items, times, places[2:].astype(np.int64), places[:2].astype(np.int64), leaving)

    @property
    def periods(self) -> int:
        """How many, P."""
        return len(self.edges) - 1

    def begin_of(self, period: int) -> int:
        """Place at which a period begins; -1 and -2 are those before the first."""
        return int(self.edges[period] if period >= 0 else self.before[period])

    def users_before(self, place: int) -> int:
        """How many users have done anything before a place: their numbers are below it."""
        return int(self.users[:place].max(initial=-1)) + 1

    def items_before(self, place: int) -> int:
        return int(self.items[:place].max(initial=-1)) + 1

    def splits(self, period: int, phase: Phase) -> Splits:
        """What there is in a period, counted from 0, and in which part.

        choose: train is what was done before the period that lies behind, validation what was done in it. learn: train
        is all that was done before this period. In these, of users who had done anything by then, test is what they do
        in the period. recent: train is what was done in the period that lies behind, earlier: in the one before that,
        in quarters: item i of I is number q I + i where it was used in quarter q of the period (:meth:`quarters`).
        join: of users who do their first thing in this period, train is that first thing and test the rest of what they
        do in it; those from before are there, with nothing. To learn and to choose, users who leave say less and less
        of what they did (:meth:`contributed`). Items that nobody had used before the period (to choose,
        and earlier: before the one behind) have numbers from ``num_items`` on, and are in no table.
        """
        begin, end = int(self.edges[period]), int(self.edges[period + 1])
        behind = self.begin_of(period - 1)
        known = self.users_before(begin)
        here = slice(begin, end)
        if phase == "join":
            users = self.users_before(end)
            new = np.flatnonzero(self.users[here] >= known) + begin
            _, firsts = np.unique(self.users[new], return_index=True)
            rest = np.delete(new, firsts)
            nobody = self._user_items(np.zeros(0, np.int64), users)
            return Splits(
                self._user_items(new[firsts], users), nobody, self._user_items(rest, users), self.items_before(begin)
            )
        if phase in ("recent", "earlier"):
            places, items, num_items = self.quarters(period - (1 if phase == "recent" else 2))
            nothing = self._user_items(places[:0], known)
            return Splits(UserItems.from_pairs(self.users[places], items, known), nothing, nothing, num_items)
        place = behind if phase == "choose" else begin
        test = np.flatnonzero(self.users[here] < known) + begin
        train = self._user_items(np.arange(place), known)
        return Splits(
            train,
            self._user_items(np.arange(place, begin), known),
            self._user_items(test, known),
            self.items_before(place),
            self.contributed(train, period - 1 if phase == "choose" else period),
        )

    def quarters(self, period: int) -> tuple[IntArray, IntArray, int]:
        """Places (N,) of what is done in a period, -2 or later, the items there (N,) as numbers q I + i, of item i of
        the I that were used before its end, in quarter q of it, and how many such numbers there are.
        """
        begin, end = self.begin_of(period), self.begin_of(period + 1)
        places, num_items = np.arange(begin, end), self.items_before(end)
        quarter = (places - begin) * QUARTERS // (end - begin)
        return places, quarter * num_items + self.items[begin:end], QUARTERS * num_items

    def silent(self, period: int, num_users: int) -> FloatArray:
        """For how long users (U,) have done nothing when a period begins, in periods: 0 for who did something in the
        last one; the past is taken to be made of periods, too, each with as many interactions as the last of it.
        """
        begins = [self.begin_of(number) for number in range(-2, period + 1)]
        begin = begins[-1]
        last = np.full(num_users, -1, np.int64)
        np.maximum.at(last, self.users[:begin], np.arange(begin))
        whole = len(begins) - 1 - np.searchsorted(begins, last, side="right")  # periods that began after the last thing
        size = max(begins[1] - begins[0], 1)
        return np.where(last >= begins[0], whole, whole + (begins[0] - 1 - last) / size)

    def contributed(self, train: UserItems, period: int) -> UserItems | None:
        """What users speak of in sums when a period begins: the newest of their items, of which half are left after
        ``leaving`` periods of silence, a quarter after twice as many, in the end none. None: all speak of everything.
        """
        if self.leaving is None:
            return None
        counts = train.counts()
        kept = np.rint(counts * 0.5 ** (self.silent(period, train.num_users) / self.leaving)).astype(np.int64)
        place = np.arange(train.num_interactions) - np.repeat(train.indptr[:-1], counts)
        return train.keep(place >= np.repeat(counts - kept, counts))

    def _user_items(self, places: IntArray, num_users: int) -> UserItems:
        return UserItems.from_pairs(self.users[places], self.items[places], num_users)


def _as_they_appear(values: NDArray[np.integer]) -> IntArray:
    """Each value as a number: 0 for the first that appears, 1 for the next other one, and so on."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first, kind="stable")] = np.arange(len(first))
    return np.asarray(number[inverse], np.int64)

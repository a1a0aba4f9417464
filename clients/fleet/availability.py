"""When a device can take part: with a probability per round, in a daily window, or as recorded.

In a fleet file, one of::

    availability: 0.8
    availability: {probability: {uniform: [0.5, 1.0]}}
    availability: {diurnal: {period_hours: 24, window_hours: 8, phase_hours: {uniform: [0, 3]}}}
    availability: {trace: {file: charging.csv}}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PlainValidator, ValidationError, ValidationInfo, model_validator

from clients.fleet.budgets import Devices, Moment
from clients.fleet.distributions import Constant, NonNegative, Positive, Share
from clients.fleet.specs import PositiveFloat, ShareFloat, Spec, as_schema, folder_of
from clients.fleet.tabular import AtEnd, RecordedTraces, checked_file, load_traces
from fl_peel.errors import FieldError
from fl_peel.plugins import did_you_mean
from fl_peel.problems import kind_of, problems
from fl_peel.randomness import device_uniforms
from fl_peel.scenario.base import unit


class Availability(Protocol):
    """Whether a device can be sampled at a moment."""

    def available(self, seed: int, devices: Devices, now: Moment) -> NDArray[np.bool_]:
        """(N,) bool, a function of (seed, device id, moment)."""


class RandomAvailability(Spec):
    """Availability drawn in each round with the device's probability; it holds for the whole round."""

    probability: Share = Field(Constant(1.0), json_schema_extra=unit("probability"))
    """Probability of being available in a round."""

    def available(self, seed: int, devices: Devices, now: Moment) -> NDArray[np.bool_]:
        probability = self.probability.draw(device_uniforms(seed, "availability", "share", devices=devices))
        drawn = device_uniforms(seed, "availability", math.floor(now.server_round + 1e-9), devices=devices)
        return drawn < probability


class DiurnalAvailability(Spec):
    """Availability in a window of ``window_hours`` in every period, which opens at the device's own ``phase_hours``.

    By default the opening times of the devices are spread evenly over the period. Inside and outside the window the
    device is available with a probability, drawn anew each round.
    """

    period_hours: PositiveFloat = Field(24.0, json_schema_extra=unit("h"))
    """Length of the period."""
    window_hours: Positive = Field(json_schema_extra=unit("h"))
    """Length of the window in every period."""
    phase_hours: NonNegative | None = Field(None, json_schema_extra=unit("h"))
    """Opening time of the window within the period; null: spread evenly over the period."""
    inside_probability: ShareFloat = Field(1.0, json_schema_extra=unit("probability"))
    """Probability of being available inside the window."""
    outside_probability: ShareFloat = Field(0.0, json_schema_extra=unit("probability"))
    """Probability of being available outside the window."""

    @model_validator(mode="after")
    def _check_window(self) -> DiurnalAvailability:
        if self.window_hours.high > self.period_hours:
            raise FieldError(
                f"must be <= period_hours {self.period_hours:g} (got {self.window_hours.high:g})", "window_hours"
            )
        return self

    def available(self, seed: int, devices: Devices, now: Moment) -> NDArray[np.bool_]:
        drawn = device_uniforms(seed, "availability", "phase", devices=devices)
        phase = drawn * self.period_hours if self.phase_hours is None else self.phase_hours.draw(drawn)
        window = self.window_hours.draw(device_uniforms(seed, "availability", "window", devices=devices))
        inside = np.mod(now.time_s / 3600.0 - phase, self.period_hours) < window
        luck = device_uniforms(seed, "availability", math.floor(now.server_round + 1e-9), devices=devices)
        return luck < np.where(inside, self.inside_probability, self.outside_probability)


class TraceAvailability(Spec):
    """Recorded availability: ``device, time_s, available`` (0 or 1) from a file, replayed like budget traces."""

    file: Annotated[RecordedTraces, PlainValidator(lambda value, info: _read_trace(value, info)), as_schema("string")]
    """Recording as a CSV, TSV or Parquet file; a relative path starts at the folder of the fleet file."""
    at_end: AtEnd = "loop"
    """Behaviour at the end of a recording; loop: it starts again; hold: its last value remains."""
    random_start: bool = True
    """Whether each device starts at a random time of its recording."""

    def available(self, seed: int, devices: Devices, now: Moment) -> NDArray[np.bool_]:
        values = self.file.at(seed, devices, now.time_s, at_end=self.at_end, random_start=self.random_start)
        return values >= 0.5


def _read_trace(value: object, info: ValidationInfo) -> RecordedTraces:
    if isinstance(value, RecordedTraces):
        return value
    return load_traces(checked_file(folder_of(info), value), "available", largest=1.0)


def read_availability(value: object, info: ValidationInfo) -> Availability:
    """Read a probability or one of ``probability``, ``diurnal``, ``trace``.

    Raises:
        FieldError: none of them, or a wrong number.
        pydantic.ValidationError: keys that make no sense.
    """
    if isinstance(value, (RandomAvailability, DiurnalAvailability, TraceAvailability)):
        return value
    known = ("probability", "diurnal", "trace")
    if isinstance(value, Mapping) and set(value) & set(known):
        if len(value) > 1:
            unknown = sorted(set(map(str, value)) - set(known))
            hint = f"unknown key {unknown[0]!r}; {did_you_mean(unknown[0], known)}" if unknown else "must have one key"
            raise FieldError(f"{hint} (one of {', '.join(known)})")
        name, keys = next(iter(value.items()))
        if name == "probability":
            return RandomAvailability.model_validate(value, context=info.context)
        kind = DiurnalAvailability if name == "diurnal" else TraceAvailability
        try:
            return kind.model_validate(keys, context=info.context)
        except ValueError as error:
            raise _inside(error, name) from None
    if isinstance(value, Mapping) and not any(
        key in ("uniform", "lognormal", "categorical", "empirical") for key in value
    ):
        word = next(iter(value), "")
        raise FieldError(f"unknown key {word!r}; {did_you_mean(word, known)}")
    if not isinstance(value, (Mapping, int, float)) or isinstance(value, bool):
        raise FieldError(f"must be a probability or one of {', '.join(known)} (got {kind_of(value)})")
    try:
        return RandomAvailability.model_validate({"probability": value}, context=info.context)
    except ValueError as error:
        raise _inside(error) from None


def _inside(error: ValueError, *path: str) -> FieldError:
    if isinstance(error, ValidationError):
        where, message = problems(error)[0]
        where = where if path else where[1:]
        return FieldError(message, *path, *where)
    return FieldError(str(error), *path)

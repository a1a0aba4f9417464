"""DeviceProfile: one class of devices, as one entry of a fleet file describes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from clients.fleet.budgets import BudgetProcess, ConstantBudget, Devices, Moment, read_budget
from clients.fleet.distributions import (
    Constant,
    Distribution,
    FloatArray,
    Gigabytes,
    Kilobytes,
    Megabytes,
    NonNegative,
    PerGigabyte,
    Positive,
    PositiveShare,
    Share,
)
from clients.fleet.specs import PositiveFloat, PositiveInt, ShareFloat, Spec, as_schema, folder_of
from clients.fleet.tabular import AtEnd, RecordedTraces, checked_file, load_traces
from fl_peel.errors import FieldError
from fl_peel.plugins import did_you_mean
from fl_peel.problems import kind_of, problems
from fl_peel.randomness import device_uniforms
from fl_peel.scenario.base import unit

# ---- When a device can take part: with a probability per round, in a daily window, or as recorded
# In a fleet file, one of::
#
# availability: 0.8 availability: {probability: {uniform: [0.5, 1.0]}} availability: {diurnal: {period_hours: 24,
# window_hours: 8, phase_hours: {uniform: [0, 3]}}} availability: {trace: {file: charging.csv}}


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


Precision = Literal["fp32", "fp16", "int8", "int4"]
WORKING_FACTOR = 16.0
"""Default working memory, in largest budgets; docs/profiles.md explains the value."""
_TOTAL_BYTES = {"total_kb": 2**10, "total_mb": 2**20, "total_gb": 2**30}


class Draw(Protocol):
    """Draws one value per device: ``draw("memory", "total_gb", quantity)`` -> (N,)."""

    def __call__(self, section: str, key: str, quantity: Distribution) -> FloatArray:
        """(N,) values."""


class Memory(Spec):
    """Memory of a device class: its base budget, and the working memory available during training.

    Absolute: ``total_kb``, ``total_mb`` or ``total_gb`` (1 KB = 1024 bytes, as memory is sold) times
    ``recommender_share``. Relative to the fp32 full item table: ``table_share``, or a total times
    ``table_share_per_gb``. A budget never exceeds the total, if there is one. Working memory is ``working_factor``
    times the largest budget that the device ever has; together they never exceed the total.
    """

    total_kb: Kilobytes | None = Field(None, json_schema_extra=unit("KB"))
    """Total memory of the device in KB (1024 bytes); no budget exceeds it."""
    total_mb: Megabytes | None = Field(None, json_schema_extra=unit("MB"))
    """Total memory of the device in MB (1024 KB); no budget exceeds it."""
    total_gb: Gigabytes | None = Field(None, json_schema_extra=unit("GB"))
    """Total memory of the device in GB (1024 MB); no budget exceeds it."""
    recommender_share: PositiveShare | None = Field(None, json_schema_extra=unit("share"))
    """Base budget as a share of the total memory, independent of the data set."""
    table_share: PositiveShare | None = Field(None, json_schema_extra=unit("share"))
    """Base budget as a share of the fp32 full item table; it needs no total."""
    table_share_per_gb: PerGigabyte | None = Field(None, json_schema_extra=unit("share per GB"))
    """Base budget as a share of the fp32 full item table, per GB of the total memory."""
    working_factor: Positive = Field(
        Constant(WORKING_FACTOR), json_schema_extra=unit("multiples of the largest budget")
    )
    """Working memory for block selection and training, in multiples of the largest budget; docs/profiles.md explains
    the default of 16."""

    @model_validator(mode="after")
    def _check_keys(self) -> Memory:
        totals = [key for key in _TOTAL_BYTES if getattr(self, key) is not None]
        shares = [key for key in ("recommender_share", "table_share_per_gb") if getattr(self, key) is not None]
        if len(totals) > 1:
            raise FieldError(f"has {' and '.join(totals)}: keep one")
        if self.table_share is not None and (totals or shares):
            raise FieldError(f"has table_share and {(totals + shares)[0]}: give the budget in one way")
        if self.table_share is None and not totals:
            raise FieldError("needs table_share, or one of total_kb, total_mb, total_gb")
        if totals and len(shares) != 1:
            raise FieldError(f"with {totals[0]} needs one of recommender_share, table_share_per_gb")
        return self

    def total_bytes(self, draw: Draw) -> FloatArray | None:
        """Return the total memory per device in bytes, (N,); None where only a share of the table is given."""
        for key, unit_bytes in _TOTAL_BYTES.items():
            quantity: Distribution | None = getattr(self, key)
            if quantity is not None:
                return draw("memory", "total", quantity) * unit_bytes
        return None

    def base_bytes(self, draw: Draw, full_table_bytes: int) -> FloatArray:
        """Return the base budget per device in bytes, (N,)."""
        total_bytes = self.total_bytes(draw)
        if total_bytes is None:
            assert self.table_share is not None
            return draw("memory", "table_share", self.table_share) * full_table_bytes
        if self.recommender_share is not None:
            return draw("memory", "recommender_share", self.recommender_share) * total_bytes
        assert self.table_share_per_gb is not None
        per_gb = draw("memory", "table_share_per_gb", self.table_share_per_gb)
        return per_gb * (total_bytes / 2**30) * full_table_bytes


class Compute(Spec):
    """Compute of a device class."""

    samples_per_s: Positive = Field(Constant(5000.0), json_schema_extra=unit("samples/s"))
    """Training speed in samples per second."""


class Network(Spec):
    """Network link of a device class; a megabit is 10^6 bits."""

    uplink_mbps: Positive = Field(Constant(5.0), json_schema_extra=unit("Mbit/s"))
    """Bandwidth from the device to the server."""
    downlink_mbps: Positive = Field(Constant(20.0), json_schema_extra=unit("Mbit/s"))
    """Bandwidth from the server to the device."""
    latency_ms: NonNegative = Field(Constant(50.0), json_schema_extra=unit("ms"))
    """Latency before the first byte of a message."""


class Energy(Spec):
    """Energy that training and communication draw from the battery; a megabyte of communication is 10^6 bytes."""

    train_watts: NonNegative = Field(Constant(0.0), json_schema_extra=unit("W"))
    """Power drawn while the device trains."""
    radio_joules_per_mb: NonNegative = Field(Constant(0.0), json_schema_extra=unit("J/MB"))
    """Energy per megabyte sent or received."""


class DeviceProfile(Spec):
    """Profile of a device class. Every value is drawn as a function of (seed, profile name, key, device id).

    Subclass it to compute any of them differently; see docs/profiles.md.
    """

    name: str
    """Name of the device class in reports, unique within the fleet."""
    population_share: ShareFloat | None = Field(None, json_schema_extra=unit("share"))
    """Share of the population that belongs to the class; the shares of all profiles sum to 1. Without shares and
    counts, all classes are equally large."""
    population_count: PositiveInt | None = Field(None, json_schema_extra=unit("devices"))
    """Size of the class relative to the counts of the other profiles, in place of shares."""
    memory: Memory | None = None
    """Memory; optional if the budget process gives bytes itself."""
    budget: Annotated[BudgetProcess, PlainValidator(read_budget), WithJsonSchema({})] = ConstantBudget()
    """Budget process, by which the budget varies around its base: the name of a process, or a mapping with the name and
    its keys."""
    compute: Compute = Compute()
    """Compute."""
    network: Network = Network()
    """Network link."""
    availability: Annotated[Availability, PlainValidator(read_availability), WithJsonSchema({})] = RandomAvailability()
    """Availability, when the device can be sampled: a probability per round, a daily window, or a recording."""
    energy: Energy | None = None
    """Energy model; null: no energy is counted."""
    precision: Precision | None = None
    """Block precision for your own use; in a run, all classes store blocks at the scenario's blocks.precision."""

    @field_validator("name", mode="before")
    @classmethod
    def _check_name(cls, value: object) -> object:
        if (
            not isinstance(value, str)
            or not value
            or value != value.strip()
            or len(value) > 100
            or not value.isprintable()
        ):
            raise FieldError(f"must be a short name without surrounding blanks (got {kind_of(value)})")
        return value

    @model_validator(mode="after")
    def _check_keys(self) -> DeviceProfile:
        if self.population_share is not None and self.population_count is not None:
            raise FieldError("has population_share and population_count: keep one")
        if self.memory is None and self.budget.needs_memory():
            raise FieldError("is missing", "memory")
        return self

    def draw(self, seed: int, devices: Devices) -> Draw:
        """Return the function that draws this profile's values for these devices."""

        def drawn(section: str, key: str, quantity: Distribution) -> FloatArray:
            return quantity.draw(device_uniforms(seed, "profile", self.name, section, key, devices=devices))

        return drawn

    def base_bytes(self, seed: int, devices: Devices, *, full_table_bytes: int) -> FloatArray:
        """Return the base budget in bytes, (N,), which the budget process varies; 0 where the process needs none."""
        if self.memory is None:
            return np.zeros(len(devices))
        return self.memory.base_bytes(self.draw(seed, devices), full_table_bytes)

    def limit_bytes(self, seed: int, devices: Devices) -> FloatArray:
        """Return the total memory in bytes, (N,), which no budget exceeds; infinite where it is unknown."""
        total = None if self.memory is None else self.memory.total_bytes(self.draw(seed, devices))
        return np.full(len(devices), np.inf) if total is None else total

    def working_bytes(self, seed: int, devices: Devices, *, ceiling_bytes: FloatArray) -> FloatArray:
        """Return the bytes (N,) that a device may use during training in addition to what it stores. ceiling_bytes:
        (N,), which its budgets never exceed."""
        if self.memory is None:
            return WORKING_FACTOR * ceiling_bytes
        factor = self.draw(seed, devices)("memory", "working_factor", self.memory.working_factor)
        return np.minimum(factor * ceiling_bytes, self.limit_bytes(seed, devices) - ceiling_bytes)

    def rates(self, seed: int, devices: Devices) -> dict[str, FloatArray]:
        """Return compute, network and energy values by key, each (N,)."""
        draw = self.draw(seed, devices)
        energy = self.energy if self.energy is not None else Energy()
        return {
            "samples_per_s": draw("compute", "samples_per_s", self.compute.samples_per_s),
            "uplink_mbps": draw("network", "uplink_mbps", self.network.uplink_mbps),
            "downlink_mbps": draw("network", "downlink_mbps", self.network.downlink_mbps),
            "latency_ms": draw("network", "latency_ms", self.network.latency_ms),
            "train_watts": draw("energy", "train_watts", energy.train_watts),
            "radio_joules_per_mb": draw("energy", "radio_joules_per_mb", energy.radio_joules_per_mb),
        }

    def available(self, seed: int, devices: Devices, now: Moment) -> NDArray[np.bool_]:
        """Return whether each device can be sampled at a moment, (N,) bool."""
        return self.availability.available(seed, devices, now)

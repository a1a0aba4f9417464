"""A step: one question to devices whose answers add up.

A :class:`Step` says what is sent, what a device contributes, within which bounds, the shapes of the sum, and what it
costs a device; beside that, in the same file, stands what the server asks and makes of the sum. Its fields are sizes,
known before anything is sent. However the sum comes about (in the clear, masked, noised, with contributors counted
first, resumed) is a :class:`StepChannel`, and the same for all steps.

A step goes in parts: its sum and what is sent for it are cut into pieces (columns of a pass, user groups of moments),
of which a part has some. A device computes each piece by itself, so that parts change nothing.

A sum with a single contributor is that contributor's own number. Stage 1 adds up rows: of a pass one for each item, of
user groups and moments one for each group, of the choice of a filter a single one. A step therefore has two parts for
the same devices. In the first one devices say to which rows they would contribute, and their numbers are added up; in
the second one they contribute to the rows of which :func:`opened_rows` says that they may be opened, and say zeros for
all others, so that a row that stays closed looks as if nobody were there.

Counts themselves are opened: they say how many devices contribute, and nothing else of any of them.

Counters are 64 bits wide, and so is all else unless units are coarser (:class:`fl_peel.steps.base.Units`): products of
vectors and passes fill that, and counts are few beside those. A vector is a head, of counters and the word that proves
the masks gone, and a body of the step's pieces. It may go in parts of some pieces each, as one stream: masks go on
where they were.

A step takes bytes, work and memory of a device. Rows and centroids come a few columns at a time: as many as fit what
the device may hold at that moment, besides what it keeps of the step itself, so that too little memory costs exchanges
first. A device that cannot hold one column sits out; it is served all the same, with the table of the user group that
is nearest to its items. Its own interactions are its data and no part of the budget, here as in refinement.

Who hides what it has fetches all rows, of which it keeps its own, and answers with a vector that has a word for
whatever anybody could have sent (:func:`hidden`), masked, or noised by itself. The vector goes in parts of as many
words as fit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from fl_peel.array_specs import ArraySpec, summed
from fl_peel.data.interactions import UserItems
from fl_peel.errors import FieldError, MessageError
from fl_peel.exchange.counters import BELOW, ClassCounts, ClockCounts, counts_within
from fl_peel.figures import Figure
from fl_peel.kernels import sum_rows
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import STAGES, SpectralConfig
from fl_peel.secure.device_protocol import EXCHANGES, DeviceBytes
from fl_peel.secure.vector import CHECK, Bits, Field, VectorLayout

# ---- Whole numbers that devices add up: their units, how vectors are rounded to them, and bounds that rounding
# keeps
# Everything that is added up over devices is a whole number, rounded on the device: the sum is the same whatever the
# order or the number of nodes, and may be masked.


Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Counts = NDArray[Any]
"""Whole numbers, or what noise leaves of them, in doubles."""

PASS_SCALE = 2.0**36
"""Units of a pass in one: a device's numbers are below 2^7, so that sums of 2^20 devices fit 64 bits."""
UNIT_SCALE = 2.0**20
"""Units of vectors of length 1: products of two of them, added up over thousands, are exact in doubles."""
CHUNK_DEVICES = 4096
"""Vectors that are held in doubles at once: their products, added up, are below 2^53 units squared."""
EMPTY = 1e-9
"""Directions below this share of the largest squared length are rounding alone."""


@dataclass(frozen=True)
class Units:
    """Units in one of the whole numbers that devices send: in passes, and of vectors whose products are moments; bits:
    of a word that holds their sum.
    """

    passes: float = PASS_SCALE
    moments: float = UNIT_SCALE
    bits: Literal[32, 64] = 64

    @staticmethod
    def from_config(config: SpectralConfig, devices: int, items: int) -> Units:
        """The finest powers of two with which sums of so many devices fit, whatever they have.

        Of a pass with columns of length 1 at most, d_u^-2a times the sum of d_u rows is below d_u^(1/2 - 2a), by Cauchy
        and Schwarz, for D^-b is 1 at most. Entries of vectors of length 1 are at most 1, and so are their products. A
        thousandth is left for rounding.
        """
        bits = config.sum_bits
        if bits == 64:
            return Units()
        limit = ((1 << (bits - 1)) - 1) // devices
        largest = 1.001 * max(1.0, items ** (0.5 - 2 * config.user_exponent))
        return Units(
            min(_power_below((limit - 1) / largest), PASS_SCALE),
            min(_power_below((math.sqrt(limit) - 1) / 1.001), UNIT_SCALE),
            bits,
        )


def _power_below(number: float) -> float:
    """The largest power of two that is no larger; 1 at least."""
    return 2.0 ** math.floor(math.log2(max(number, 1.0)))


def inverse_power(counts: Counts, exponent: float) -> Doubles:
    """Return counts^-exponent; zero where the count is zero."""
    scale: Doubles = np.zeros(len(counts))
    np.power(counts, -exponent, out=scale, where=counts > 0, dtype=np.float64)
    return scale


def item_matrix(rows: UserItems, num_items: int, kind: type[np.generic]) -> sp.csr_matrix:
    """0/1 interactions (N, I); a user's items in ascending order, so that its sums are the same to the last bit."""
    ordered = rows.by_item
    ones = np.ones(len(ordered.items), kind)
    return sp.csr_matrix((ones, ordered.items, ordered.indptr), shape=(rows.num_users, num_items))


def weighted_matrix(rows: UserItems, num_items: int, fading: float | None) -> sp.csr_matrix:
    """Return interactions (N, I): 1 each, or e^(-n / ``fading``) where a device has had n interactions since."""
    if fading is None:
        return item_matrix(rows, num_items, np.float64)
    counts = rows.counts()
    since = np.repeat(rows.indptr[1:], counts) - 1 - np.arange(rows.num_interactions)
    order = np.lexsort((rows.items, rows.users()))
    weights = np.exp(-since / fading)[order]
    return sp.csr_matrix((weights, rows.items[order], rows.indptr), shape=(rows.num_users, num_items))


def add_rows(table: Floats, rows: UserItems, fading: float | None = None) -> Floats:
    """Return the sum of the rows of each device's items, (N, k). fading: as of :func:`weighted_matrix`."""
    matrix = weighted_matrix(rows, len(table), fading)
    vectors = np.empty((rows.num_users, table.shape[1]), np.float32)
    sum_rows(matrix.indptr, matrix.indices, matrix.data, table, vectors)
    return vectors


def unit_vectors(vectors: Floats) -> Floats:
    """Return vectors (N, k) at length 1; those of devices without items stay zero."""
    units = np.empty(vectors.shape, np.float32)
    for start in range(0, len(vectors), CHUNK_DEVICES):
        wide = vectors[start : start + CHUNK_DEVICES].astype(np.float64)
        lengths = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
        units[start : start + CHUNK_DEVICES] = np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0)
    return units


def in_units(vectors: Floats, scale: float = UNIT_SCALE) -> Doubles:
    """Return vectors of length 1 as whole numbers in units of 1 / ``scale``."""
    return np.rint(vectors.astype(np.float64) * scale)


def within(values: Floats | Doubles, bound: float | Doubles, unit: float, *, l1: bool) -> Ints:
    """Rows (N, k) shortened to a norm of ``bound`` (each, or (N,)) where they are longer, in units of 1 / ``unit``,
    rounded towards zero. What is not a number counts as zero.
    """
    wide = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    norms = np.abs(wide).sum(axis=1) if l1 else np.sqrt((wide * wide).sum(axis=1))
    shorter = np.minimum(1.0, bound * BELOW / np.maximum(norms, 1e-300))
    whole: Ints = np.trunc(wide * shorter[:, None] * unit).astype(np.int64)
    return whole


def nearest(vectors: Floats, centroids: Floats) -> NDArray[np.int32]:
    """Return the user group of each device (N,): the nearest centroid of (G, c), ties to the lower number.

    It is computed in whole numbers, so that it does not depend on which devices are computed together. vectors: (N, K),
    K >= c; the first c columns, at length 1, count.
    """
    centres = in_units(centroids)
    squares = (centres * centres).sum(axis=1)
    groups = np.zeros(len(vectors), np.int32)
    for start in range(0, len(vectors), CHUNK_DEVICES):
        points = in_units(unit_vectors(vectors[start : start + CHUNK_DEVICES, : centroids.shape[1]]))
        groups[start : start + CHUNK_DEVICES] = (squares - 2.0 * (points @ centres.T)).argmin(axis=1)
    return groups


ID_BYTES = 4
NUMBER_BYTES = 4
"""Bytes of a number in fp32, as devices compute with them."""
ROW_BYTES = 2
"""Bytes of an entry of a row or a map, see :func:`fl_peel.pretraining.spectral.halves`."""
UNIT_BYTES = 1
"""Bytes of a column's unit, which is a power of two."""
CENTROID_BYTES = 1
"""Bytes of an entry of a centroid, see :func:`fl_peel.pretraining.spectral.coarse`."""
WORD_BYTES = 8
"""Bytes of a whole number that is added up."""
SAMPLE_COLUMNS = 64
"""Columns of one row whose sum takes about what a training sample takes at embedding dimension 64."""


@dataclass(frozen=True)
class HeldItems:
    """How many items devices have, (N,) each: those that they add up, train items, validation items."""

    contributed: Ints
    train: Ints
    validation: Ints


@dataclass(frozen=True)
class AnswerCost:
    """Cost of answers to sums alone: bytes of a vector; the protocol's bytes down and up; requests."""

    vector_bytes: int
    download_bytes: int
    upload_bytes: int
    exchanges: int

    def __add__(self, other: AnswerCost) -> AnswerCost:
        return AnswerCost(*(mine + others for mine, others in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class StepCost:
    """Cost of a step by device, (N,): bytes moved, training samples worth, bytes held at least, requests."""

    download_bytes: Ints
    upload_bytes: Ints
    samples: Ints
    least_bytes: Ints
    exchanges: Ints


Each = Ints | int
"""A number for each device (N,), or one that is the same for all."""


def cost_by_columns(
    columns: int, rows: Each, budgets: Ints, *, moved: tuple[Each, Each], kept: Each = 0, column_bytes: Each
) -> StepCost:
    """Return the cost of a step that takes rows a few columns at a time. rows: that a device computes with; moved:
    bytes down and up of all columns; kept: bytes that it holds throughout; column_bytes: of one column.
    """
    nothing, column = np.zeros_like(budgets), np.maximum(column_bytes, 1)
    at_a_time = np.clip((budgets - kept) // column, 1, max(columns, 1))
    work = rows * -(-columns // SAMPLE_COLUMNS)
    return StepCost(*(nothing + each for each in (*moved, work, kept + column, -(-columns // at_a_time))))


def rows_bytes(columns: int, rows: Ints | int, all_rows: int) -> Ints | int:
    """Return the bytes in which a device fetches so many of a table's rows by their ids, or all of them in order."""
    if all_rows:
        return (ROW_BYTES * all_rows + UNIT_BYTES) * columns
    return ID_BYTES * rows + (ROW_BYTES * rows + UNIT_BYTES) * columns


def hidden(step: StepCost, answer: AnswerCost, budgets: Ints) -> StepCost:
    """Return the cost of a step of sums alone: a part of the vector must fit beside what the step needs."""
    room = WORD_BYTES * np.maximum((budgets - step.least_bytes) // WORD_BYTES, 1)
    return StepCost(
        step.download_bytes + answer.download_bytes,
        np.full_like(budgets, answer.vector_bytes + answer.upload_bytes),
        step.samples,
        step.least_bytes + WORD_BYTES,
        # the first part comes with the last of what was fetched, and is one of the protocol's own exchanges
        step.exchanges - 1 + -(-answer.vector_bytes // room) - 1 + answer.exchanges,
    )


Arrays = dict[str, NDArray[Any]]
Bools = NDArray[np.bool_]
Part = tuple[int, int]
"""First piece of a part, and the one after its last."""
PartSums = tuple[Part, Arrays]
"""A part of a step, and its sum."""
Draw = Callable[[str, tuple[int, ...], int], Ints]
"""Function that draws noise: name of the noised part, a shape, the number of the piece."""
Size = Annotated[int, ArraySpec(least=0, most=1 << 24)]


@dataclass(frozen=True)
class ContributionBounds:
    """Bounds under a mechanism. counts: of a device's item counts; l1: in the L1 norm, else in L2."""

    counts: float
    l1: bool = False


@dataclass(frozen=True)
class StepTerms:
    """What devices and server know alike from the run's scenario. bounds: None where devices keep to none; fading: of
    interactions, in a timeline; dim: of user embeddings; all_rows: whether devices fetch all rows of a table, so that
    nobody sees which are of their items; counts_contributors: whether contributors are counted before a sum is opened;
    any_rows: whether a table may have another number of rows than there are items, as in a timeline.
    """

    num_items: int
    user_exponent: float
    item_exponent: float = 0.5
    units: Units = field(default_factory=Units)
    bounds: ContributionBounds | None = None
    fading: float | None = None
    dim: int = 0
    all_rows: bool = False
    counts_contributors: bool = False
    any_rows: bool = False

    @staticmethod
    def from_scenario(
        scenario: Scenario, num_items: int, num_devices: int, bounds: ContributionBounds | None = None
    ) -> StepTerms:
        """Return the terms of a run over so many items and devices, within bounds, if any."""
        pretraining, privacy, timeline = scenario.pretraining, scenario.privacy, scenario.data.timeline
        return StepTerms(
            num_items,
            pretraining.user_exponent,
            pretraining.item_exponent,
            Units.from_config(pretraining.spectral(), num_devices, num_items),
            bounds,
            None if timeline is None else timeline.decay_interactions,
            pretraining.embedding_dim,
            scenario.secure_aggregation.enabled or privacy.rows == "all-sent",
            privacy.counts_contributors,
            timeline is not None,
        )

    @property
    def bounded(self) -> bool:
        return self.bounds is not None

    @property
    def one(self) -> int:
        """Return what a device adds where it counts: 1, within bounds in units."""
        return int(UNIT_SCALE) if self.bounded else 1

    @property
    def word_bytes(self) -> int:
        """Return the bytes of a number that is added up."""
        return self.units.bits // 8

    @property
    def table_rows(self) -> int | str:
        return "rows" if self.any_rows else self.num_items

    def count_items(self, rows: UserItems) -> Ints:
        """Return how many devices have each item (I,); within bounds in units of 1 / ``UNIT_SCALE``."""
        if self.bounds is None:
            return rows.popularity(self.num_items)
        owners, l1 = rows.users(), self.bounds.l1
        return counts_within(owners, rows.items, self.num_items, self.bounds.counts, UNIT_SCALE, l1=l1)


class StepDevices(Protocol):
    """Devices (N,) that answer a step, with what each of them has."""

    @property
    def contributed(self) -> UserItems:
        """Return the train items (N rows) that they add up."""

    @property
    def train(self) -> UserItems:
        """Return their train items (N rows)."""

    @property
    def validation(self) -> UserItems:
        """Return their validation items (N rows)."""

    def vectors(self, some: Ints | None = None, columns: int | None = None) -> Floats:
        """Return the vectors (N, K) that they keep, of ``some`` of them, or their first columns alone."""

    def keep_vectors(self, table: Floats, first: int, columns: int, default: Floats | None) -> None:
        """Make vectors of ``columns`` columns from a table's rows (I, k), whose columns begin with ``first``, and keep
        them. default: (K,) vector of a device that has none of the rows.
        """


@dataclass(frozen=True)
class SumField:
    """An array of a step's sum. axis: along which it is cut into pieces, None where it is not and comes with the first
    part; counts: whether its numbers are of devices, and hence not below 0 but for noise; each: the most that a device
    adds to one of these; bits: of its words, None for those of the terms.
    """

    name: str
    shape: tuple[int, ...]
    axis: int | None = None
    counts: bool = False
    each: int = 1
    bits: Bits | None = None

    def shape_of(self, part: Part) -> tuple[int, ...]:
        if self.axis is None:
            return self.shape
        return (*self.shape[: self.axis], part[1] - part[0], *self.shape[self.axis + 1 :])

    @property
    def piece_shape(self) -> tuple[int, ...]:
        """Return the shape of one piece, at least (1,)."""
        if self.axis is None:
            return self.shape
        return (*self.shape[: self.axis], *self.shape[self.axis + 1 :]) or (1,)


@dataclass(frozen=True)
class NoisedPart:
    """A part of a step's sum to which a mechanism adds noise. field: array of the sum; share: of the budget of stage 1,
    for all times together; bound: of a device, None for ``privacy.counts_norm``; unit: units in one.
    """

    name: str
    field: str
    share: float
    bound: float | None = 1.0
    unit: float = UNIT_SCALE


@dataclass(frozen=True)
class Step(ABC):
    """One question to devices whose contributions add up."""

    name: ClassVar[str]
    noised: ClassVar[tuple[NoisedPart, ...]] = ()
    """Parts of the sum to which a mechanism adds noise."""
    part_bytes: ClassVar[int] = 40 << 20
    """Bytes of a part in the clear, about."""
    counts_alone: ClassVar[str] = ""
    """Array of the sum whose numbers count contributors themselves, so that these need not be counted first."""
    joins: ClassVar[bool] = False
    """Whether devices that contribute nothing take part, too."""
    needs_validation: ClassVar[bool] = False
    """Whether devices without validation items stay away, where it may be known that they have none."""

    @property
    def question(self) -> Step:
        """Return the step whose devices, cost and time it shares: another one only for the count of contributors."""
        return self

    @property
    def num_pieces(self) -> int:
        """Return how many pieces the step can be cut into."""
        return 1

    @property
    def panel(self) -> int:
        """Return about how many of all devices are asked, 0 for all of them."""
        return 0

    @property
    def may_reach_nobody(self) -> bool:
        """Return whether the run goes on if no device answers."""
        return False

    def sent_arrays(self, terms: StepTerms, part: Part) -> Mapping[str, ArraySpec]:
        """Return the arrays that are sent for a part."""
        return {}

    def cut(self, sent: Arrays, part: Part, terms: StepTerms) -> Arrays:
        """Return what is sent for a part, of all that is sent for the step."""
        return sent

    def sums(self, terms: StepTerms) -> tuple[SumField, ...]:
        """Return the arrays of the sum; none where devices answer nothing."""
        return ()

    def contribute(
        self, devices: StepDevices, sent: Arrays, part: Part, terms: StepTerms, opened: Bools | None
    ) -> Arrays:
        """Return what devices add to a part of the sum, added up over them. opened: rows (R,) that they contribute to,
        None for all of them; the others look as if nobody were there.
        """
        return {}

    def num_rows(self, terms: StepTerms) -> int:
        """Return to how many rows contributors are counted before the sum is opened, 0 where they are not."""
        return 0

    counting_sent: ClassVar[tuple[str, ...]] = ()
    """Arrays that are sent for devices to know to which rows they would contribute."""

    def contributors(self, devices: StepDevices, sent: Arrays, terms: StepTerms) -> Ints:
        """Return how many devices would contribute to each row (R,)."""
        raise NotImplementedError(f"contributors of {self.name} are not counted")

    def counting_bytes(self, terms: StepTerms, items: HeldItems) -> tuple[Ints | int, Ints | int]:
        """Return the bytes down and up that counting contributors adds for each device."""
        return 0, 0

    @abstractmethod
    def cost(self, terms: StepTerms, items: HeldItems, budgets: Ints) -> StepCost:
        """Return what the step takes of devices with so many items and bytes (N,), without counting contributors."""

    @staticmethod
    def times(config: SpectralConfig, num_groups: int) -> int:
        """Return how often a stage 1 takes the step under a mechanism."""
        return 1

    def draw_piece(self, draw: Draw, one: NoisedPart, shape: tuple[int, ...], piece: int) -> Ints:
        """Return the noise on a piece of a noised part."""
        return draw(one.name, shape, piece)

    # ---------------------------------------------------------------- what follows from these

    def noise(self, draw: Draw, terms: StepTerms, part: Part) -> Arrays:
        """Return the noise on a part of the sum: each piece drawn by itself."""
        fields = {one.name: one for one in self.sums(terms)}
        result: Arrays = {}
        for one in self.noised:
            whole = fields[one.field]
            if whole.axis is None and part[0]:
                continue
            noise = np.empty(whole.shape_of(part), np.int64)
            if whole.axis is None:
                noise[...] = self.draw_piece(draw, one, whole.piece_shape, 0)
            else:
                for place, piece in enumerate(range(*part)):
                    drawn = self.draw_piece(draw, one, whole.piece_shape, piece)
                    np.moveaxis(noise, whole.axis, 0)[place] = drawn if noise.ndim > 1 else drawn.item()
            result[one.field] = noise
        return result

    def sums_of_part(self, terms: StepTerms, part: Part) -> list[SumField]:
        """Return the arrays of a part of the sum; those that are not cut come with the first part."""
        return [one for one in self.sums(terms) if one.axis is not None or part[0] == 0]

    def fields(self, terms: StepTerms, part: Part) -> tuple[Field, ...]:
        """Return the arrays of a part of the sum, as words."""
        some = self.sums_of_part(terms, part)
        return tuple(Field(one.name, one.shape_of(part), one.bits or terms.units.bits) for one in some)

    def reply_arrays(self, terms: StepTerms, part: Part, devices: int) -> dict[str, ArraySpec]:
        """Return the arrays of a right reply to a part, of a node with so many devices. Noise knows no ends."""
        arrays = {}
        for one in self.sums_of_part(terms, part):
            whole = summed(*one.shape_of(part))
            counted = one.counts and not terms.bounded
            arrays[one.name] = replace(whole, least=0, most=devices * one.each) if counted else whole
        return arrays

    def check_together(self, sums: Arrays) -> None:  # noqa: B027, most steps have nothing to check
        """Check numbers of a node's reply that are possible each by itself, but not together.

        Raises:
            MessageError: they cannot be true.
        """

    def parts(self, terms: StepTerms, most_bytes: int) -> list[Part]:
        """Return parts of at most so many bytes each, of 8 for a number, or of one piece."""
        pieces = self.num_pieces
        numbers = sum(math.prod(one.shape) for one in self.sums(terms)) or terms.num_items * pieces
        at_once = max(1, most_bytes * pieces // max(8 * numbers, 1))
        return [(first, min(first + at_once, pieces)) for first in range(0, pieces, at_once)]

    def whole_cost(self, terms: StepTerms, items: HeldItems, budgets: Ints) -> StepCost:
        """Return what the step takes of devices, with the count of its contributors."""
        cost = self.cost(terms, items, budgets)
        if not (terms.counts_contributors and self.num_rows(terms)):
            return cost
        down, up = self.counting_bytes(terms, items)
        return StepCost(
            cost.download_bytes + down, cost.upload_bytes + up, cost.samples, cost.least_bytes, cost.exchanges + 1
        )

    def whole(self, terms: StepTerms, parts: Iterable[PartSums]) -> Arrays:
        """Return a sum as a whole, from its parts in their order."""
        total: Arrays = {}
        for part, sums in parts:
            if part == (0, self.num_pieces):
                total = sums
                continue
            for one in self.sums(terms):
                if one.axis is not None:
                    whole = total.setdefault(one.name, np.zeros(one.shape, np.int64))
                    np.moveaxis(whole, one.axis, 0)[slice(*part)] = np.moveaxis(sums[one.name], one.axis, 0)
                elif part[0] == 0:
                    total[one.name] = sums[one.name]
        return total


class StepChannel(Protocol):
    """A way in which sums over devices come about."""

    @property
    def terms(self) -> StepTerms:
        """Return what devices and server know alike."""

    def ask(self, step: Step, sent: Arrays, opened: Bools | None = None) -> Iterator[PartSums]:
        """Yield the sum of a step, part by part. opened: rows (R,) to contribute to; None: all of them."""

    def std(self, part: str) -> float:
        """Return the standard deviation of the noise on each number of a part of the last sum; 0: there is none."""


@dataclass
class ChannelWrapper:
    """Base class of channels that add something to another one."""

    channel: StepChannel

    @property
    def terms(self) -> StepTerms:
        return self.channel.terms

    def std(self, part: str) -> float:
        return self.channel.std(part)


def answer_to(channel: StepChannel, step: Step, sent: Arrays) -> Arrays:
    """Ask a step and return its whole sum."""
    return step.whole(channel.terms, channel.ask(step, sent))


@dataclass(frozen=True)
class ContributorsStep(Step):
    """The first part of a step: to which of its rows (R,) devices would contribute."""

    step: Step

    name: ClassVar[str] = "contributors"

    def __post_init__(self) -> None:
        if type(self.step).contributors is Step.contributors:
            raise MessageError(f"ContributorsStep: nobody contributes to a row in step {self.step.name}")

    @property
    def question(self) -> Step:
        """See :class:`fl_peel.steps.base.Step`: both parts have the same devices and are counted once."""
        return self.step

    def sent_arrays(self, terms: StepTerms, part: Part) -> Mapping[str, ArraySpec]:
        whole = self.step.sent_arrays(terms, (0, self.step.num_pieces))
        return {name: whole[name] for name in self.step.counting_sent}

    def cut(self, sent: Arrays, part: Part, terms: StepTerms) -> Arrays:
        return {name: sent[name] for name in self.step.counting_sent}

    def sums(self, terms: StepTerms) -> tuple[SumField, ...]:
        return (SumField("contributors", (self.step.num_rows(terms),), counts=True),)

    def contribute(
        self, devices: StepDevices, sent: Arrays, part: Part, terms: StepTerms, opened: Bools | None
    ) -> Arrays:
        return {"contributors": self.step.contributors(devices, sent, terms)}

    def cost(self, terms: StepTerms, items: HeldItems, budgets: Ints) -> StepCost:
        return self.step.cost(terms, items, budgets)


def opened_rows(contributors: NDArray[Any], least: int) -> Bools:
    """Return which rows (R,) may be opened, by contributors (R,): those with ``privacy.min_owners`` at least."""
    return np.asarray(contributors >= least)


def packed_rows(opened: Bools) -> NDArray[np.uint8]:
    """Return the rows (R,) that are opened as they are sent, a bit each."""
    return np.packbits(opened)


def unpacked_rows(bits: NDArray[np.uint8], rows: int) -> Bools:
    """Return which of so many rows are opened, (R,), of what was sent; a row whose bit lacks stays closed."""
    opened = np.zeros(rows, np.bool_)
    known = np.unpackbits(bits)[:rows].astype(np.bool_)
    opened[: len(known)] = known
    return opened


@dataclass(frozen=True)
class StepVector:
    """Vector of a step. classes: device classes to count, 0: none; devices: that a sum is over, at most."""

    step: Step
    terms: StepTerms
    classes: int
    devices: int

    @property
    def _head(self) -> tuple[Field, ...]:
        if not self.classes:
            return (Field(CHECK, (1,), 64),)
        return (
            Field(CHECK, (1,), 64),
            Field("classes", (self.classes, len(ClassCounts.names())), 64),
            Field("clock", (self.classes, len(ClockCounts.names())), 64),
        )

    def part(self, part: Part) -> VectorLayout:
        """Return the layout of some pieces; the first ones come with the head."""
        return VectorLayout((self._head if part[0] == 0 else ()) + self.step.fields(self.terms, part), self.devices)

    def start(self, part: Part) -> int:
        """Return the bytes of the vector before that part."""
        return self.part((0, part[0])).num_bytes if part[0] else 0

    @property
    def num_bytes(self) -> int:
        return self.part((0, self.step.num_pieces)).num_bytes

    @property
    def contribution_bytes(self) -> int:
        """Bytes of the contribution, without counters and the check."""
        return VectorLayout(self.step.fields(self.terms, (0, self.step.num_pieces)), self.devices).num_bytes

    def clear_cost(self) -> AnswerCost:
        """Return what it costs a device to send all words of its contribution at once, in the clear."""
        return AnswerCost(self.contribution_bytes, 0, 0, 1)

    def masked_cost(self, neighbours: int) -> AnswerCost:
        moved = DeviceBytes.from_sizes(neighbours, 0)
        return AnswerCost(self.num_bytes, moved.download, moved.upload, EXCHANGES)


# ---- A stage of a run that an installed package adds: one step, when it is asked, and the figures of its sum


AFTER = ("joining", "refinement", "evaluation")
"""Stages of every run after which another one may stand."""


@dataclass(frozen=True)
class Stage(Step):
    """A step that a run asks once, and the figures of its sum. after: stage of a run after which it stands, one of
    :data:`AFTER`; its fields have defaults. An entry point of the group ``fl_peel.stages`` registers it under its own
    name, and a scenario takes it with the key ``stages``. Masks, noise, the least number of owners, checkpoints and
    costs are those of any step; under a mechanism its ``noised`` parts have a share of the budget of stage 1.
    """

    after: ClassVar[str]

    def sent(self, tables: Sequence[Floats]) -> Arrays:
        """Return the arrays that devices are sent. tables: item tables (I, d) of the user groups as they are then."""
        return {}

    @abstractmethod
    def figures(self, sums: dict[str, Doubles], tables: Sequence[Floats]) -> Iterable[Figure]:
        """Return the figures, each with its name and columns (``where``). sums: of all devices, noised parts in ones;
        tables: as in :meth:`sent`.
        """

    def cost(self, terms: StepTerms, items: HeldItems, budgets: Ints) -> StepCost:
        """See :class:`Step`; a device holds all that it is sent, and its contribution."""
        down, up, nothing = 0, 0, np.zeros_like(budgets)
        for spec in self.sent_arrays(terms, (0, self.num_pieces)).values():
            down += math.prod(map(int, spec.shape or ())) * np.dtype((spec.dtypes or ("int64",))[0]).itemsize
        for one in self.sums(terms):
            up += terms.word_bytes * math.prod(one.shape)
        return StepCost(nothing + down, nothing + up, nothing, nothing + down + up, nothing + 1)


def find_stage(name: str) -> Stage:
    """Return the stage that an installed package registers under a name.

    Raises:
        FieldError: there is none, it is not a :class:`Stage`, or it has another name, or no place in a run.
    """
    stage = STAGES.make(name, Stage)  # type: ignore[type-abstract]
    if stage.name != name or stage.after not in AFTER:
        raise FieldError(
            f"the stage {name!r} is named {stage.name!r} and stands after {stage.after!r}: register it under its own "
            f"name, and set after to one of {', '.join(AFTER)}"
        )
    return stage

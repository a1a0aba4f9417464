"""Secure aggregation between devices, without an engine: exact sums, refusals, and nothing to see in one vector."""

import dataclasses
import math

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from fl_peel.errors import SecureAggregationError
from fl_peel.kernels import FIXED_POINT
from fl_peel.scenario.scenario import Scenario
from fl_peel.secure import device_protocol as protocol
from fl_peel.secure.device_protocol import (
    DeviceBytes,
    DropoutStage,
    answers_needed,
    needed_of,
    neighbour_graph,
    num_neighbours,
    vanishing,
)
from fl_peel.secure.keys import _SMALL_ORDER, Occasion, are_usable, pair_key, private_key, public_key, split
from fl_peel.secure.vector import (
    Field,
    Mask,
    MaskedParties,
    MaskWords,
    VectorLayout,
    add_mask,
    added,
    left_over,
    sum_bits,
    without,
)
from tests.helpers.examples import examples

OCCASION = Occasion(server_round=3, group=1)


def words(narrow: list[int], wide: list[int]) -> MaskWords:
    return MaskWords(
        np.array([x % 2**32 for x in narrow], np.uint32),
        np.array([x % 2**64 for x in wide], np.uint64),
    )


@dataclasses.dataclass
class Group:
    """Devices 10, 11, ... of one group, after they shared their secrets."""

    graph: np.ndarray
    needed: int
    secrets: list[protocol.Secrets]
    neighbours: list[list[protocol.Neighbour]]
    sealed: list[list[bytes]]

    @staticmethod
    def drawn(num_devices: int, wanted: int, share: float = 0.6) -> "Group":
        graph = neighbour_graph(num_devices, wanted, np.random.default_rng(num_devices))
        needed = answers_needed(graph.shape[1], share)
        secrets = [protocol.Secrets.fresh() for _ in range(num_devices)]
        known = [protocol.Neighbour(10 + i, *secret.public_keys()) for i, secret in enumerate(secrets)]
        neighbours = [[known[j] for j in row] for row in graph]
        sealed = [
            protocol.share_secrets(secrets[i], OCCASION, 10 + i, neighbours[i], needed) for i in range(num_devices)
        ]
        return Group(graph, needed, secrets, neighbours, sealed)

    def masked(self, i: int, vector: MaskWords) -> MaskWords:
        return protocol.mask_vector(vector, self.secrets[i], OCCASION, 10 + i, self.neighbours[i], self.needed)

    def held(self, i: int) -> dict[int, protocol.HeldShares]:
        sealed = [self.sealed[j][list(self.graph[j]).index(i)] for j in self.graph[i]]
        shares = protocol.received_shares(self.secrets[i], OCCASION, 10 + i, self.neighbours[i], sealed)
        return {10 + int(j): share for j, share in zip(self.graph[i], shares, strict=True)}

    def sum_of(self, vectors: list[MaskWords], survivors: set[int], answering: set[int] | None = None) -> MaskWords:
        """Sum over the survivors, as the server gets it; answering: those that still answer in the last stage."""
        gone = set(range(len(vectors))) - survivors
        total = added(self.masked(i, vectors[i]) for i in sorted(survivors))
        dropped = {10 + i: tuple(10 + j for j in self.graph[i] if j in survivors) for i in gone}
        shares: tuple[dict, dict] = ({}, {})
        for i in survivors if answering is None else answering:
            mine = [j for j in self.graph[i] if j in survivors]
            theirs = [j for j in self.graph[i] if j in gone]
            opened = protocol.open_shares(
                self.held(i), OCCASION, 10 + i, [10 + j for j in mine], [10 + j for j in theirs], self.needed
            )
            for other, (index, share) in opened.items():
                shares[other - 10 in gone].setdefault(other, {})[index] = share
        keys = {10 + i: secret.public_keys()[1] for i, secret in enumerate(self.secrets)}
        masked = MaskedParties(OCCASION, tuple(10 + i for i in sorted(survivors)), dropped, keys, self.needed)
        return without(total, left_over(masked, *shares))


# ---------------------------------------------------------------- known answers


def test_a_mask_is_the_key_stream_of_aes_in_counter_mode():
    seed = bytes(range(16))
    stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update(bytes(4 * 3 + 8 * 2))
    vector = words([5, 2**32 - 1, 0], [7, 2**64 - 1])
    add_mask(vector, seed)
    assert vector.narrow.tolist() == [
        (x + int.from_bytes(stream[4 * i : 4 * i + 4], "little")) % 2**32 for i, x in enumerate((5, 2**32 - 1, 0))
    ]
    assert vector.wide.tolist() == [
        (x + int.from_bytes(stream[12 + 8 * i : 20 + 8 * i], "little")) % 2**64 for i, x in enumerate((7, 2**64 - 1))
    ]
    add_mask(vector, seed, subtract=True)
    assert vector.narrow.tolist() == [5, 2**32 - 1, 0]
    assert vector.wide.tolist() == [7, 2**64 - 1]


def test_masks_longer_than_a_chunk_are_one_key_stream():
    vector = MaskWords.zeros(100_001, 70_003)
    seed = b"\x01" * 16
    add_mask(vector, seed)
    stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update(bytes(4 * 100_001 + 8 * 70_003))
    assert vector.narrow.tobytes() + vector.wide.tobytes() == stream


def test_neighbours_agree_on_a_mask_and_on_no_other():
    one, two = private_key(bytes(range(32))), private_key(bytes(range(1, 33)))
    key = pair_key(one, public_key(two), OCCASION, 4, 9)
    assert key == pair_key(two, public_key(one), OCCASION, 9, 4)
    others = [pair_key(one, public_key(two), occasion, 4, 9) for occasion in (Occasion(4, 1), Occasion(3, 2))]
    others += [pair_key(one, public_key(two), OCCASION, *devices) for devices in ((4, 8), (5, 9))]
    assert len({key, *others}) == 5


# ---------------------------------------------------------------- any survivors


@examples(25)
@given(data=st.data())
def test_any_survivors_that_suffice_give_the_exact_sum(data):
    num_devices = data.draw(st.integers(4, 9))
    wanted = data.draw(st.sampled_from([2, 4, 6]))
    group = Group.drawn(num_devices, wanted)
    survivors = data.draw(st.sets(st.integers(0, num_devices - 1), min_size=2))
    answering = data.draw(st.sets(st.sampled_from(sorted(survivors)), min_size=1))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    vectors = [
        MaskWords(rng.integers(0, 2**32, 5, np.uint32), rng.integers(0, 2**64, 3, np.uint64))
        for _ in range(num_devices)
    ]

    def enough(i: int, among: set[int]) -> bool:
        return len(set(group.graph[i].tolist()) & among) >= group.needed

    def recoverable() -> bool:
        """Everybody whose secret is wanted has enough neighbours that answer; those see enough neighbours left."""
        wanted_of = survivors | {i for i in range(num_devices) if set(group.graph[i].tolist()) & survivors}
        return all(enough(i, answering) for i in wanted_of) and all(enough(i, survivors) for i in answering)

    if not recoverable():
        with pytest.raises(SecureAggregationError):
            group.sum_of(vectors, survivors, answering)
        return
    total = group.sum_of(vectors, survivors, answering)
    narrow = sum(vectors[i].narrow.astype(object) for i in survivors)
    wide = sum(vectors[i].wide.astype(object) for i in survivors)
    assert total.narrow.tolist() == [int(x) % 2**32 for x in narrow]
    assert total.wide.tolist() == [int(x) % 2**64 for x in wide]


# ---------------------------------------------------------------- one vector says nothing


def test_a_masked_vector_looks_uniform_and_the_plain_one_does_not():
    group = Group.drawn(4, 2)
    plain = MaskWords(np.arange(40_000, dtype=np.uint32) % 7, np.arange(20_000, dtype=np.uint64) % 7)
    masked = group.masked(0, plain)

    def chi_square(vector: MaskWords) -> float:
        """Of the bytes against uniform; 255 degrees of freedom, so about 255 with a deviation of 22.6 if uniform."""
        counts = np.bincount(np.frombuffer(vector.narrow.tobytes() + vector.wide.tobytes(), np.uint8), minlength=256)
        expected = counts.sum() / 256
        return float(((counts - expected) ** 2 / expected).sum())

    assert chi_square(masked) < 255 + 6 * 22.6  # a false alarm in 10^9
    assert chi_square(plain) > 1e6
    assert (masked.narrow == plain.narrow).mean() < 0.001
    assert (masked.wide == plain.wide).mean() < 0.001


# ---------------------------------------------------------------- what devices refuse


def test_shares_that_were_changed_are_refused():
    group = Group.drawn(4, 2)
    giver = group.graph[0][0]
    place = list(group.graph[giver]).index(0)
    sealed = group.sealed[giver][place]
    assert len(sealed) == protocol.SEALED_BYTES
    for position in (0, 12, len(sealed) - 1):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(
            SecureAggregationError, match=f"device 10 refuses the shares of device {10 + giver}"
        ) as caught:
            protocol.received_shares(group.secrets[0], OCCASION, 10, group.neighbours[0][:1], [bytes(changed)])
        assert "\n" not in str(caught.value)
    with pytest.raises(SecureAggregationError, match="round 4, user group 1: device 10 refuses"):
        protocol.received_shares(group.secrets[0], Occasion(4, 1), 10, group.neighbours[0][:1], [sealed])


def test_both_shares_of_a_device_are_never_given():
    group = Group.drawn(5, 4)
    held = group.held(0)
    with pytest.raises(
        SecureAggregationError, match="round 3, user group 1: device 10 refuses: both shares of device 12"
    ):
        protocol.open_shares(held, OCCASION, 10, [11, 12, 13], [12], group.needed)
    opened = protocol.open_shares(held, OCCASION, 10, [11, 12, 13], [14], group.needed)
    assert {other: share for other, (_, share) in opened.items()} == {
        **{other: held[other].self_mask for other in (11, 12, 13)},
        14: held[14].mask_key,
    }


@pytest.mark.parametrize("number", _SMALL_ORDER)
@pytest.mark.parametrize("top_bit", [0, 1 << 255])
def test_a_public_key_without_secret_is_refused(number, top_bit):
    """A point of small order: the secret would be zero, whatever the other key."""
    secrets, key = protocol.Secrets.fresh(), (number | top_bit).to_bytes(32, "little")
    line = "round 3, user group 1: device 1 refuses the public key of device 2, which is not valid"
    with pytest.raises(SecureAggregationError, match=line):
        pair_key(private_key(secrets.channel_key), key, OCCASION, 1, 2)
    keys = np.frombuffer(key + secrets.public_keys()[0], np.uint8).reshape(2, 32)
    assert are_usable(keys).tolist() == [False, True]


def test_wrong_shares_give_no_wrong_sum():
    group = Group.drawn(4, 3)
    vectors = [words([1], [1])] * 4
    strangers = dict(enumerate(split(bytes(16), 3, group.needed), start=1))
    total = added(group.masked(i, vectors[i]) for i in (0, 1, 2))
    keys = {10 + i: secret.public_keys()[1] for i, secret in enumerate(group.secrets)}
    self_shares = {
        10 + i: dict(enumerate(split(group.secrets[i].self_seed, 3, group.needed), start=1)) for i in range(3)
    }
    masked = MaskedParties(OCCASION, (10, 11, 12), {13: (10, 11, 12)}, keys, group.needed)
    with pytest.raises(SecureAggregationError, match="the shares of device 13 give another key than it announced"):
        left_over(masked, self_shares, {13: strangers})
    right = dict(enumerate(split(group.secrets[3].mask_key_seed, 3, group.needed), start=1))
    assert without(total, left_over(masked, self_shares, {13: right})).wide.tolist() == [3]


@pytest.mark.parametrize("first", [1, 2, 5, 8])
def test_a_vector_in_parts_is_masked_as_a_whole_one(first):
    """Whatever the parts: the key stream goes on where it was, and no piece of it is used twice."""
    whole, seed = words([], range(9)), bytes(range(16))
    add_mask(whole, seed)
    parts = [words([], range(first)), words([], range(first, 9))]
    add_mask(parts[0], seed)
    add_mask(parts[1], seed, start=8 * first)
    assert np.concatenate([part.wide for part in parts]).tolist() == whole.wide.tolist()
    assert without(parts[1], [Mask(seed, added=True)], 8 * first).wide.tolist() == list(range(first, 9))


# ---------------------------------------------------------------- the graph


@examples(50)
@given(st.integers(2, 60), st.sampled_from([2, 4, 12, 30]), st.integers(0, 5))
def test_neighbours_are_mutual_distinct_and_as_many_as_wanted(num_devices, wanted, seed):
    graph = neighbour_graph(num_devices, wanted, np.random.default_rng(seed))
    k = num_neighbours(num_devices, wanted)
    assert graph.shape == (num_devices, k)
    for i, row in enumerate(graph.tolist()):
        assert len(set(row)) == k
        assert i not in row
        assert all(i in graph[j].tolist() for j in row)
    needed = answers_needed(k, 0.6)
    assert k / 2 < needed <= max(k, 1)
    assert 0.6 * k <= needed + 1e-9


# ---------------------------------------------------------------- the vector of a round

LAYOUT = VectorLayout(
    (Field("a", (2, 2), 32), Field("b", (2,), 64), Field("c", (1,), 32), Field("d", (3,), 64)), devices=3
)


def test_each_array_has_its_place_among_words_of_its_width():
    values = {"a": np.array([[1, -2], [3, 4]]), "b": np.array([7, -8]), "c": np.array([-5]), "d": np.array([1, 2, 3])}
    words = LAYOUT.words(values)
    assert words.narrow.view(np.int32).tolist() == [1, -2, 3, 4, -5]
    assert words.wide.view(np.int64).tolist() == [7, -8, 1, 2, 3]
    assert (LAYOUT.num_words, LAYOUT.num_bytes) == ((5, 5), 5 * 4 + 5 * 8)
    back = LAYOUT.values(words)
    assert {name: array.tolist() for name, array in back.items()} == {name: v.tolist() for name, v in values.items()}
    assert {array.dtype for array in back.values()} == {np.dtype(np.int64)}


def test_what_is_not_said_is_zero_and_moves_nothing():
    words = LAYOUT.words({"c": np.array([9]), "d": np.array([1, 2, 3])})
    assert words.narrow.tolist() == [0, 0, 0, 0, 9]
    assert words.wide.tolist() == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("bits", [32, 64])
def test_a_word_is_refused_as_soon_as_the_sum_might_not_fit(bits):
    alone = VectorLayout((Field("x", (1,), bits),), devices=1)
    assert alone.words({"x": np.array([2 ** (bits - 1) - 1])}) is not None  # all that a word holds
    layout = VectorLayout((Field("x", (1,), bits),), devices=3)
    most = (2 ** (bits - 1) - 1) // 3
    for value in (most, -most):
        assert layout.values(layout.words({"x": np.array([value])}))["x"].tolist() == [value]
        with pytest.raises(SecureAggregationError, match=f"x does not fit {bits} bits when 3 devices add up"):
            layout.words({"x": np.array([value + np.sign(value)])})
    empty = VectorLayout((Field("x", (0,), bits), Field("y", (1,), bits)), devices=3)
    assert empty.values(empty.words({"x": np.zeros(0, np.int64), "y": np.array([4])}))["y"].tolist() == [4]


def test_an_array_without_a_place_is_refused_by_its_name():
    with pytest.raises(SecureAggregationError, match="devices send 'extra', which has no place in a masked vector"):
        LAYOUT.words({"c": np.array([1]), "extra": np.array([1])})


def test_vectors_of_another_layout_are_not_read():
    with pytest.raises(AssertionError):
        LAYOUT.values(MaskWords.zeros(5, 6))


def test_words_are_narrow_only_where_no_sum_can_pass_them():
    # n updates of norm 1, a thousandth more and a unit of rounding each: 127 of them are below 2^31, 128 are not
    assert [sum_bits("auto", devices, 1.0) for devices in (1, 127, 128)] == [32, 32, 64]
    assert sum_bits("auto", 1, math.inf) == 64
    assert [sum_bits(bits, 10**6, 1.0) for bits in (32, 64)] == [32, 64]
    for devices, norm in ((127, 1.0), (10, 12.7), (1, 127.8), (3, 42.6)):
        if sum_bits("auto", devices, norm) == 32:  # then each word is within what the layout lets pass
            assert norm * FIXED_POINT <= (2**31 - 1) // devices
    # the edge, by the numbers: room for n words of 1.001 x norm x 2^24 + 1 below 2^31 - 1 - n
    norm = 1.0
    most = (2**31 - 1) / (1.001 * norm * FIXED_POINT + 2)
    assert [sum_bits("auto", math.floor(most), norm), sum_bits("auto", math.floor(most) + 1, norm)] == [32, 64]
    # without norm a word is one unit: two for each of 2^30 - 1 devices are below 2^31 - 1, those of 2^30 are not
    assert [sum_bits("auto", devices, 0.0) for devices in (2**30 - 1, 2**30)] == [32, 64]
    # a norm of one unit, 2^-24: 3.001 for each device
    most = math.floor((2**31 - 1) / 3.001)
    assert [sum_bits("auto", devices, 2.0**-24) for devices in (most, most + 1)] == [32, 64]


# ---------------------------------------------------------------- what a device moves, who must answer, who vanishes


def test_bytes_of_a_device_by_hand():
    # sealed: nonce 12, number 2, two shares of 16, tag 16 = 62
    # down, a neighbour: number 8, keys 64; number 8, sealed 62; number 8, what became of it 1 = 151
    # up: keys 64; a neighbour: number 8, sealed 62; number 8, number of the share 2, share 16 = 96
    assert DeviceBytes.from_sizes(1, 0) == DeviceBytes(151, 64 + 96, 0)
    assert DeviceBytes.from_sizes(10, 1000) == DeviceBytes(1510, 64 + 960 + 1000, 1000)


SCENARIO = {"name": "s", "question": "?", "data": {"name": "ml-100k"}}


def secure_scenario(**keys) -> Scenario:
    return Scenario.model_validate({**SCENARIO, "secure_aggregation": {"enabled": True, **keys}})


def test_who_must_answer_by_hand():
    scenario = secure_scenario(neighbours=10, threshold=0.6)
    assert needed_of(scenario, 100) == (6, 60)
    assert needed_of(scenario, 8) == (5, 5)  # seven neighbours: 4.2 of them, rounded up; 4.8 of eight devices


def test_devices_vanish_by_their_share_at_every_stage_alike():
    devices = np.arange(30_000)
    scenario = secure_scenario(dropout_share=0.3)
    stages = vanishing(scenario, 2, devices)
    counts = np.bincount(stages, minlength=4) / len(devices)
    assert counts == pytest.approx([0.7, 0.1, 0.1, 0.1], abs=5 * math.sqrt(0.21 / len(devices)))
    assert set(stages.tolist()) == {int(stage) for stage in DropoutStage}
    assert (vanishing(scenario, 2, devices[5:9]) == stages[5:9]).all()  # by identity, whoever else is asked
    later = vanishing(scenario, 3, devices)  # anew: others are lost, and those that are lost again at other stages
    assert ((later > 0) & (stages > 0)).mean() == pytest.approx(0.09, abs=0.01)
    again = (later > 0) & (stages > 0)
    assert (later == stages)[again].mean() == pytest.approx(1 / 3, abs=0.05)
    other = scenario.model_copy(update={"seed": scenario.seed + 1})
    assert (vanishing(other, 2, devices) != stages).any()
    assert not vanishing(secure_scenario(dropout_share=0.0), 2, devices).any()

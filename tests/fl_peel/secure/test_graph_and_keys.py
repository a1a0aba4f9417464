"""Who is whose neighbour, by hand; a derived key as published; what a device refuses at the edges."""

from itertools import combinations

import numpy as np
import pytest

from fl_peel.errors import SecureAggregationError
from fl_peel.secure import device_protocol as protocol
from fl_peel.secure.device_protocol import answers_needed, neighbour_graph, num_neighbours
from fl_peel.secure.keys import (
    KEY_BYTES,
    NONCE_BYTES,
    SEED_BYTES,
    SHARE_BYTES,
    TAG_BYTES,
    Occasion,
    combine,
    derived,
    fresh,
    mask_private_key,
    private_key,
    public_key,
    seal,
    split,
    unseal,
)
from fl_peel.secure.vector import MaskedParties, MaskWords, added, left_over

OCCASION = Occasion(3, 1)

# ---------------------------------------------------------------- the graph


def test_how_many_must_answer():
    for count, share, needed in (
        (4, 0.6, 3), (5, 0.6, 3), (5, 0.5, 3), (5, 0.1, 3), (6, 0.1, 4), (10, 0.6, 6), (10, 0.61, 7), (7, 0.9, 7),
        (1, 0.6, 1), (100, 0.07, 51), (10, 0.7, 7), (10, 1.0, 10),
    ):  # fmt: skip
        assert answers_needed(count, share) == needed
        assert isinstance(answers_needed(count, share), int)
    assert 0.55 * 100 > 55  # as doubles
    assert answers_needed(100, 0.55) == 55


def test_everybody_is_a_neighbour_where_there_are_no_more():
    assert [num_neighbours(devices, 4) for devices in (10, 5, 4, 1)] == [4, 4, 3, 0]
    graph = neighbour_graph(4, 6, np.random.default_rng(0))
    assert graph.tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert neighbour_graph(4, 3, np.random.default_rng(0)).tolist() == graph.tolist()


def test_neighbours_are_ascending_drawn_and_even():
    one, again, other = (neighbour_graph(30, 6, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (np.diff(one, axis=1) > 0).all()
    assert one.dtype == np.int64
    assert (one == again).all()
    assert (one != other).any()
    with pytest.raises(AssertionError, match="even number"):
        neighbour_graph(30, 5, np.random.default_rng(0))


def test_the_graph_stays_connected_while_fewer_than_k_leave():
    graph = neighbour_graph(10, 4, np.random.default_rng(3))
    for gone in combinations(range(10), 3):
        left = set(range(10)) - set(gone)
        reached, pending = set(), [min(left)]
        while pending:
            device = pending.pop()
            reached.add(device)
            pending += [other for other in graph[device].tolist() if other in left - reached]
        assert reached == left


# ---------------------------------------------------------------- keys


def test_keys_are_derived_as_published():
    # RFC 5869, test case 3
    assert derived(b"\x0b" * 22, b"", 42).hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


def test_a_key_is_bound_to_its_purpose():
    secret = bytes(range(32))
    assert derived(secret, b"a", 16) != derived(secret, b"b", 16)
    assert derived(secret, b"a", 16) == derived(secret, b"a", 32)[:16]
    seed = bytes(range(SEED_BYTES))
    assert public_key(mask_private_key(seed)) == public_key(private_key(derived(seed, b"fl-peel/mask-key", KEY_BYTES)))


def test_an_occasion_has_a_name_that_no_other_has():
    assert Occasion(3, 1).name("mask", 4, 9) == b"fl-peel/mask/3/1/4/9"
    two = (1, 11)
    kinds = [(purpose, devices) for purpose in ("mask", "shares") for devices in ((1, 11), (11, 1), ())]
    names = {Occasion(step, group).name(purpose, *who) for step in two for group in two for purpose, who in kinds}
    assert len(names) == 2 * 2 * 2 * 3
    assert str(Occasion(3, 1)) == "round 3, user group 1"
    assert str(Occasion(0, 1)) == "round 0, user group 1"
    assert str(Occasion(-2, -1)) == "stage 1, step 2"


def test_randomness_is_fresh():
    assert [len(fresh(n)) for n in (0, 16, 32)] == [0, 16, 32]
    assert fresh(32) != fresh(32)
    one, other = protocol.Secrets.fresh(), protocol.Secrets.fresh()
    assert [len(part) for part in (one.channel_key, one.mask_key_seed, one.self_seed)] == [
        KEY_BYTES,
        SEED_BYTES,
        SEED_BYTES,
    ]
    assert (
        len({one.channel_key, other.channel_key}) == len({one.self_seed, other.self_seed, one.mask_key_seed}) - 1 == 2
    )


def test_a_box_opens_for_whom_it_was_sealed_and_for_nothing_else():
    mine, theirs = private_key(bytes(range(32))), private_key(bytes(range(1, 33)))
    box = seal(mine, public_key(theirs), OCCASION, 4, 9, b"content")
    assert len(box) == NONCE_BYTES + len(b"content") + TAG_BYTES
    assert unseal(theirs, public_key(mine), OCCASION, 4, 9, box) == b"content"
    assert seal(mine, public_key(theirs), OCCASION, 4, 9, b"content") != box  # another nonce
    for occasion, sender, recipient in ((OCCASION, 9, 4), (OCCASION, 4, 8), (Occasion(3, 2), 4, 9)):
        with pytest.raises(SecureAggregationError, match=f"device {recipient} refuses the shares of device {sender}"):
            unseal(theirs, public_key(mine), occasion, sender, recipient, box)
    with pytest.raises(
        SecureAggregationError, match="round 3, user group 1: device 9 refuses the public key of device 4"
    ):
        unseal(theirs, bytes(KEY_BYTES), OCCASION, 4, 9, box)
    with pytest.raises(
        SecureAggregationError, match="round 3, user group 1: device 4 refuses the public key of device 9"
    ):
        seal(mine, bytes(KEY_BYTES), OCCASION, 4, 9, b"content")


# ---------------------------------------------------------------- shares and what devices refuse


def test_fewer_shares_than_needed_say_nothing_and_more_do_no_harm():
    secret = bytes(range(16, 32))
    shares = dict(enumerate(split(secret, 4, 2), start=1))
    assert {len(share) for share in shares.values()} == {SHARE_BYTES}
    assert len(set(shares.values())) == 4
    for some in ((1, 2), (4, 3), (1, 2, 3, 4)):
        assert combine({number: shares[number] for number in some}, 2) == secret
    assert combine({1: shares[1], 2: shares[3]}, 2) != secret  # under a wrong number


def neighbours(count):
    return [protocol.Neighbour(20 + i, *protocol.Secrets.fresh().public_keys()) for i in range(count)]


def test_more_than_half_must_open_a_secret_and_no_more_than_there_are():
    secrets = protocol.Secrets.fresh()
    for count, needed in ((4, 3), (4, 4), (5, 3), (5, 5), (1, 1)):
        sealed = protocol.share_secrets(secrets, OCCASION, 10, neighbours(count), needed)
        assert [len(box) for box in sealed] == [protocol.SEALED_BYTES] * count
    for count, needed in ((4, 2), (5, 2), (4, 5), (1, 0), (0, 1)):
        with pytest.raises(SecureAggregationError, match="shares would open a secret"):
            protocol.share_secrets(secrets, OCCASION, 10, neighbours(count), needed)
    with pytest.raises(SecureAggregationError, match="the server named it"):
        protocol.share_secrets(secrets, OCCASION, 21, neighbours(4), 3)
    with pytest.raises(SecureAggregationError, match="one neighbour twice"):
        protocol.share_secrets(secrets, OCCASION, 10, neighbours(1) * 2, 2)


def test_shares_are_numbered_from_one_in_the_order_of_the_neighbours():
    secrets, theirs = protocol.Secrets.fresh(), [protocol.Secrets.fresh() for _ in range(3)]
    sender = protocol.Neighbour(10, *secrets.public_keys())
    known = [protocol.Neighbour(20 + i, *one.public_keys()) for i, one in enumerate(theirs)]
    sealed = protocol.share_secrets(secrets, OCCASION, 10, known, 2)
    held = [
        protocol.received_shares(one, OCCASION, neighbour.device, [sender], [box])[0]
        for one, neighbour, box in zip(theirs, known, sealed, strict=True)
    ]
    assert [share.index for share in held] == [1, 2, 3]
    assert combine({share.index: share.mask_key for share in held}, 2) == secrets.mask_key_seed
    assert combine({share.index: share.self_mask for share in held}, 2) == secrets.self_seed


def test_a_vector_is_masked_as_soon_as_enough_neighbours_are_left_and_stays_as_it_was():
    secrets, plain = protocol.Secrets.fresh(), MaskWords.zeros(3, 2)
    masked = protocol.mask_vector(plain, secrets, OCCASION, 10, neighbours(3), 3)
    assert not plain.narrow.any()
    assert not plain.wide.any()
    assert masked.narrow.any()
    assert masked.wide.all()
    with pytest.raises(SecureAggregationError, match="only 2 neighbours are left, 3 must be"):
        protocol.mask_vector(plain, secrets, OCCASION, 10, neighbours(2), 3)


def test_a_device_counts_each_survivor_once():
    held = {device: protocol.HeldShares(device - 19, bytes(16), bytes(15) + b"\x01") for device in (20, 21, 22)}
    opened = protocol.open_shares(held, OCCASION, 10, [20, 21], [22], 2)
    assert opened == {20: (1, bytes(15) + b"\x01"), 21: (2, bytes(15) + b"\x01"), 22: (3, bytes(16))}
    refused = "round 3, user group 1: device 10 refuses: "
    with pytest.raises(SecureAggregationError, match=f"{refused}only 1 of its neighbours"):
        protocol.open_shares(held, OCCASION, 10, [20, 20], [22], 2)
    with pytest.raises(SecureAggregationError, match=f"{refused}it holds no shares of device 23"):
        protocol.open_shares(held, OCCASION, 10, [20, 21], [23], 2)


# ---------------------------------------------------------------- the server's part


def test_a_sum_leaves_what_it_is_made_of_alone():
    one, two = MaskWords(np.array([2**32 - 1], np.uint32), np.array([1], np.uint64)), MaskWords.zeros(1, 1)
    two.narrow[:], two.wide[:] = 2, 2**64 - 1
    for total in (added([one, two]), one + two):
        assert (total.narrow.tolist(), total.wide.tolist()) == ([1], [0])
    assert (one.narrow.tolist(), one.wide.tolist()) == ([2**32 - 1], [1])


def test_a_device_that_dropped_out_with_all_its_neighbours_leaves_no_mask():
    seeds = [bytes([number]) * 16 for number in (1, 2)]
    shares = {device: dict(enumerate(split(seed, 2, 2), start=1)) for device, seed in zip((10, 11), seeds, strict=True)}
    masked = MaskedParties(OCCASION, (10, 11), {12: (), 13: ()}, {}, 2)
    left = left_over(masked, shares, {})
    assert [(mask.seed, mask.added) for mask in left] == [(seeds[0], True), (seeds[1], True)]
    with pytest.raises(SecureAggregationError, match="0 shares of a secret came back, 2 are needed"):
        left_over(masked, {10: shares[10]}, {})
    with pytest.raises(SecureAggregationError, match="0 shares of a secret came back, 2 are needed"):
        left_over(MaskedParties(OCCASION, (10, 11), {12: (), 13: (10,)}, {}, 2), shares, {})

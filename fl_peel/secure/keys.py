"""Keys of one device for one round: agreement with a neighbour, messages sealed for it, and shares of secrets.

All of it is the package ``cryptography``: X25519 (RFC 7748), HKDF with SHA-256 (RFC 5869), AES-GCM. Every derived key
is bound to what it is for: the round, the user group, the two devices. Keys come from the operating system's
randomness, never from the run's seed: masks cancel exactly, so that no result depends on them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fl_peel.errors import SecureAggregationError

SEED_BYTES = 16
"""Bytes of a mask's seed, and of the seed of the key that agrees on masks: Shamir's scheme shares these in one piece.
"""
KEY_BYTES = 32
"""Bytes of an X25519 key, private or public."""
NONCE_BYTES, TAG_BYTES = 12, 16
_P = 2**255 - 19
_SMALL_ORDER = (
    0,
    1,
    _P - 1,
    _P,
    _P + 1,
    0x00B8495F16056286FDB1329CEB8D09DA6AC49FF1FAE35616AEB8413B7C7AEBE0,
    0x57119FD0DD4E22D8868E1C58C45C44045BEF839C55B1D0B1248C50A3BC959C5F,
)
"""Public keys that agree on the secret 0 with every other key (the u-coordinates of Curve25519's points of order 1, 2,
4 and 8, and what is the same modulo p)."""


COUNTS = 1 << 32
"""Number beyond those of all rounds."""


def exchange_number(server_round: int, *, counts: bool) -> int:
    """Return the number of a round's exchange, or of that in which owners are counted before it."""
    return COUNTS + server_round if counts else server_round


@dataclass(frozen=True)
class Occasion:
    """Purpose of keys and messages: one user group in one round. Steps of stage 1, before there are user groups, have
    the rounds -1, -2, ... of the group -1, and the count of owners before a round has an :func:`exchange_number` of its
    own, so that no key, dropout or neighbour is drawn for two occasions.
    """

    server_round: int
    group: int

    def __str__(self) -> str:
        """Return the name that errors use."""
        if self.server_round < 0:
            return f"stage 1, step {-self.server_round}"
        if self.server_round >= COUNTS:
            return f"owners of round {self.server_round - COUNTS}, user group {self.group}"
        return f"round {self.server_round}, user group {self.group}"

    def name(self, purpose: str, *devices: int) -> bytes:
        """Return a text that no other use of a key has."""
        return "/".join(["fl-peel", purpose, str(self.server_round), str(self.group), *map(str, devices)]).encode()


def fresh(num_bytes: int) -> bytes:
    """Return random bytes of the operating system."""
    return os.urandom(num_bytes)


def derived(secret: bytes, purpose: bytes, num_bytes: int) -> bytes:
    """Return a key derived from a secret (HKDF-SHA256), bound to its purpose."""
    return HKDF(SHA256(), num_bytes, salt=None, info=purpose).derive(secret)


def private_key(secret: bytes) -> X25519PrivateKey:
    """Return the private key with these bytes (32,)."""
    return X25519PrivateKey.from_private_bytes(secret)


def mask_private_key(seed: bytes) -> X25519PrivateKey:
    """Return the private key that agrees on masks, from its seed (16,), which is what gets shared."""
    return private_key(derived(seed, b"fl-peel/mask-key", KEY_BYTES))


def public_key(private: X25519PrivateKey) -> bytes:
    """Return the public key (32,) of a private one."""
    return private.public_key().public_bytes_raw()


def are_usable(keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which public keys (N, 32) are not of small order; the top bit does not count (RFC 7748, section 5)."""
    small = np.frombuffer(b"".join(number.to_bytes(KEY_BYTES, "little") for number in _SMALL_ORDER), np.uint8)
    masked = keys & np.array([0xFF] * (KEY_BYTES - 1) + [0x7F], np.uint8)
    same = (masked[:, None] == small.reshape(-1, KEY_BYTES)).all(axis=2)
    return np.asarray(~same.any(axis=1))


def agreed(
    private: X25519PrivateKey, other: bytes, occasion: Occasion, purpose: bytes, device: int, neighbour: int
) -> bytes:
    """Return the key (16,) that a device and its neighbour derive, each from its private key and the other's public one
    (32,).

    Raises:
        SecureAggregationError: ``other`` is no public key that one can agree with.
    """
    try:
        secret = private.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError as error:
        raise SecureAggregationError(
            f"secure aggregation, {occasion}: device {device} refuses the public key of device {neighbour}, which is "
            "not valid; the neighbour or the server changed it"
        ) from error
    return derived(secret, purpose, SEED_BYTES)


def pair_key(private: X25519PrivateKey, other: bytes, occasion: Occasion, one: int, two: int) -> bytes:
    """Return the seed (16,) of the mask that two neighbours share, the same for both."""
    return agreed(private, other, occasion, occasion.name("mask", min(one, two), max(one, two)), one, two)


def seal(
    private: X25519PrivateKey, other: bytes, occasion: Occasion, sender: int, recipient: int, content: bytes
) -> bytes:
    """Encrypt for a neighbour: nonce, ciphertext and tag, 28 bytes longer than ``content``."""
    name = occasion.name("shares", sender, recipient)
    nonce = fresh(NONCE_BYTES)
    key = agreed(private, other, occasion, name, sender, recipient)
    return nonce + AESGCM(key).encrypt(nonce, content, name)


def unseal(
    private: X25519PrivateKey, other: bytes, occasion: Occasion, sender: int, recipient: int, sealed: bytes
) -> bytes:
    """Decrypt the message that a neighbour sealed.

    Raises:
        SecureAggregationError: it is not what that neighbour sealed for this device, round and group.
    """
    name = occasion.name("shares", sender, recipient)
    try:
        key = agreed(private, other, occasion, name, recipient, sender)
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], name)
    except InvalidTag as error:
        raise SecureAggregationError(
            f"secure aggregation, {occasion}: device {recipient} refuses the shares of device "
            f"{sender}: they were changed on the way, or are of another round; look at who relays the messages"
        ) from error


SHARE_BYTES = 16


def split(secret: bytes, shares: int, needed: int) -> list[bytes]:
    """``shares`` shares (16,) of a secret (16,), numbered from 1 in this order; any ``needed`` of them give it back."""
    return [bytes(share) for _, share in Shamir.split(needed, shares, secret, False)]


def combine(shares: Mapping[int, bytes], needed: int, *, twice: bool = False) -> bytes:
    """The secret (16,) from shares by their number. twice: whether from the last as from the first of them, which costs
    as much again, and shows wrong ones.

    Raises:
        SecureAggregationError: there are fewer than ``needed``, or some are wrong.
    """
    if len(shares) < needed:
        raise SecureAggregationError(
            f"secure aggregation: {len(shares)} shares of a secret came back, {needed} are needed; "
            "the round is void; lower secure_aggregation.threshold or raise secure_aggregation.neighbours"
        )
    numbered = sorted(shares.items())
    secret = bytes(Shamir.combine(numbered[:needed], False))
    if twice and len(numbered) > needed and bytes(Shamir.combine(numbered[-needed:], False)) != secret:
        raise SecureAggregationError("secure aggregation: shares of a secret disagree; a device gave wrong ones")
    return secret

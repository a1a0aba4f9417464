"""Shamir's secret sharing of 16 bytes (CACM 1979), as pycryptodome has it: in GF(2^128)."""

from __future__ import annotations

from collections.abc import Mapping

from Crypto.Protocol.SecretSharing import Shamir

from fl_peel.errors import SecureAggregationError

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

"""Planted data: taste groups with worlds of items of their own, so that the right answer is known."""

from __future__ import annotations

import numpy as np

from fl_peel.data.interactions import Interactions, UserItems
from fl_peel.randomness import rng_for


def planted_interactions(
    seed: int,
    users_per_group: int,
    items_per_group: int,
    groups: int,
    per_user: int,
    *,
    noise: float = 0.0,
    exponent: float = 1.0,
    interleaved: bool = False,
) -> Interactions:
    """Make users of several taste groups, each group with a world of items that no other group likes.

    A user takes ``per_user`` different items. Each comes from the user's own world, or, with probability
    ``noise``, from the others'. Within a world the item of rank r = 0, 1, ... is drawn with a weight of
    (r + 1) ** -exponent, without repeats. There are no timestamps.

    Numbers: user u belongs to group u // users_per_group, item i is the one of rank i % items_per_group in
    world i // items_per_group. Interleaved: user u belongs to group u % groups, item i is the one of rank i
    // groups in world i % groups, so that ranges of neighbouring ids tell nothing about taste.

    A user's items depend on the seed, the user's number and the shape of the worlds alone: more users per
    group (with interleaved numbers) leave those already there unchanged.
    """
    num_users, num_items = groups * users_per_group, groups * items_per_group
    numbers = np.arange(num_items)
    world, rank = (numbers % groups, numbers // groups) if interleaved else np.divmod(numbers, items_per_group)
    log_weight = -exponent * np.log1p(rank)  # (I,)
    rows = []
    for user in range(num_users):
        rng = rng_for(seed, "planted", user)
        group = user % groups if interleaved else user // users_per_group
        num_foreign = int(rng.binomial(per_user, noise))
        # Adding Gumbel noise to log weights and taking the largest draws without repeats in that proportion.
        key = log_weight + rng.gumbel(size=num_items)  # (I,)
        by_key = np.argsort(-key)
        is_own = world[by_key] == group
        own, foreign = by_key[is_own][: per_user - num_foreign], by_key[~is_own][:num_foreign]
        rows.append(np.sort(np.concatenate([own, foreign])))
    indptr = np.arange(num_users + 1, dtype=np.int64) * per_user
    return Interactions("planted", UserItems(indptr, np.concatenate(rows).astype(np.int32)), num_items)

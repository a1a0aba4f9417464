"""Attacks on everything that was observed of a run: accomplices teach, the others are attacked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_peel.attacks import Accomplice, Attack, DeviceView, load_attack
from fl_peel.attacks.base import ITEM_SECRETS, checked_scores
from fl_peel.attacks.scoring import (
    Outcome,
    best_count_threshold,
    best_threshold,
    item_outcome,
    label_outcome,
    precision_recall_f1,
    squares,
)
from fl_peel.data.interactions import UserItems
from fl_peel.randomness import rng_for
from simulations.studies.audit.observer import Observer, WatchedDevices


def attacked(observer: Observer, names: Iterable[str], seed: int) -> dict[str, dict[str, Any]]:
    """Outcome of each attack by name, as in audit.json.

    advantage, advantage_low, advantage_high, auc, devices, candidates, secret; for items also precision, recall, f1 on
    all items that the device held, and random_f1, what guessing as many at random gives.
    """
    watched = observer.watched()
    views = [observer.view(device) for device in watched.devices.tolist()]
    return {name: _one(load_attack(name), watched, views, seed) for name in names}


def control(observer: Observer, seed: int) -> dict[str, Any]:
    """The outcome of knowing the server's ranking and nothing of the device: what the candidates themselves give away.

    It is no attack; where it is not near 0, the candidates are not balanced and no other figure means anything.
    """
    watched = observer.watched()
    views = [observer.view(device) for device in watched.devices.tolist()]
    return _one(_Ranking(), watched, views, seed)


class _Ranking(Attack):
    """Items the server ranks first."""

    name, secret = "ranking", "train items"

    def scores(self, view: DeviceView, candidates: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
        """Minus the row's place in what the server sent, in the rounds it sent it."""
        total = np.full(view.num_items, -2.0)
        for one in view.rounds:
            total[one.items] = -np.arange(len(one.items)) / max(len(one.items), 1)
        return total[candidates]


def _one(attack: Attack, watched: WatchedDevices, views: list[DeviceView], seed: int) -> dict[str, Any]:
    figures = (_items if attack.secret in ITEM_SECRETS else _labels)(attack, watched, views, seed)
    return {"secret": attack.secret, **figures}


def _items(attack: Attack, watched: WatchedDevices, views: list[DeviceView], seed: int) -> dict[str, Any]:
    secret, others = watched.splits.train, (watched.splits.validation, watched.splits.test)
    if attack.secret == "validation items":
        secret, others = watched.splits.validation, (watched.splits.train, watched.splits.test)
    has = _table(secret, watched.splits.num_items)
    # an attack on stage 1 may be after any item: devices are asked about all of them
    held = watched.on_device if attack.stage == "refinement" else np.ones_like(has)
    usable = held & ~np.logical_or.reduce([_table(part, watched.splits.num_items) for part in others])
    everything = [np.flatnonzero(row) for row in usable]  # items the device held and that are no other secret of its
    known = [Accomplice(views[i], everything[i], has[i, everything[i]]) for i in np.flatnonzero(watched.accomplices)]
    attack.learn(known, seed)
    scores = [checked_scores(attack, views[i], everything[i], seed) for i in range(len(views))]
    spread = np.full(usable.shape, np.nan)
    for i, items in enumerate(everything):
        spread[i, items] = scores[i]
    rng = rng_for(seed, "audit", "squares", attack.secret)
    parts = {}
    for name, chosen in (("known", watched.accomplices), ("attacked", ~watched.accomplices)):
        places = np.flatnonzero(chosen)
        triples = squares(list(has[places]), list(usable[places]), watched.groups[places], rng)
        who, item, member = (np.array(column) for column in zip(*triples, strict=True)) if triples else _NONE
        who = places[who.astype(np.int64)]
        parts[name] = (spread[who, item.astype(np.int64)], member.astype(np.bool_), who)
    threshold = best_threshold(*parts["known"][:2])
    outcome = item_outcome(*parts["attacked"], threshold, seed)
    natural = {name: _pooled(scores, has, everything, np.flatnonzero(chosen)) for name, chosen in _halves(watched)}
    call = best_count_threshold(*natural["known"]) if len(natural["known"][0]) else 0.0
    truth = natural["attacked"][1]
    precision, recall, f1 = precision_recall_f1(natural["attacked"][0] > call, truth)
    # guessing members at random at their own rate p: precision p, recall p
    rate = float(truth.mean()) if len(truth) else 0.0
    return _plain(outcome) | {"precision": precision, "recall": recall, "f1": f1, "random_f1": rate}


_NONE = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_))


def _halves(watched: WatchedDevices) -> list[tuple[str, NDArray[np.bool_]]]:
    return [("known", watched.accomplices), ("attacked", ~watched.accomplices)]


def _pooled(
    scores: list[NDArray[np.float64]], has: NDArray[np.bool_], items: list[NDArray[np.int64]], places: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    if not len(places):
        return np.zeros(0), np.zeros(0, np.bool_)
    return np.concatenate([scores[i] for i in places]), np.concatenate([has[i, items[i]] for i in places])


def _table(items: UserItems, num_items: int) -> NDArray[np.bool_]:
    table = np.zeros((items.num_users, num_items), np.bool_)
    table[items.users(), items.items] = True
    return table


def _labels(attack: Attack, watched: WatchedDevices, views: list[DeviceView], seed: int) -> dict[str, Any]:
    truth, count = (
        (watched.groups, watched.num_groups)
        if attack.secret == "user group"
        else (watched.classes, watched.num_classes)
    )
    candidates = np.arange(count)
    one_hot = truth[:, None] == candidates
    known = [Accomplice(views[i], candidates, one_hot[i]) for i in np.flatnonzero(watched.accomplices)]
    attack.learn(known, seed)
    places = np.flatnonzero(~watched.accomplices)
    scores = np.stack([checked_scores(attack, views[i], candidates, seed) for i in places])
    return _plain(label_outcome(scores, one_hot[places], seed))


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {
        "advantage": outcome.advantage,
        "advantage_low": outcome.low,
        "advantage_high": outcome.high,
        "auc": outcome.auc,
        "devices": outcome.devices,
        "candidates": outcome.candidates,
    }

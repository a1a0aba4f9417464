"""What training takes of a device: counted as a twin allocates it, bounded from below and above."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_peel.kernels import FIXED_POINT
from fl_peel.scenario.settings import LocalTraining
from fl_peel.training.group import train_group
from fl_peel.training.update import LocalWork, TrainingMemory
from tests.fl_peel.training.test_twins import small_world
from tests.helpers.examples import examples
from tests.helpers.lean_training import train_lean

INTS = st.integers(0, 400)


@examples(30)
@given(
    seed=st.integers(0, 10_000),
    epochs=st.integers(1, 3),
    batch_size=st.sampled_from([1, 3, 64]),
    num_negatives=st.integers(1, 4),
    loss=st.sampled_from(["bpr", "sampled-softmax"]),
    l2=st.sampled_from([0.0, 0.01]),
)
def test_the_lean_twin_trains_as_the_compiled_loop_does_in_the_bytes_that_are_counted(
    seed, epochs, batch_size, num_negatives, loss, l2
):
    _, ranked, cutoffs, users, train = small_world(seed, num_slices=1, precision="int8")
    how = LocalTraining(epochs, batch_size, num_negatives, 0.05, 0.03, l2, loss, 0.7)
    seeds = np.arange(len(cutoffs), dtype=np.uint64) + np.uint64(seed)
    takes = TrainingMemory(8, 1, how, 0)
    held, counts = ranked.num_present(cutoffs), train.counts()
    most = takes.most_bytes(held, counts)
    for i in range(len(cutoffs)):
        only = np.array([i])
        trained, update = train_group(LocalWork(ranked, cutoffs, users, train, seeds, how).select(only))
        user, mine, buffers = train_lean(ranked, int(cutoffs[i]), users[i], train.row(i), int(seeds[i]), how)
        np.testing.assert_allclose(user, trained[0], atol=2e-5)
        np.testing.assert_allclose(mine, update.sums / FIXED_POINT, atol=2e-5)
        assert buffers.num_bytes == most[i]
        # what training touched is what was copied
        copied = int((buffers.slot_of_row >= 0).sum())
        assert copied == update.touched_pieces[0]
        unused = sum(getattr(buffers, name)[copied:].nbytes for name in ("row", "place", "logit", "coefficient"))
        unused += sum(getattr(buffers, name)[copied:].nbytes for name in ("times", "batch", "copies"))
        taken = takes.taken_bytes(held[only], update.touched_pieces, counts[only])
        assert taken[0] == buffers.num_bytes - unused


def test_bytes_by_hand():
    """d = 64, whole rows, 128 negatives, a top list of 50; 100 train interactions, 60 rows held, 40 of them touched."""
    takes = TrainingMemory(64, 1, LocalTraining(num_negatives=128), 50)
    held, touched, interactions = (np.array([number]) for number in (60, 40, 100))
    fixed = 4 * 100 + 2 * 4 * 129 + 3 * 4 * 64 + 2 * 4 * 50
    assert takes.fixed_bytes(interactions).tolist() == [fixed]
    assert takes.taken_bytes(held, touched, interactions).tolist() == [fixed + 60 * 5 + 40 * (24 + 256)]
    assert takes.most_bytes(held, interactions).tolist() == [fixed + 60 * (5 + 24 + 256)]
    # two interactions with one negative each touch 4 rows at most, in one epoch
    few = replace(takes, how=LocalTraining(num_negatives=1), list_length=0)
    assert few.most_touched(held, np.array([2])).tolist() == [4]
    assert few.most_bytes(held, np.array([2])).tolist() == [4 * 2 + 2 * 4 * 2 + 3 * 256 + 60 * 5 + 4 * 280]
    # four slices: 8 bytes more a piece, whose copy has 16 columns; blocks clipped one by one: 16 more
    sliced = TrainingMemory(64, 4, LocalTraining(num_negatives=128, clip_blocks=True), 50)
    assert sliced.taken_bytes(held, touched, interactions).tolist() == [fixed + 60 * 29 + 40 * (24 + 64)]


@given(INTS, st.integers(0, 40_000), st.integers(1, 3), st.integers(1, 5), st.sampled_from([1, 4]))
@examples(200)
def test_the_most_that_fits_fits_and_one_more_does_not(interactions, allowed, epochs, negatives, slices):
    takes = TrainingMemory(8, slices, LocalTraining(epochs=epochs, num_negatives=negatives), 10)
    count, bound = np.array([interactions]), np.array([allowed])
    held = takes.most_held(bound, count)
    assert held[0] >= 0
    if held[0] > 0:
        assert takes.most_bytes(held, count)[0] <= allowed
    assert takes.most_bytes(held + 1, count)[0] > allowed


@pytest.mark.parametrize("touched", [0, 3, 17])
def test_what_is_taken_never_exceeds_the_most(touched):
    takes = TrainingMemory(8, 1, LocalTraining(num_negatives=2), 10)
    held, count = np.array([17]), np.array([touched // 3 + 1])
    least = np.minimum(np.array([touched]), takes.most_touched(held, count))
    assert takes.taken_bytes(held, least, count)[0] <= takes.most_bytes(held, count)[0]

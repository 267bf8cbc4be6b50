"""The laws of order: pure, complete, independent of workers and restarts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan import Plan, block, num_blocks, permute

sizes = st.integers(1, 3000)
seeds = st.integers(0, 2**32 - 1)


@given(num_samples=sizes, seed=seeds, epoch=st.integers(0, 2**40))
def test_every_epoch_holds_each_sample_once(num_samples: int, seed: int, epoch: int) -> None:
    order = permute(np.arange(num_samples), np.full(num_samples, epoch), num_samples=num_samples, seed=seed)
    assert sorted(order.tolist()) == list(range(num_samples))


def test_the_order_of_a_seed_never_changes() -> None:
    """A changed order would silently break the resume of every run in the world."""
    _, order = Plan(10, 4, seed=7).samples(np.arange(20))
    assert order.tolist() == FIRST_TWENTY


FIRST_TWENTY = [2, 7, 1, 3, 4, 0, 8, 5, 6, 9, 7, 2, 1, 9, 4, 0, 3, 5, 6, 8]


@given(num_samples=sizes, seed=seeds, batch=st.sampled_from([1, 2, 3, 4]), step=st.integers(0, 10_000))
def test_ranks_together_hold_the_global_batch(num_samples: int, seed: int, batch: int, step: int) -> None:
    plan = Plan(num_samples, 12, seed)
    for workers in (1, 2, 3, 4):
        parts = [plan.positions(step, step + batch, rank, workers).reshape(batch, -1) for rank in range(workers)]
        together = np.concatenate(parts, axis=1).reshape(-1)
        assert together.tolist() == list(range(step * 12, (step + batch) * 12))


@given(first=st.integers(0, 50), more=st.integers(0, 50), per_block=st.integers(1, 9), workers=st.integers(1, 4))
def test_blocks_cover_each_step_of_each_rank_once(first: int, more: int, per_block: int, workers: int) -> None:
    steps = first + more
    count = num_blocks(first, steps, steps_per_block=per_block, workers=workers)
    blocks = [block(i, first, steps, steps_per_block=per_block, workers=workers) for i in range(count)]
    for rank in range(workers):
        covered = [s for b in blocks if b.rank == rank for s in range(b.first_step, b.last_step)]
        assert covered == list(range(first, steps))


def test_the_order_looks_shuffled() -> None:
    order = permute(np.arange(1000), np.zeros(1000, np.int64), num_samples=1000, seed=0)
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1
    again = permute(np.arange(1000), np.ones(1000, np.int64), num_samples=1000, seed=0)
    assert np.mean(order == again) < 0.01


def test_a_billion_samples_cost_nothing_to_plan() -> None:
    epochs, samples = Plan(10**9, 8, seed=3).samples(np.array([5, 10**9 + 5]))
    assert epochs.tolist() == [0, 1]
    assert samples.max() < 10**9


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.global_batch = 8: must be a multiple of the 3 workers"):
        Plan(10, 8, 0).positions(0, 1, 0, 3)

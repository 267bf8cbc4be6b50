"""The laws of order: pure, complete, independent of workers and restarts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.loading.blocks import block, num_blocks
from pipeline.loading.sampler import PADDING, Sampler, evaluation_share, largest_share, oversampled, permute, share

sizes = st.integers(1, 3000)
seeds = st.integers(0, 2**32 - 1)


@given(num_samples=sizes, seed=seeds, epoch=st.integers(0, 2**40))
def test_every_epoch_holds_each_sample_once(num_samples: int, seed: int, epoch: int) -> None:
    order = permute(np.arange(num_samples), np.full(num_samples, epoch), num_samples=num_samples, seed=seed)
    assert sorted(order.tolist()) == list(range(num_samples))


def test_the_order_of_a_seed_never_changes() -> None:
    """A changed order would silently break the resume of every existing run."""
    assert Sampler(10, 4, seed=7).picks(np.arange(20)).place.tolist() == FIRST_TWENTY


FIRST_TWENTY = [2, 7, 1, 3, 4, 0, 8, 5, 6, 9, 7, 2, 1, 9, 4, 0, 3, 5, 6, 8]


@given(global_batch=st.integers(1, 70), data=st.data())
def test_shares_follow_one_another_and_differ_by_one_row_at_most(global_batch: int, data: st.DataObject) -> None:
    workers = data.draw(st.integers(1, global_batch))
    shares = [share(global_batch, rank, workers) for rank in range(workers)]
    ends = [first + number for first, number in shares]
    assert [first for first, _ in shares] == [0, *ends[:-1]]
    assert ends[-1] == global_batch
    numbers = [number for _, number in shares]
    assert (min(numbers), max(numbers)) == (global_batch // workers, largest_share(global_batch, workers))
    assert max(numbers) - min(numbers) <= 1


@given(global_batch=st.integers(1, 16), step=st.integers(0, 10_000), steps=st.integers(1, 4), data=st.data())
def test_ranks_together_hold_the_global_batch(global_batch: int, step: int, steps: int, data: st.DataObject) -> None:
    workers = data.draw(st.integers(1, global_batch))
    sampler = Sampler(100, global_batch, seed=0)
    parts = [sampler.positions(step, step + steps, rank, workers).reshape(steps, -1) for rank in range(workers)]
    assert {part.shape[1] for part in parts} == {largest_share(global_batch, workers)}
    together = np.concatenate(parts, axis=1).reshape(-1)
    assert together[together != PADDING].tolist() == list(range(step * global_batch, (step + steps) * global_batch))
    for part in parts:  # padding comes last, where `checked_batches` removes it
        assert (np.diff((part == PADDING).astype(int), axis=1) >= 0).all()


@given(first=st.integers(0, 50), more=st.integers(0, 50), per_block=st.integers(1, 9), workers=st.integers(1, 4))
def test_blocks_cover_each_step_of_each_rank_once(first: int, more: int, per_block: int, workers: int) -> None:
    steps = first + more
    count = num_blocks(first, steps, steps_per_block=per_block, workers=workers)
    blocks = [block(i, first, steps, steps_per_block=per_block, workers=workers) for i in range(count)]
    for rank in range(workers):
        covered = [s for b in blocks if b.rank == rank for s in range(b.first_step, b.last_step)]
        assert covered == list(range(first, steps))


@given(first=st.integers(0, 20), more=st.integers(0, 50), per_block=st.integers(1, 9), workers=st.integers(1, 9),
       global_batch=st.integers(9, 20))  # fmt: skip
def test_ray_data_deals_each_rank_its_own_blocks(first: int, more: int, per_block: int, workers: int, global_batch: int) -> None:
    """Ray Data gives each block in turn to the output with the fewest rows so far; ties go to the first output."""
    sampler, outputs = Sampler(100, global_batch, seed=0), [0] * workers
    for index in range(num_blocks(first, first + more, steps_per_block=per_block, workers=workers)):
        made = block(index, first, first + more, steps_per_block=per_block, workers=workers)
        assert outputs.index(min(outputs)) == made.rank
        outputs[made.rank] += len(sampler.positions(made.first_step, made.last_step, made.rank, workers))


def test_the_order_looks_shuffled() -> None:
    order = permute(np.arange(1000), np.zeros(1000, np.int64), num_samples=1000, seed=0)
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1
    again = permute(np.arange(1000), np.ones(1000, np.int64), num_samples=1000, seed=0)
    assert np.mean(order == again) < 0.01


def test_a_billion_samples_cost_nothing_to_order() -> None:
    picks = Sampler(10**9, 8, seed=3).picks(np.array([5, 10**9 + 5]))
    assert picks.epoch.tolist() == [0, 1]
    assert picks.place.max() < 10**9


def test_eight_rows_on_three_and_on_five_workers() -> None:
    assert [share(8, rank, 3) for rank in range(3)] == [(0, 2), (2, 3), (5, 3)]
    assert [share(8, rank, 5) for rank in range(5)] == [(0, 1), (1, 2), (3, 1), (4, 2), (6, 2)]


def test_a_worker_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.global_batch = 8: fewer images than the 9 workers \(lower train\.workers\)"):
        share(8, 0, 9)


def test_camvid_sees_each_sample_exactly_once_an_epoch() -> None:
    places = Sampler(367, 8, seed=0).picks(np.arange(5 * 367)).place
    assert np.bincount(places, minlength=367).tolist() == [5] * 367


def test_the_first_blocks_are_short_and_then_full() -> None:
    sizes = [block(i, 10, 100, steps_per_block=6, workers=1) for i in range(6)]
    assert [(b.first_step, b.last_step) for b in sizes] == [(10, 11), (11, 13), (13, 17), (17, 23), (23, 29), (29, 35)]


@given(
    num_samples=st.integers(20, 500),
    rare=st.integers(1, 20),
    weights=st.lists(st.floats(0.01, 3), min_size=1, max_size=3),
    seed=seeds,
    epoch=st.integers(0, 1000),
)
def test_oversampling_keeps_the_epoch_and_gives_each_class_its_share(
    num_samples: int, rare: int, weights: list[float], seed: int, epoch: int
) -> None:
    images = dict.fromkeys(range(len(weights)), rare)
    sampler = Sampler(num_samples, 4, seed, oversampled(num_samples, images, dict(enumerate(weights))))
    picks = sampler.picks(epoch * num_samples + np.arange(num_samples))
    drawn = np.bincount(picks.stream, minlength=1 + len(weights))
    assert drawn.sum() == num_samples
    assert drawn[1:].tolist() == [int(num_samples * weight / (1 + sum(weights))) for weight in weights]
    for number, stream in enumerate(sampler.streams):
        places = picks.place[picks.stream == number]
        assert ((places >= 0) & (places < stream.num_images)).all()


@given(num_samples=st.integers(5, 60), rare=st.integers(1, 9), weight=st.floats(0.1, 4), seed=seeds)
def test_every_stream_goes_through_all_its_images_before_any_comes_again(
    num_samples: int, rare: int, weight: float, seed: int
) -> None:
    sampler = Sampler(num_samples, 4, seed, oversampled(num_samples, {3: rare}, {3: weight}))
    picks = sampler.picks(np.arange(12 * num_samples))
    for number, stream in enumerate(sampler.streams):
        mine = picks.stream == number
        visits = set(zip(picks.epoch[mine].tolist(), picks.place[mine].tolist(), strict=True))
        assert len(visits) == mine.sum(), "a visit occurs twice"
        whole = int(mine.sum()) // stream.num_images
        assert {(e, p) for e in range(whole) for p in range(stream.num_images)} <= visits


@given(num_samples=st.integers(5, 300), seed=seeds, at=st.integers(0, 10_000))
def test_the_order_with_oversampling_is_a_function_of_the_position_alone(num_samples: int, seed: int, at: int) -> None:
    sampler = Sampler(num_samples, 4, seed, oversampled(num_samples, {0: 3, 1: 2}, {0: 0.5, 1: 0.25}))
    whole = sampler.picks(np.arange(at, at + 50))
    for i in range(0, 50, 7):
        assert [int(part[0]) for part in sampler.picks(np.array([at + i]))] == [int(part[i]) for part in whole]


def test_a_class_that_no_image_contains_cannot_be_oversampled() -> None:
    with pytest.raises(ValueError, match=r"data\.oversample: no training image contains class 4"):
        oversampled(10, {4: 0}, {4: 0.5})


@given(num_images=st.integers(0, 200), workers=st.integers(1, 9))
def test_evaluation_shares_hold_every_image_once_and_are_equally_long(num_images: int, workers: int) -> None:
    shares = [evaluation_share(num_images, rank, workers) for rank in range(workers)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(i for share in shares for i in share if i >= 0) == list(range(num_images))


def test_ten_images_on_three_workers() -> None:
    assert [evaluation_share(10, rank, 3) for rank in range(3)] == [[0, 3, 6, 9], [1, 4, 7, -1], [2, 5, 8, -1]]

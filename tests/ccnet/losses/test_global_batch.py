"""The k-th smallest value, alone and over two workers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ccnet.losses.global_batch import kth_smallest

numbers = st.one_of(st.floats(0, 1, width=32), st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.5]), st.floats(0, width=32))


@settings(deadline=None)
@given(st.lists(st.tuples(numbers, st.booleans()), min_size=1, max_size=40), st.data())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kth_smallest_is_that_of_the_sorted_values(dtype, pairs, data):
    values = torch.tensor([value for value, _ in pairs], dtype=dtype)
    valid = torch.tensor([valid for _, valid in pairs])
    k = data.draw(st.integers(0, len(pairs)))
    value, count = kth_smallest(values, valid, k)
    assert count == valid.sum()
    if 0 < k <= count:
        assert value == values[valid].sort().values[k - 1]


def test_with_k_0_the_value_is_0():
    assert kth_smallest(torch.tensor([0.25, 0.5]), torch.tensor([True, True]), 0)[0] == 0


def test_nan_is_larger_than_all_other_values():
    values = torch.tensor([float("nan"), 0.5, -float("nan")])
    assert kth_smallest(values, torch.ones(3, dtype=torch.bool), 1)[0] == 0.5
    assert kth_smallest(values, torch.ones(3, dtype=torch.bool), 2)[0].isnan()


def test_two_workers_with_different_numbers_of_values_find_the_same_as_one(workers):
    for worker in [workers[0], *workers[1]]:
        assert worker["smallest"] == {"value": torch.tensor(3.0), "count": torch.tensor(6)}

"""Parts of the training loop that can be tested alone."""

from pathlib import Path

import pytest
import torch

from pipeline.training.loop import replaced_in_all
from tests.support.own_data import config

CPU = torch.device("cpu")


def test_replaced_samples_are_counted_and_stop_the_run_past_the_number_allowed(tmp_path: Path) -> None:
    assert replaced_in_all(config(tmp_path), 0, CPU) == 0
    assert replaced_in_all(config(tmp_path, max_skipped=3), 3, CPU) == 3
    with pytest.raises(RuntimeError, match=r"4 training samples .* were replaced, data\.max_skipped = 3"):
        replaced_in_all(config(tmp_path, max_skipped=3), 4, CPU)

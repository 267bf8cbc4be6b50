"""Steps that fail: skipped steps, checked one step late and counted; and steps that run out of memory."""

import json
import logging
from pathlib import Path

import pytest
import torch

from ccnet.step import StepResult
from pipeline.config.load import load
from pipeline.fault_tolerance.failures import NotFinite, OutOfMemory
from pipeline.fault_tolerance.step_failures import MICRO_BATCH, SkippedSteps, noted_micro_batch, smaller_passes
from pipeline.storage.store import Store


class Flag:
    """Plays `applied` on a device; notes when it is read."""

    def __init__(self, value):
        self.value, self.read = value, False

    def __bool__(self):
        self.read = True
        return self.value


def result(applied):
    nan = torch.tensor(float("nan"), dtype=torch.float64)
    return StepResult({"loss": nan}, nan, applied)


def test_a_step_is_checked_when_the_next_one_is_under_way():
    skipped_steps, first, second = SkippedSteps(limit=3, total=0), Flag(True), Flag(True)
    skipped_steps.record(0, 0.1, result(first))
    assert not first.read
    skipped_steps.record(1, 0.1, result(second))
    assert (first.read, second.read) == (True, False)
    skipped_steps.check()
    assert second.read


def test_each_skipped_step_is_logged_and_the_total_continues(caplog):
    skipped_steps = SkippedSteps(limit=3, total=5)
    with caplog.at_level(logging.WARNING):
        for step, applied in enumerate([True, False, False, True, False]):
            skipped_steps.record(step, 0.1, result(applied))
        skipped_steps.check()
        skipped_steps.check()
    assert skipped_steps.total == 8
    messages = [record.message for record in caplog.records]
    assert [line.split(":")[1].strip() for line in messages] == ["step 1", "step 2", "step 4"]
    assert [line[-12:] for line in messages] == ["(1 in a row)", "(2 in a row)", "(1 in a row)"]


def test_too_many_in_a_row_are_refused_with_the_last_steps_figures():
    skipped_steps = SkippedSteps(limit=2, total=0)
    skipped_steps.record(6, 0.1, result(False))
    skipped_steps.record(7, 0.25, result(False))
    with pytest.raises(NotFinite, match=r"^2 steps in a row .* step 7: loss nan, gradient norm nan, learning rate 0\.25"):
        skipped_steps.check()


def short_of_memory(store: Store, micro_batch: int | None) -> None:
    """A step of five images for which torch has no memory."""
    config = load("jobs/configs/demo.yaml", ["train.workers=1", "train.global_batch=5", "data.crop_size=17"])
    with smaller_passes(store, config, micro_batch, step=7):
        torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize(("used", "then"), [(None, 3), (3, 2), (2, 1)])
def test_half_as_many_images_a_pass_are_noted_for_the_next_attempt(tmp_path: Path, used: int | None, then: int) -> None:
    store, words = Store(str(tmp_path)), f"{used or 5} images a pass do not fit at step 7; the next attempt takes {then}"
    with pytest.raises(OutOfMemory, match=words) as raised:
        short_of_memory(store, used)
    assert raised.value.smaller
    assert json.loads(store.read(MICRO_BATCH)) == {"micro_batch": then, "step": 7}
    assert noted_micro_batch(store) == then


@pytest.mark.parametrize(
    "note", [b"", b"\xff{", b"[]", b"{}", b'{"micro_batch": 0}', b'{"micro_batch": "2"}', b'{"micro_batch": true}']
)
def test_a_damaged_note_is_named_and_not_used(tmp_path: Path, note: bytes, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(str(tmp_path))
    store.write(MICRO_BATCH, note)
    assert noted_micro_batch(store) is None
    [message] = caplog.messages
    assert message.startswith(f"{tmp_path}/{MICRO_BATCH} is damaged and not used (")
    assert store.read(MICRO_BATCH) == note


def test_when_one_image_does_not_fit_the_fix_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match=r"one image of \(17, 17\) does not fit: lower data.crop_size, or .*bf16") as raised:
        short_of_memory(Store(str(tmp_path)), 1)
    assert not raised.value.smaller
    assert noted_micro_batch(Store(str(tmp_path))) is None


def test_another_error_of_a_step_is_passed_on(tmp_path: Path) -> None:
    config = load("jobs/configs/demo.yaml")
    with pytest.raises(RuntimeError, match="negative label"), smaller_passes(Store(str(tmp_path)), config, None, step=7):
        raise RuntimeError("negative label")
    assert noted_micro_batch(Store(str(tmp_path))) is None

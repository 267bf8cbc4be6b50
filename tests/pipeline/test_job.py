"""What is checked before a run takes a worker."""

from typing import Any

from pipeline.job import protocol_change
from pipeline.loading import parse
from pipeline.tune import concurrent_trials


def config(**train: Any) -> Any:
    return parse(
        {
            "name": "t",
            "storage": {"path": "s3://bucket"},
            "data": {"name": "g", "layout": "generated", "crop_size": 65},
            "model": {"recurrence": 2},
            "train": {"workers": 2, "global_batch": 8} | train,
        }
    )


def test_trials_at_a_time_follow_cpus_and_gpus() -> None:
    assert concurrent_trials(config(), {"CPU": 2}) == 1
    assert concurrent_trials(config(), {"CPU": 16}) == 10
    assert concurrent_trials(config(), {"CPU": 16, "GPU": 4}) == 2
    assert concurrent_trials(config(), {"CPU": 1}) == 1


def test_changed_data_cannot_go_on_under_the_same_name() -> None:
    progress = {"step": 40, "score": {"protocol": {"data_fingerprint": "a", "image_scale": 1.0}}}
    assert protocol_change(progress, {"data_fingerprint": "a", "image_scale": 1.0}) is None
    said = protocol_change(progress, {"data_fingerprint": "b", "image_scale": 1.0})
    assert said is not None
    assert "at step 40 data_fingerprint was 'a' and is 'b'" in said
    assert "(name=...)" in said


def test_what_an_older_checkpoint_did_not_record_is_no_change() -> None:
    progress = {"step": 40, "score": {"protocol": {"data_fingerprint": "a"}}}
    assert protocol_change(progress, {"data_fingerprint": "a", "boundary_dilation_ratio": 0.02}) is None

"""What is checked before a run takes a worker."""

from typing import Any

from pipeline.job import cpu_shortage, cpus_needed, protocol_change
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


def test_a_run_needs_its_workers_and_two_data_tasks() -> None:
    assert cpus_needed(config()) == 2 * 0.5 + 2 * 0.25


def test_too_few_cpus_are_named_with_the_setting_that_fits() -> None:
    assert cpu_shortage(config(), 2) is None
    said = cpu_shortage(config(cpus_per_worker=1.0), 2)
    assert said is not None
    assert "train.workers = 2: 2.5 CPUs are needed" in said
    assert "(try train.cpus_per_worker=0.75)" in said


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

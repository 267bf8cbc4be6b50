"""What is checked before a run takes a worker."""

from typing import Any

from pipeline.job import cpu_shortage, cpus_needed, mining_doubt, protocol_change, weights_mistake
from pipeline.loading import override, parse
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


def test_what_an_older_checkpoint_did_not_record_is_no_change() -> None:
    progress = {"step": 40, "score": {"protocol": {"data_fingerprint": "a"}}}
    assert protocol_change(progress, {"data_fingerprint": "a", "boundary_dilation_ratio": 0.02}) is None


def test_mining_that_would_keep_every_pixel_is_said_before_the_run() -> None:
    said = mining_doubt(override(config(), {"loss.ohem": {}}))
    assert said == (
        "loss.ohem.min_kept = 100000: no fewer than the global batch has, which makes OHEM plain cross-entropy; "
        "set less than 32768, or leave OHEM out"
    )
    assert mining_doubt(override(config(), {"loss.ohem.min_kept": 10_000})) is None
    assert mining_doubt(config()) is None


def test_class_weights_of_another_number_are_a_mistake() -> None:
    said = weights_mistake(override(config(), {"loss.class_weights": [1, 2]}), 3)
    assert said == "loss.class_weights has 2 values: g has 3 classes, give one each"
    assert weights_mistake(override(config(), {"loss.class_weights": [1, 2]}), 2) is None

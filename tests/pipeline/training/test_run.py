"""What is checked before a run takes a worker."""

import logging
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.load import override, parse
from pipeline.data.prepare import prepare
from pipeline.errors import ConfigError
from pipeline.training.run import changes, open_job
from pipeline.tuning.trials import concurrent_trials


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
    assert concurrent_trials(config(), {"CPU": 16}) == 8
    assert concurrent_trials(config(), {"CPU": 16, "GPU": 4}) == 2
    assert concurrent_trials(config(), {"CPU": 1}) == 1


PROTOCOL = {"data_fingerprint": "a", "image_scale": 1.0}


def progress(made: Any, **recorded: Any) -> dict[str, Any]:
    return {"step": 40, "config": made.record(), "protocol": PROTOCOL} | recorded


def test_changed_data_cannot_go_on_in_the_same_run() -> None:
    made = config()
    assert changes(progress(made), made, PROTOCOL) is None
    said = changes(progress(made), made, PROTOCOL | {"data_fingerprint": "b"})
    assert said is not None
    assert "at step 40 data_fingerprint was 'a' and is 'b'" in said
    assert "(name=...)" in said


def test_changed_settings_are_named_with_both_values_and_the_number_of_workers_may_change() -> None:
    before = progress(config())
    assert changes(before, config(workers=4, validate_every=7), PROTOCOL) is None
    said = changes(before, override(config(global_batch=16), {"seed": 3, "model.recurrence": 1}), PROTOCOL)
    assert said is not None
    for change in ("seed was 0 and is 3", "train.global_batch was 8 and is 16", "model.recurrence was 2 and is 1"):
        assert change in said


def test_what_an_older_checkpoint_did_not_record_is_no_change() -> None:
    made = config()
    older = progress(made, protocol={"data_fingerprint": "a"})
    assert changes(older, made, {"data_fingerprint": "a", "boundary_dilation_ratio": 0.02}) is None


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.", r"ignore::FutureWarning:ray\.")
def test_a_run_starts_by_asking_the_doctor(tmp_path: Path, local_ray: None, caplog: pytest.LogCaptureFixture) -> None:
    clean = override(
        config(),
        {
            "storage.path": str(tmp_path),
            "tracking.uri": f"sqlite:///{tmp_path}/mlflow.db",
            "data.generated": {"num_train": 4, "num_val": 2, "size": 65},
        },
    )
    wrong = {"loss.class_weights": [1, 2], "train.cpus_per_worker": 1.0, "model.weights": f"{tmp_path}/no.pth"}
    prepare(clean)
    with pytest.raises(ConfigError) as raised, caplog.at_level(logging.WARNING, "pipeline.training.run"):
        open_job(override(clean, wrong | {"loss.ohem": {}}))
    assert raised.value.mistakes == [
        "loss.class_weights has 2 values: g has 6 classes (give one each)",
        "train.workers = 2: 3 CPUs are needed (workers x 1 + 2 data tasks x 0.5), the cluster has 2 (train.cpus_per_worker=0.5)",
        f"model.weights = {tmp_path}/no.pth: no such file",
    ]
    assert any(message.startswith("warning: loss.ohem.min_kept = 100000: no fewer than") for message in caplog.messages)

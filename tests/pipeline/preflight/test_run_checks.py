"""Checks whether a run may start or resume."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.load import override, parse
from pipeline.data.manifest import Manifest
from pipeline.preflight import run_checks
from pipeline.preflight.findings import Finding
from pipeline.storage.lease import FREE, LEASE, Holder, held
from pipeline.storage.store import Store
from pipeline.tracking.provenance import environment
from tests.support.checkpoints import saved

STORE = Store("/runs/t")
MANIFEST = Manifest("g", "generated", (), (), {}, {}, True, "", fingerprint="a")
PROTOCOL = {"data_fingerprint": "a", "image_scale": 1.0, "boundary_dilation_ratio": 0.02}


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


def newest(made: Any, **recorded: Any) -> dict[str, Any]:
    return {"step": 40, "config": made.record(), "protocol": PROTOCOL} | recorded


def test_changed_data_cannot_be_resumed_from() -> None:
    made = config()
    assert run_checks.resume(made, MANIFEST, STORE, newest(made)) == []
    (found,) = run_checks.resume(made, MANIFEST, STORE, newest(made, protocol=PROTOCOL | {"data_fingerprint": "b"}))
    assert found == Finding(
        "error",
        "/runs/t/: at step 40 data_fingerprint was 'b' and is 'a'; a run cannot change these",
        "give the new run another name (name=...)",
    )
    (found,) = run_checks.resume(override(made, {"evaluate.scale": 0.5}), MANIFEST, STORE, newest(made))
    assert "image_scale was 1.0 and is 0.5" in found.what


def test_changed_settings_are_named_with_both_values_and_the_number_of_workers_may_change() -> None:
    before = newest(config())
    assert run_checks.resume(config(workers=4, validate_every=7), MANIFEST, STORE, before) == []
    other = override(config(global_batch=16), {"seed": 3, "model.recurrence": 1, "train.resume": "t-0123abcd"})
    (found,) = run_checks.resume(other, MANIFEST, STORE, before)
    for change in ("seed was 0 and is 3", "train.global_batch was 8 and is 16", "model.recurrence was 2 and is 1"):
        assert change in found.what
    assert found.fix == "set them back, or leave out train.resume"


def test_a_run_to_resume_that_does_not_exist_is_an_error() -> None:
    assert run_checks.resume(config(), MANIFEST, STORE, None) == []
    (found,) = run_checks.resume(override(config(), {"train.resume": "t-0123abcd"}), MANIFEST, STORE, None)
    assert found.line == "train.resume = t-0123abcd: no checkpoint in /runs/t/ (correct it, or leave it out)"


def test_mlflow_out_of_reach_is_an_error(tmp_path: Path) -> None:
    assert run_checks.tracking(override(config(), {"tracking.uri": f"sqlite:///{tmp_path}/mlflow.db"})) == []
    (found,) = run_checks.tracking(override(config(), {"tracking.uri": "http://127.0.0.1:1"}))
    assert found.level == "error"
    assert found.what.startswith("tracking.uri = http://127.0.0.1:1: no MLflow server answers there")


def test_a_run_whose_checkpoints_cannot_be_read_does_not_start(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    assert run_checks.newest(store) == (None, [])
    for step in (10, 20):
        saved(store, tmp_path, step)
    store.write("step-000020/model.safetensors", b"cut")
    progress, (found,) = run_checks.newest(store)
    assert progress is not None
    assert progress["step"] == 10
    assert found.level == "warning"
    assert found.what.startswith(f"checkpoint skipped: {store.root}/step-000020/model.safetensors: 3 bytes do not match")
    assert found.what.endswith(f"; loaded instead: {store.root}/step-000010")
    store.write("step-000010/manifest.json", b"{}")
    progress, (found,) = run_checks.newest(store)
    assert (progress, found.level) == (None, "error")
    assert "none that can be used" in found.what


def test_other_code_than_before_is_a_warning_unless_the_run_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCNET_COMMIT", "b2")
    made = config()
    before = environment() | {"commit": "a1", "torch": "1.0", "devices": "8 x GPU"}
    (found,) = run_checks.resume(made, MANIFEST, STORE, newest(made, environment=before))
    assert found.level == "warning"
    assert found.what == (
        f"/runs/t/: made with other code up to step 40: commit was a1 and is b2; torch was 1.0 and is {environment()['torch']}"
    )
    for same in (environment(), {}, environment() | {"devices": "8 x GPU"}):
        assert run_checks.resume(made, MANIFEST, STORE, newest(made, environment=same)) == []
    assert run_checks.resume(made, MANIFEST, STORE, newest(made, environment=before, step=made.train.steps)) == []


def test_a_record_of_another_program_is_an_error() -> None:
    (found,) = run_checks.resume(config(), MANIFEST, STORE, {"step": 40})
    assert found.what == "/runs/t/: the checkpoint of step 40 lacks config and protocol: another program wrote it"


def test_a_run_that_another_process_trains_is_an_error_and_one_that_cannot_be_looked_up_a_warning(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert run_checks.in_use(store) == []
    with held(store):
        (found,) = run_checks.in_use(store)
    assert (found.level, found.fix) == ("error", FREE)
    assert found.what.startswith(f"{tmp_path}: in use by process {os.getpid()} on host ")
    assert run_checks.in_use(store) == []
    store.write(LEASE, json.dumps(Holder("b", "gpu-2", 4711, "m", "9", "2026-11-29 05:00:00 UTC")._asdict()).encode())
    (found,) = run_checks.in_use(store)
    assert found.line == (
        f"{tmp_path}: held by process 4711 on host gpu-2 since 2026-11-29 05:00:00 UTC, which cannot be looked up from here "
        "(jobs.train waits up to 60 s for a sign of it)"
    )

"""All verbs as users run them: real commands, a real cluster, a real tracking server and object store."""

import hashlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

import ccnet
from pipeline.data.manifest import open_data
from pipeline.fault_tolerance.goodput import ABOUT, PARTS
from pipeline.images import codec
from pipeline.loading.samples import open_samples
from pipeline.storage.store import open_store
from tests.support import browser
from tests.support.tiny_job import CONFIG, ROOT, STEPS, TINY, Command, history, only_run, tiny

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

ALONE = ("train.workers=1", "name=alone")

Finished = dict[str, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def trained(prepared: str, stack: dict[str, str]) -> str:
    """The log of a training on two workers, started by Ray's own submit command."""
    ray = Path(sys.executable).with_name("ray")
    words = [ray, "job", "submit", "--working-dir", ".", "--", "python", "-m", "jobs.train", CONFIG, *TINY]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | stack, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def followed(trained: str, command: Command, client: MlflowClient) -> Finished:
    """Verb -> its finished command after the training. All start at once, because starting takes most of their time.

    `alone` trains with one worker.
    """
    words = {
        "train": (),
        "evaluate": (f"evaluate.checkpoint={only_run(client, tiny()).info.run_id}",),
        "predict": ("predict.limit=2",),
        "export": (),
    }
    with ThreadPoolExecutor(len(words) + 1) as pool:
        running = {verb: pool.submit(command, verb, *overrides) for verb, overrides in words.items()}
        running["alone"] = pool.submit(command, "train", *ALONE, "tracking.register_as=null")
        return {verb: done.result() for verb, done in running.items()}


@pytest.fixture
def access(stack: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets this process reach the stack's store."""
    for key, value in stack.items():
        monkeypatch.setenv(key, value)


def test_preparing_again_does_nothing_twice(prepared: str, command: Command) -> None:
    assert "train" in prepared
    assert "already prepared" in command("prepare").stderr


def test_ray_job_submit_trains_and_ends_with_the_table(trained: str, access: None) -> None:
    assert f"step {STEPS}/{STEPS}" in trained
    assert "data wait" in trained
    assert "mIoU" in trained
    assert "10 images" in trained
    assert "sha256" in trained
    config = tiny()
    assert re.search(
        r"^goodput +\S+ % of .* stepping \(.*\), \S+ images/s, \S+ GFLOP/s, \S+ worker hours$", trained, re.MULTILINE
    )
    assert re.search(rf"best checkpoint +step \d+  {config.storage.path}/runs/{config.run_key}/step-0000", trained)


def test_mlflow_holds_the_run(trained: str, client: MlflowClient) -> None:
    run = only_run(client, tiny())
    assert re.match(r"\*\*mIoU 0\.\d{4}\*\*.* of val of `tiny`, step ", run.data.tags["mlflow.note.content"])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.recurrence"] == "2"
    assert list(history(client, run, "train/loss")) == list(range(1, STEPS + 1))
    assert list(history(client, run, "val/miou")) == list(history(client, run, "val/gamma")) == [5, 10, 15, 20]
    for part in PARTS:
        assert list(history(client, run, f"wall/{part}_s")) == list(range(1, STEPS + 1))
    assert 0 < run.data.metrics["work/goodput"] < 1
    assert run.data.metrics["work/gflop_per_stepping_s"] > 0
    assert f"\n{ABOUT['stepping']}  " in run.data.tags["mlflow.note.content"]
    assert any(key.startswith("val/iou/") for key in run.data.metrics)
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {
        "config.yaml",
        "best_checkpoint.json",
        "panel.png",
        "attention.png",
        "confusion_matrix.png",
        "training_batch.png",
        "report.html",
    } <= names
    assert run.outputs is not None
    (model,) = run.outputs.model_outputs
    stored = client.get_logged_model(model.model_id)
    assert (stored.status.name, stored.tags["ccnet.checkpoint_sha256"]) == ("READY", run.data.tags["ccnet.checkpoint_sha256"])
    # Not by alias: after 20 steps the score may not be above the majority class, and then no alias moves.
    registered = client.search_model_versions("name = 'tiny'")
    assert run.data.tags["ccnet.checkpoint_sha256"] in [version.tags["ccnet.checkpoint_sha256"] for version in registered]


def test_one_worker_has_the_loss_curve_of_two(followed: Finished, client: MlflowClient) -> None:
    """At a learning rate at which float32's rounding stays small; tests/ccnet checks the mathematics to 1e-9 in float64."""
    assert followed["alone"].returncode == 0, followed["alone"].stderr
    two, one = (history(client, only_run(client, config), "train/loss") for config in (tiny(), tiny(*ALONE)))
    np.testing.assert_allclose([one[s] for s in range(1, 11)], [two[s] for s in range(1, 11)], atol=1e-4)


def test_a_finished_run_is_not_trained_again(followed: Finished) -> None:
    done = followed["train"]
    assert done.returncode == 0, done.stderr
    assert "step 1/" not in done.stderr
    assert "training worker group" not in done.stderr
    assert "mIoU" in done.stdout


def test_evaluate_by_run_id_gives_the_miou_of_training(followed: Finished, client: MlflowClient) -> None:
    done = followed["evaluate"]
    assert done.returncode == 0, done.stderr
    best = max(history(client, only_run(client, tiny()), "val/miou").values())
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("mIoU")]
    assert float(line.split()[1]) == pytest.approx(best, abs=1e-4)
    assert '"checkpoint_sha256"' in done.stdout
    assert re.search(r"^attention off +0\.\d{4}  mIoU of the same weights with R = 0$", done.stdout, re.MULTILINE)
    training = only_run(client, tiny()).info
    (evaluation,) = client.search_runs([training.experiment_id], f"tags.`mlflow.parentRunId` = '{training.run_id}'")
    assert evaluation.data.metrics["val/miou"] == pytest.approx(best, abs=1e-4)
    assert f"runs/{evaluation.info.run_id}" in done.stdout
    assert f"/evaluations/{evaluation.info.run_name}/report.html" in done.stdout


def test_predict_writes_masks_and_overlays_back(followed: Finished, access: None) -> None:
    assert followed["predict"].returncode == 0, followed["predict"].stderr
    config = tiny()
    store = open_store(f"{config.storage.path}/predictions/{config.run_key}", config.storage)
    mask = codec.decode_label(store.read("val-000000.png"))
    assert mask.shape == (49, 49)
    assert mask.max() < 6
    assert codec.decode_image(store.read("val-000000_overlay.png")).shape == (49, 49, 3)


def test_the_delivered_model_predicts_the_masks_of_jobs_predict(
    followed: Finished, trained: str, access: None, client: MlflowClient
) -> None:
    config = tiny()
    address = f"{config.models_url}/{config.run_key}"
    assert f"ccnet.load('{address}').predict(" in trained
    (sample,) = open_samples(config, open_data(config), "val").ahead([0])
    image = codec.decode_image(sample.image)
    mask = codec.decode_label(
        open_store(f"{config.storage.path}/predictions/{config.run_key}", config.storage).read("val-000000.png")
    )
    version = client.search_model_versions("name = 'tiny'")[0].version
    for each in (address, f"models:/tiny/{version}", only_run(client, config).info.run_id):
        np.testing.assert_array_equal(ccnet.load(each, device="cpu").predict(image), mask)


def test_export_delivers_a_checked_file_and_its_record(followed: Finished, access: None) -> None:
    assert followed["export"].returncode == 0, followed["export"].stderr
    config = tiny()
    store = open_store(f"{config.storage.path}/exports", config.storage)
    record = json.loads(store.read(f"{config.run_key}-logits.json"))
    assert record["sha256"] == hashlib.sha256(store.read(f"{config.run_key}-logits.onnx")).hexdigest()
    assert record["largest_difference"] <= 1e-4


@pytest.mark.skipif(
    not Path(browser.CHROMIUM).exists(), reason="no Chromium here (apt-get install chromium): the run's page is not checked"
)
def test_the_page_of_the_run_shows_its_charts_and_panel(
    trained: str, stack: dict[str, str], client: MlflowClient, tmp_path: Path
) -> None:
    run = only_run(client, tiny())
    uri = stack["MLFLOW_TRACKING_URI"]
    shots = browser.screenshot(uri, run.info.run_id, run.info.experiment_id, tmp_path, ("train/loss", "val/miou"))
    assert all(shot.stat().st_size > 20_000 for shot in shots)

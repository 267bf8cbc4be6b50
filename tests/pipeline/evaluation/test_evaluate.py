"""Evaluation and prediction of a small data set, as configured, with and without Ray."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from ccnet import ConfusionMatrix
from ccnet.inference import predict_classes
from pipeline.checkpoints import checkpoint
from pipeline.config.config import Config
from pipeline.config.load import override
from pipeline.data import synthetic
from pipeline.data.manifest import Manifest, read_manifest
from pipeline.errors import CheckpointError, SampleError
from pipeline.evaluation import evaluate, inference
from pipeline.evaluation.metrics import Counts
from pipeline.evaluation.predict import predict
from pipeline.evaluation.protocol import WHOLE_IMAGE, validation_protocol
from pipeline.fault_tolerance.failures import Kind, OutOfMemory, WorkerFault, as_worker_fault
from pipeline.images import codec
from pipeline.loading.batches import evaluation_samples
from pipeline.loading.sampler import evaluation_share
from pipeline.storage.store import open_store
from pipeline.tracking import registry, runs
from tests.support import untrained
from tests.support.mlflow_server import MlflowServer
from tests.support.untrained import NUM_IMAGES, SIZE

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A packed data set of ten validation images and a checkpoint of a network with random weights."""
    return untrained.make(tmp_path_factory.mktemp("storage"), tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def manifest(config: Config) -> Manifest:
    return read_manifest(open_store(config.data_url, config.storage))


def samples(config: Config, manifest: Manifest, numbers: Sequence[int]) -> Iterator[Any]:
    return evaluation_samples(config, manifest, "val", list(numbers), config.evaluate.scale)


def test_a_named_checkpoint_runs_at_the_recurrence_of_its_training_and_says_so(
    config: Config, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    reference = open_store(f"{config.runs_url}/{config.run_key}", config.storage).url(checkpoint.folder_name(1))
    other = override(config, {"model.recurrence": 1, "evaluate.checkpoint": reference})
    assert inference.load_network(other, manifest)[0].head.recurrence == 2
    assert "runs at R = 2, as trained; evaluate.recurrence=1 runs it at 1" in caplog.text


@pytest.mark.parametrize("recurrence", [0, 1, 2, 3])
def test_the_weights_run_at_the_requested_recurrence(config: Config, manifest: Manifest, recurrence: int) -> None:
    as_trained, found = inference.load_network(config, manifest)
    net, _ = inference.load_network(override(config, {"evaluate.recurrence": recurrence}), manifest)
    assert (as_trained.head.recurrence, net.head.recurrence) == (2, recurrence)
    assert all(torch.equal(value, found.model[key]) for key, value in net.state_dict().items())
    image = torch.from_numpy(synthetic.sample(0, 0, SIZE)[0]).permute(2, 0, 1)[None]
    with torch.no_grad():
        assert torch.equal(net.eval()(image).logits, as_trained.eval()(image).logits) == (recurrence == 2)


def test_shares_of_the_images_add_up_to_all(config: Config, manifest: Manifest) -> None:
    net, _ = inference.load_network(config, manifest)
    whole, first, second = (
        evaluate.evaluate_samples(net, samples(config, manifest, numbers), len(manifest.class_names), CPU)
        for numbers in (range(NUM_IMAGES), [0, 2, 4], [1, 3, 5, 6, 7, 8, 9])
    )
    assert [len(seen) for _, seen in (whole, first, second)] == [10, 3, 7]
    parts = first[1] | second[1]
    assert all(torch.equal(seen.pixels, parts[number].pixels) for number, seen in whole[1].items())
    assert [seen.wrong for seen in whole[1].values()] == [parts[number].wrong for number in range(NUM_IMAGES)]
    assert sum(seen.pixels for seen in whole[1].values()).tolist() == whole[0].confusion.counts.sum(1).tolist()
    merged = first[0].merge(second[0])
    assert torch.equal(merged.confusion.counts, whole[0].confusion.counts)
    assert torch.equal(merged.boundary.counts, whole[0].boundary.counts)


def test_what_pads_the_share_of_a_rank_is_predicted_but_never_counted(config: Config, manifest: Manifest) -> None:
    net, _ = inference.load_network(config, manifest)
    num_classes = len(manifest.class_names)
    whole, _ = evaluate.evaluate_samples(net, samples(config, manifest, range(NUM_IMAGES)), num_classes, CPU)
    merged, counted = Counts.none(num_classes), []
    for rank in range(3):
        share = evaluation_share(NUM_IMAGES, rank, 3)
        padded = list(samples(config, manifest, share))
        assert [sample.number for sample in padded] == share
        assert all((sample.label == codec.IGNORE).all() == (sample.number < 0) for sample in padded)
        counts, seen = evaluate.evaluate_samples(net, padded, num_classes, CPU)
        merged.merge(counts)
        counted.append(len(seen))
    assert counted == [4, 3, 3]
    assert torch.equal(merged.confusion.counts, whole.confusion.counts)
    assert torch.equal(merged.boundary.counts, whole.boundary.counts)
    assert evaluate.checked_score(merged, sum(counted), manifest, "val", {}).num_images == 10


def test_an_image_that_cannot_be_read_is_never_skipped(config: Config, manifest: Manifest) -> None:
    store = open_store(config.data_url, config.storage)
    whole = store.read("val-0.parquet")
    store.write("val-0.parquet", whole[: len(whole) // 2])
    try:
        with pytest.raises(SampleError, match=r"val-0.parquet: corrupt: .* \(sample val-9\)"):
            list(samples(config, manifest, [0, 9]))
    finally:
        store.write("val-0.parquet", whole)


def test_an_image_missed_is_an_error(config: Config, manifest: Manifest) -> None:
    net, _ = inference.load_network(config, manifest)
    counts, seen = evaluate.evaluate_samples(net, samples(config, manifest, [0, 1]), len(manifest.class_names), CPU)
    with pytest.raises(RuntimeError, match="2 images of val were scored, the manifest lists 10"):
        evaluate.reduced_score(counts, len(seen), manifest, "val", validation_protocol(config, manifest), CPU)


OPTIONS = {"evaluate.window": 33, "evaluate.scales": [0.5, 1.0], "evaluate.flip": True}


def test_training_validates_whatever_the_evaluation_is_set_to(config: Config, manifest: Manifest) -> None:
    protocol = validation_protocol(override(config, OPTIONS), manifest)
    assert protocol == validation_protocol(config, manifest)
    expected = {
        "inference": "whole image",
        "window": None,
        "stride": None,
        "scales": [1.0],
        "flip": False,
        "recurrence": "as trained",
    }
    assert expected.items() <= protocol.items()


def test_without_a_cluster_this_process_evaluates_and_predicts(
    config: Config, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    score = evaluate.evaluate(config).score
    truth = np.concatenate([sample.label.ravel() for sample in samples(config, manifest, range(NUM_IMAGES))])
    assert score.num_images == NUM_IMAGES
    assert score.calibration is not None
    assert score.class_intervals is not None
    pixels, right = score.calibration.counts.sum(1).tolist()
    assert (pixels, right) == (int(np.sum(score.counts)), int(np.trace(score.counts)))
    for bounds, iou in zip(score.class_intervals, score.matrix.iou().tolist(), strict=True):
        assert (bounds is None) == (iou != iou)
        assert bounds is None or bounds[0] <= iou <= bounds[1]
    assert np.sum(score.counts, axis=1).tolist() == np.bincount(truth, minlength=len(manifest.class_names)).tolist()
    assert len(predict(override(config, {"predict.output": str(tmp_path), "predict.limit": 2})).done) == 2
    assert len(list(tmp_path.glob("*.png"))) == 4
    assert not ray.is_initialized()


def test_the_attention_is_scored_against_its_absence(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    score = evaluate.evaluate(config).score
    without = evaluate.evaluate(override(config, {"evaluate.recurrence": 0})).score
    assert (score.gamma, score.attention_off_miou) == (1.0, without.miou)
    assert score.miou != without.miou
    assert (without.gamma, without.attention_off_miou) == (None, None)
    assert evaluate.evaluate(override(config, {"evaluate.attention_off": False})).score.attention_off_miou is None


@pytest.mark.slow
def test_evaluating_counts_each_image_once_and_records_the_protocol(config: Config, manifest: Manifest, local_ray: None) -> None:
    made = override(config, {"train.workers": 2, "evaluate.recurrence": 3, **OPTIONS})
    score = evaluate.evaluate(made).score
    net, found = inference.load_network(made, manifest)
    expected = ConfusionMatrix(len(manifest.class_names))
    for sample in samples(made, manifest, range(NUM_IMAGES)):
        image, label = inference.as_batch(sample.image, CPU), torch.from_numpy(sample.label)[None]
        prediction = predict_classes(net, image, window=(33, 33), stride=(23, 23), scales=(0.5, 1.0), flip=True)
        expected.update(prediction, label)
    assert score.counts == expected.counts.tolist()
    assert score.boundary_counts is not None
    assert score.interval is not None
    assert score.interval[0] <= score.miou <= score.interval[1]
    assert score.protocol == validation_protocol(config, manifest) | {
        "inference": "sliding window",
        "window": [33, 33],
        "stride": [23, 23],
        "scales": [0.5, 1.0],
        "flip": True,
        "recurrence": 3,
        "trained_recurrence": 2,
        "align_corners": True,
        "miou_interval": {"method": "percentile bootstrap over images", "level": 0.95, "num_resamples": 1000, "seed": 0},
        "checkpoint": found.url,
        "checkpoint_sha256": found.sha256,
    }


@pytest.mark.slow
def test_any_number_of_workers_counts_the_same(config: Config, local_ray: None) -> None:
    made = override(config, {"train.cpus_per_worker": 0.25, "evaluate.attention_off": False})
    found = [evaluate.evaluate(override(made, {"train.workers": number})) for number in (1, 2, 3)]
    assert {len(each.images) for each in found} == {NUM_IMAGES}
    for each in found[1:]:
        # Confidences are rounded, and with another number of threads a few are rounded to the other side.
        assert each.score._replace(confidences=None) == found[0].score._replace(confidences=None)
        calibration, first = each.score.calibration, found[0].score.calibration
        assert calibration is not None
        assert first is not None
        assert torch.equal(calibration.counts.sum(1), first.counts.sum(1))
        assert calibration.error() == pytest.approx(first.error(), abs=1e-4)
        assert torch.equal(each.pixels, found[0].pixels)
        assert repr(each.images) == repr(found[0].images)  # classes that are absent are NaN, which equals nothing


@pytest.mark.slow
def test_predicting_uses_the_configured_inference(config: Config, manifest: Manifest, local_ray: None, tmp_path: Path) -> None:
    made = override(config, {"predict.output": str(tmp_path), "predict.limit": 2, **OPTIONS})
    assert len(predict(made).done) == 2
    net, _ = inference.load_network(made, manifest)
    (sample,) = samples(made, manifest, [1])
    image = inference.as_batch(sample.image, CPU)
    expected = predict_classes(net, image, window=(33, 33), stride=(23, 23), scales=(0.5, 1.0), flip=True)[0].numpy()
    assert np.array_equal(codec.decode_label((tmp_path / "val-1.png").read_bytes()), expected)
    assert not np.array_equal(predict_classes(net, image)[0].numpy(), expected)


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({}, "set evaluate.window=769, or lower evaluate.scale"),
        ({"evaluate.window": 33}, "lower evaluate.window or lower evaluate.scale"),
    ],
)
def test_an_image_that_does_not_fit_into_memory_is_named_with_the_fix(config: Config, options: dict[str, Any], fix: str) -> None:
    with (
        pytest.raises(OutOfMemory, match=rf"^sample a does not fit into memory: {fix} \(.*alloc"),
        inference.fits_into_memory("sample a", override(config, options).evaluate),
    ):
        torch.empty(2**60, dtype=torch.uint8)


def test_a_validation_that_does_not_fit_into_memory_ends_the_run_with_the_fix() -> None:
    with pytest.raises(WorkerFault) as caught, as_worker_fault(), inference.fits_into_memory("sample a", WHOLE_IMAGE):
        torch.empty(2**60, dtype=torch.uint8)
    assert caught.value.fault.kind is Kind.MEMORY
    assert caught.value.fault.what.startswith("sample a does not fit into memory: lower evaluate.scale (")


def test_an_image_that_is_too_large_at_the_scale_is_named_with_the_fix(config: Config, manifest: Manifest) -> None:
    with pytest.raises(
        SampleError, match=r"^sample val-0 does not fit into memory \(.* pixels are more than .*: lower evaluate.scale$"
    ):
        next(evaluation_samples(config, manifest, "val", [0], 1e9))


@pytest.mark.parametrize("address", ["{runs}/step-000099", "{runs}", "/", "//", "{runs}/"])
def test_an_address_without_a_checkpoint_says_where_checkpoints_are(config: Config, manifest: Manifest, address: str) -> None:
    runs = f"{config.runs_url}/{config.run_key}"
    with pytest.raises(CheckpointError, match=rf"^evaluate.checkpoint = .*: no checkpoint, .* are in {runs}$"):
        inference.load_network(override(config, {"evaluate.checkpoint": address.format(runs=runs)}), manifest)


@pytest.mark.slow
def test_other_weights_than_mlflow_recorded_are_refused(config: Config, manifest: Manifest, mlflow_server: MlflowServer) -> None:
    made = override(config, {"tracking.uri": mlflow_server.uri})
    _, found = inference.load_network(config, manifest)
    run_id = runs.open_mlflow_run(made, environment={})
    made = override(made, {"evaluate.checkpoint": run_id})
    recorded = {"checkpoint_url": found.url, "step": 1, "miou": 0.5, "protocol": {}}
    registry.log_best(mlflow_server.uri, run_id, sha256="0" * 64, **recorded)
    with pytest.raises(CheckpointError) as caught:
        inference.load_network(made, manifest)
    assert f"{found.url}: holds other weights (sha256 {found.sha256[:16]}) than those that MLflow recorded" in str(caught.value)
    assert f"set evaluate.checkpoint={found.url} to use what is there now" in str(caught.value)
    registry.log_best(mlflow_server.uri, run_id, sha256=found.sha256, **recorded)
    assert inference.load_network(made, manifest)[1].sha256 == found.sha256

"""Evaluation and prediction of a small data set, as configured, with and without Ray."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from ccnet import ConfusionMatrix, build_ccnet
from ccnet.inference import predict_classes
from pipeline.checkpoints import checkpoint
from pipeline.cluster import tasks
from pipeline.config.config import Config
from pipeline.config.load import override, parse
from pipeline.data import synthetic
from pipeline.data.index import content, write_index
from pipeline.data.manifest import Manifest, Split, read_manifest, write_manifest
from pipeline.data.shards import Row, write_shard
from pipeline.errors import CheckpointError, SampleError
from pipeline.evaluation import evaluate, inference
from pipeline.evaluation.metrics import Counts, Score
from pipeline.evaluation.predict import predict
from pipeline.evaluation.protocol import validation_protocol
from pipeline.images import codec
from pipeline.loading.batches import evaluation_samples
from pipeline.loading.sampler import evaluation_share
from pipeline.storage.store import open_store

NUM_IMAGES, SIZE = 10, 49
CPU = torch.device("cpu")
MODEL = {"backbone": "resnet18", "num_classes": len(synthetic.NAMES), "recurrence": 2}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A packed data set of ten validation images and a checkpoint of a network with random weights."""
    made = parse(
        {
            "name": "t",
            "storage": {"path": str(tmp_path_factory.mktemp("storage"))},
            "data": {"name": "ten", "layout": "generated", "crop_size": 33},
            "model": {"backbone": "resnet18", "recurrence": 2},
        }
    )
    pack(made)
    torch.manual_seed(0)
    net = build_ccnet(**MODEL)
    with torch.no_grad():
        net.head.attention.gamma.fill_(1.0)  # at its initial 0 every R gives the same result
    score = Score([[0]], synthetic.NAMES, 0, {}, [[0], [0]])
    folder = tmp_path_factory.mktemp("checkpoint")
    checkpoint.save(
        folder,
        checkpoint.snapshot(net, torch.optim.SGD(net.parameters(), lr=0.1)),
        {"step": 1, "metrics": {"miou": 0.5}, "model": MODEL, "class_names": synthetic.NAMES, "score": score._asdict()},
    )
    checkpoint.upload(folder, open_store(f"{made.runs_url}/{made.run_key}", made.storage), checkpoint.folder_name(1))
    return made


def pack(config: Config) -> None:
    store = open_store(config.data_url, config.storage)
    rows = []
    for position in range(NUM_IMAGES):
        pair = synthetic.sample(synthetic.split_index("val", position), 0, SIZE)
        rows.append(Row(f"val-{position}", *map(codec.encode_png, pair), SIZE, SIZE))
    entries = write_shard(store, "val-0.parquet", rows)
    write_index(store, "index-val", entries, [])
    pixels, size = (0,) * len(synthetic.NAMES), (SIZE, SIZE)
    split = Split(NUM_IMAGES, "index-val", content(entries), 1, pixels, pixels, 0, size, size)
    ids = {k: k for k in range(len(synthetic.NAMES))}
    write_manifest(store, Manifest("ten", "generated", synthetic.NAMES, synthetic.COLORS, ids, {"val": split}, True, "source"))


@pytest.fixture(scope="module")
def manifest(config: Config) -> Manifest:
    return read_manifest(open_store(config.data_url, config.storage))


def samples(config: Config, manifest: Manifest, numbers: Sequence[int]) -> Iterator[Any]:
    return evaluation_samples(config, manifest, "val", list(numbers), config.evaluate.scale)


def test_another_recurrence_is_refused_with_the_fix_for_either_wish(config: Config, manifest: Manifest) -> None:
    reference = open_store(f"{config.runs_url}/{config.run_key}", config.storage).url(checkpoint.folder_name(1))
    other = override(config, {"model.recurrence": 1, "evaluate.checkpoint": reference})
    with pytest.raises(CheckpointError) as caught:
        inference.load_network(other, manifest)
    assert "trained with recurrence 2, but model.recurrence = 1" in str(caught.value)
    assert "model.recurrence=2 to run it as trained" in str(caught.value)
    assert "evaluate.recurrence=1 to run it at 1 on purpose" in str(caught.value)


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
    assert [num_images for _, num_images in (whole, first, second)] == [10, 3, 7]
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
        counts, num_images = evaluate.evaluate_samples(net, padded, num_classes, CPU)
        merged.merge(counts)
        counted.append(num_images)
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
    counts, num_images = evaluate.evaluate_samples(net, samples(config, manifest, [0, 1]), len(manifest.class_names), CPU)
    with pytest.raises(RuntimeError, match="2 images of val were scored, the manifest lists 10"):
        evaluate.reduced_score(counts, num_images, manifest, "val", validation_protocol(config, manifest), CPU)


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
    score = evaluate.evaluate(config)
    truth = np.concatenate([sample.label.ravel() for sample in samples(config, manifest, range(NUM_IMAGES))])
    assert score.num_images == NUM_IMAGES
    assert np.sum(score.counts, axis=1).tolist() == np.bincount(truth, minlength=len(manifest.class_names)).tolist()
    assert len(predict(override(config, {"predict.output": str(tmp_path), "predict.limit": 2}))) == 2
    assert len(list(tmp_path.glob("*.png"))) == 4
    assert not ray.is_initialized()


@pytest.mark.slow
def test_evaluating_counts_each_image_once_and_records_the_protocol(config: Config, manifest: Manifest, local_ray: None) -> None:
    made = override(config, {"train.workers": 2, "evaluate.recurrence": 3, **OPTIONS})
    score = evaluate.evaluate(made)
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
        "miou_interval": {"method": "percentile bootstrap over images", "level": 0.95, "num_resamples": 1000, "seed": 0},
        "checkpoint": found.url,
        "checkpoint_sha256": found.sha256,
    }


@pytest.mark.slow
def test_predicting_uses_the_configured_inference(config: Config, manifest: Manifest, local_ray: None, tmp_path: Path) -> None:
    made = override(config, {"predict.output": str(tmp_path), "predict.limit": 2, **OPTIONS})
    assert len(predict(made)) == 2
    net, _ = inference.load_network(made, manifest)
    (sample,) = samples(made, manifest, [1])
    image = inference.as_batch(sample.image, CPU)
    expected = predict_classes(net, image, window=(33, 33), stride=(23, 23), scales=(0.5, 1.0), flip=True)[0].numpy()
    assert np.array_equal(codec.decode_label((tmp_path / "val-1.png").read_bytes()), expected)
    assert not np.array_equal(predict_classes(net, image)[0].numpy(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2, 8, [1, 2]], ids=str)
def test_shared_out_every_number_comes_back_once_and_progress_is_logged(
    config: Config, local_ray: None, num_workers: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def square(numbers: list[int], device: torch.device) -> Iterator[int]:
        return (number**2 for number in numbers)

    monkeypatch.setattr(tasks, "SECONDS_BETWEEN_LINES", 0.0)
    made = override(config, {"train.workers": num_workers, "train.cpus_per_worker": 0.25})
    with caplog.at_level(logging.INFO, logger="pipeline.cluster.tasks"):
        assert sorted(tasks.map_images(square, 5, made)) == [0, 1, 4, 9, 16]
    assert [message.split()[0] for message in caplog.messages] == ["1/5", "2/5", "3/5", "4/5", "5/5"]


@pytest.mark.slow
def test_a_share_that_fails_is_not_passed_over(config: Config, local_ray: None) -> None:
    def broken(numbers: list[int], device: torch.device) -> Iterator[int]:
        yield from numbers[:1]
        raise ValueError("sample val-2: not a readable image")

    with pytest.raises(ValueError, match="sample val-2"):
        list(tasks.map_images(broken, 5, config))

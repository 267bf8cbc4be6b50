"""Scores a network over a split: every image exactly once, counts summed over all workers, one division at the end."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch

from ccnet import CCNet, build_ccnet
from ccnet.bootstrap import bootstrap_interval
from ccnet.inference import predict_classes, published_stride
from pipeline.checkpoints import checkpoint
from pipeline.cluster import distributed
from pipeline.cluster.tasks import in_shares
from pipeline.config.base import Evaluate
from pipeline.config.config import Config
from pipeline.config.load import ConfigError
from pipeline.data.shards import Manifest, open_data
from pipeline.evaluation.metrics import BOUNDARY_RATIO, Counts, Score
from pipeline.images.resize import UInt8
from pipeline.loading.batches import Sample, evaluation_samples
from pipeline.storage.store import open_store
from pipeline.tracking import registry
from pipeline.tracking import runs as tracking

WHOLE_IMAGE = Evaluate()
"""How training's validation looks at an image, whatever `config.evaluate` says: whole, at one scale, not mirrored."""
INTERVAL: dict[str, Any] = {"level": 0.95, "num_resamples": 1000, "seed": 0}


def evaluate_samples(net: CCNet, samples: Iterable[Sample], num_classes: int, device: torch.device) -> tuple[Counts, int]:
    """Counts and number of images of some samples, looked at whole, on one device: training's validation."""
    counts, num_images = Counts.none(num_classes), 0
    for number, of_image in count_each(net, samples, num_classes, device, WHOLE_IMAGE):
        counts.merge(of_image)
        num_images += number >= 0  # -1 pads the share of a rank
    return counts, num_images


def count_each(
    net: CCNet, samples: Iterable[Sample], num_classes: int, device: torch.device, options: Evaluate
) -> Iterator[tuple[int, Counts]]:
    """(number in the split, its counts) of each sample."""
    for sample in samples:
        prediction = predict_image(net, sample.image, sample.label.shape, device, options)
        label = torch.from_numpy(sample.label)[None].to(device)  # [1, H, W]
        yield sample.number, Counts.none(num_classes).add(prediction, label)


def predict_image(net: CCNet, image: UInt8, size: tuple[int, ...], device: torch.device, options: Evaluate) -> torch.Tensor:
    """Classes uint8[1, H, W] at `size` (height, width) of an image uint8[h, w, 3], looked at as `options` say."""
    window, stride = _window_and_stride(options)
    height, width = size
    return predict_classes(
        net, as_batch(image, device), (height, width), window=window, stride=stride, scales=options.scales, flip=options.flip
    )


def as_batch(image: UInt8, device: torch.device) -> torch.Tensor:
    """uint8[1, 3, h, w] on the device from uint8[h, w, 3]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].to(device)  # [1, 3, h, w]


def _window_and_stride(options: Evaluate) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """Both as (height, width)."""
    if options.window is None:
        return None, None
    window = (options.window, options.window) if isinstance(options.window, int) else options.window
    return window, published_stride(window)


def reduced_score(
    counts: Counts, num_images: int, manifest: Manifest, split: str, protocol: dict[str, Any], device: torch.device
) -> Score:
    """The score over all training workers. Raises RuntimeError when images were missed or counted twice."""
    counts.confusion.counts = distributed.sum_over_workers(counts.confusion.counts.to(device)).cpu()
    counts.boundary.counts = distributed.sum_over_workers(counts.boundary.counts.to(device)).cpu()
    images = int(distributed.sum_over_workers(torch.tensor(num_images, device=device)))
    return checked_score(counts, images, manifest, split, protocol)


def checked_score(counts: Counts, num_images: int, manifest: Manifest, split: str, protocol: dict[str, Any]) -> Score:
    """The score of summed counts. Raises RuntimeError when images were missed or counted twice."""
    if num_images != manifest.num_images(split):
        raise RuntimeError(f"{num_images} images of {split} were scored, the manifest lists {manifest.num_images(split)}")
    confusion, boundary = counts.confusion.counts.tolist(), counts.boundary.counts.tolist()
    return Score(confusion, tuple(manifest.class_names), num_images, protocol, boundary)


def describe(config: Config, manifest: Manifest, split: str = "val") -> dict[str, Any]:
    """The protocol of a score of training's validation (law 8); the checkpoint's hash is added where it is known."""
    return {
        "data": config.data.name,
        "data_fingerprint": manifest.fingerprint,
        "split": split,
        "resolution": "labels at native resolution",
        "image_scale": config.evaluate.scale,
        **_looked_at(WHOLE_IMAGE),
        # Without the number: networks of different R are compared by their validation.
        "recurrence": "as trained",
        "classes_averaged": "those that occur in label or prediction",
        "boundary_dilation_ratio": BOUNDARY_RATIO,
        "num_images": manifest.num_images(split),
    }


def _looked_at(options: Evaluate) -> dict[str, Any]:
    window, stride = _window_and_stride(options)
    return {
        "inference": "sliding window" if window else "whole image",
        "window": window and list(window),
        "stride": stride and list(stride),
        "scales": list(options.scales),
        "flip": options.flip,
    }


def load_network(config: Config, manifest: Manifest) -> tuple[CCNet, checkpoint.Checkpoint]:
    """The network of `evaluate.checkpoint`, or of the best checkpoint of this configuration's run, on the CPU.

    It runs at `evaluate.recurrence` when that is set, otherwise at the R it was trained with. Raises CheckpointError when there
    is none, when it was trained at another R than `model.recurrence` and `evaluate.recurrence` is not set, or for other classes.
    """
    found = _find(config)
    model = found.progress["model"]
    trained, wanted = model["recurrence"], config.evaluate.recurrence
    if wanted is None and trained != config.model.recurrence:
        raise checkpoint.CheckpointError(
            f"{found.url}: trained with recurrence {trained}, but model.recurrence = {config.model.recurrence}; add "
            f"model.recurrence={trained} to run it as trained, or evaluate.recurrence={config.model.recurrence} to run it at "
            f"{config.model.recurrence} on purpose"
        )
    classes = found.progress["class_names"]
    if tuple(classes) != manifest.class_names:
        raise checkpoint.CheckpointError(
            f"{found.url}: trained for the {len(classes)} classes {', '.join(classes[:3])}, ...; data set {manifest.name} has "
            f"{len(manifest.class_names)}: {', '.join(manifest.class_names[:3])}, ..."
        )
    net = build_ccnet(**model | {"recurrence": trained if wanted is None else wanted})
    checkpoint.restore(found, net)
    return net, found


def _find(config: Config) -> checkpoint.Checkpoint:
    if reference := config.evaluate.checkpoint:
        is_folder = "/" in reference and not reference.startswith("models:/")
        url = reference if is_folder else registry.find_checkpoint(tracking.tracking_uri(config.tracking), reference)
        parent, _, name = url.rstrip("/").rpartition("/")
        return checkpoint.load(open_store(parent, config.storage), name, with_optimizer=False)
    runs = open_store(f"{config.runs_url}/{config.run_key}", config.storage)
    best = checkpoint.load_best(runs)
    if best is None:
        raise checkpoint.CheckpointError(f"{runs.url('')}: no checkpoint; run jobs.train first, or set evaluate.checkpoint")
    return best


def known_split(config: Config, manifest: Manifest) -> str:
    """`evaluate.split`. Raises ConfigError when the data set has no such split."""
    split = config.evaluate.split
    if not manifest.num_images(split):
        raise ConfigError([f"evaluate.split = {split!r}: {config.data.name} has {', '.join(manifest.splits)}"])
    return split


def evaluate(config: Config) -> Score:
    """Scores the checkpoint on `evaluate.split` as `config.evaluate` says, each image exactly once, with the interval."""
    manifest = open_data(config)
    split = known_split(config, manifest)
    net, found = load_network(config, manifest)
    num_images, num_classes = manifest.num_images(split), len(manifest.class_names)
    counts, numbers = Counts.none(num_classes), []
    per_image = torch.zeros(2, num_images, num_classes, dtype=torch.int64)
    for number, of_image in in_shares(partial(_count_share, net, config, manifest), num_images, config):
        counts.merge(of_image)
        per_image[:, number] = torch.stack(of_image.confusion.intersection_and_union())
        numbers.append(number)
    assert sorted(numbers) == list(range(num_images)), "an image was missed or counted twice"
    of_this_evaluation = {
        **_looked_at(config.evaluate),
        "recurrence": net.head.recurrence,
        "trained_recurrence": found.progress["model"]["recurrence"],
        "miou_interval": {"method": "percentile bootstrap over images", **INTERVAL},
        "checkpoint": found.url,
        "checkpoint_sha256": found.sha256,
    }
    score = checked_score(counts, len(numbers), manifest, split, describe(config, manifest, split) | of_this_evaluation)
    return score._replace(interval=bootstrap_interval(*per_image, **INTERVAL))


def _count_share(
    net: CCNet, config: Config, manifest: Manifest, numbers: list[int], device: torch.device
) -> Iterator[tuple[int, Counts]]:
    samples = evaluation_samples(config, manifest, config.evaluate.split, numbers, config.evaluate.scale)
    return count_each(net.to(device), samples, len(manifest.class_names), device, config.evaluate)

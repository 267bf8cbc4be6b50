"""Scores a network over a split: each image counts exactly once, and counts are summed over all workers before one division."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from ccnet import CCNet, distributed
from ccnet.bootstrap import bootstrap_intervals
from ccnet.calibration import Calibration
from ccnet.inference import ScoresNotFinite, predict_classes, predict_confidence
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.cluster import shared
from pipeline.cluster.tasks import map_images
from pipeline.config.config import Config
from pipeline.config.evaluate import Evaluate
from pipeline.data.labels import doubts
from pipeline.data.manifest import Manifest, open_data
from pipeline.errors import CheckpointError
from pipeline.evaluation.inference import fits_into_memory, known_split, load_network, placed, predict_image
from pipeline.evaluation.metrics import Counts, ImageScore, Score
from pipeline.evaluation.protocol import INTERVAL, WHOLE_IMAGE, inference_settings, validation_protocol
from pipeline.loading.batches import Sample, evaluation_samples

logger = logging.getLogger(__name__)

CANDIDATES = 2048
"""Images, evenly spaced over the split, from which `example_images` chooses."""


class Seen(NamedTuple):
    """What decides whether an image of a validation is shown."""

    wrong: float
    """Share of its pixels with a label that are wrong; 0 if there are none."""
    pixels: torch.Tensor
    """int64[K]: pixels of each class in its label."""


class Evaluation(NamedTuple):
    """A split as a checkpoint predicts it."""

    score: Score
    images: list[ImageScore]
    """Of each image, in the order of the split."""
    pixels: torch.Tensor
    """int64[2, N, K]: intersection and union of each image and class."""
    checkpoint: Checkpoint
    net: CCNet
    """The network that was scored."""
    manifest: Manifest


def evaluate_samples(
    net: CCNet, samples: Iterable[Sample], num_classes: int, device: torch.device
) -> tuple[Counts, dict[int, Seen]]:
    """Counts of some samples, and {number: what was seen in it}, as whole images on one device.

    For training's validation. An image whose scores are not finite counts as wrong everywhere; a warning says so.
    """
    counts, seen, diverged = Counts.none(num_classes), dict[int, Seen](), list[str]()
    for sample in samples:
        try:
            of_image = _count(net, sample, num_classes, device, WHOLE_IMAGE)
        except ScoresNotFinite as error:  # no end of the run: its steps decide that
            diverged.append(str(error))
            label = torch.from_numpy(sample.label)[None]
            of_image = Counts.none(num_classes).add((label + 1) % num_classes, label)
        counts.merge(of_image)
        if sample.number >= 0:  # -1 pads the share of a rank
            pixels = of_image.confusion.counts
            wrong = float(1 - pixels.diagonal().sum() / pixels.sum()) if pixels.any() else 0.0
            seen[sample.number] = Seen(wrong, pixels.sum(1))
    if diverged:
        logger.warning(
            "images without finite scores, whose pixels all count as wrong: %d (first: %s)", len(diverged), diverged[0]
        )
    return counts, seen


def worst_images(seen: Mapping[int, Seen], num_images: int, most: int, device: torch.device) -> list[int]:
    """Numbers of the `most` images of a split with the largest share of wrong pixels, the worst first.

    `seen`: this worker's images. Every worker must call this.
    """
    shares = torch.zeros(num_images, device=device)
    if seen:
        shares[list(seen)] = torch.tensor([each.wrong for each in seen.values()], device=device)
    order = distributed.sum_over_workers(shares).cpu().sort(descending=True, stable=True).indices
    worst: list[int] = order[:most].tolist()
    return worst


def example_images(seen: Mapping[int, Seen], num_images: int, most: int, num_classes: int, device: torch.device) -> list[int]:
    """Numbers of the `most` images of a split that together show each class as large as they can.

    They follow from the labels alone, so they are the same at each validation. Each next image is the one that adds most to the
    sum over the classes of their largest area among the chosen, as a share of their largest area in any image (a submodular
    sum, for which this greedy choice is at least 63 % of the best: Nemhauser et al. 1978). Of a large split, `CANDIDATES` images
    are looked at. `seen`: this worker's images. Every worker must call this.
    """
    step = -(-num_images // CANDIDATES)
    areas = torch.zeros(-(-num_images // step), num_classes, dtype=torch.int64, device=device)
    for number, each in seen.items():
        if number % step == 0:
            areas[number // step] = each.pixels.to(device)
    areas = distributed.sum_over_workers(areas).cpu()
    shares = areas.double() / areas.amax(0).clamp(min=1)  # [images, K]
    covered, chosen = torch.zeros(num_classes, dtype=torch.float64), list[int]()
    for _ in range(min(most, len(shares))):
        added = (shares - covered).clamp(min=0).sum(1)
        added[chosen] = -1.0
        chosen.append(int(added.argmax()))
        covered = torch.maximum(covered, shares[chosen[-1]])
    return [place * step for place in chosen]


def _count(
    net: CCNet,
    sample: Sample,
    num_classes: int,
    device: torch.device,
    options: Evaluate,
    calibration: Calibration | None = None,
) -> Counts:
    """The counts of a sample at its label's size. Raises ScoresNotFinite and OutOfMemory, which name the sample.

    `calibration` receives the confidence of its pixels too.
    """
    height, width = sample.label.shape
    predict = predict_classes if calibration is None else predict_confidence
    try:
        with fits_into_memory(f"sample {sample.sample_id} of {width} x {height} pixels", options):
            found = predict_image(net, sample.image, sample.label.shape, device, options, predict)
    except ScoresNotFinite as error:
        raise ScoresNotFinite(f"sample {sample.sample_id}: {error}") from error
    label = torch.from_numpy(sample.label)[None].to(device)  # [1, H, W]
    prediction = found
    if calibration is not None:
        prediction, confidence = found.unbind(1)
        calibration.update(confidence, prediction, label)
    return Counts.none(num_classes).add(prediction, label)


def reduced_score(
    counts: Counts,
    num_images: int,
    manifest: Manifest,
    split: str,
    protocol: dict[str, Any],
    device: torch.device,
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
    names, found = tuple(manifest.class_names), tuple(doubts(manifest, split))
    return Score(confusion, names, num_images, protocol, boundary, doubts=found)


def evaluate(config: Config) -> Evaluation:
    """Evaluates the checkpoint on `evaluate.split`, each image exactly once, with the inference of `config.evaluate`.

    The score has the interval of the mIoU, which needs the counts of every image, and the mIoU with the attention off. Raises
    CheckpointError if the network's scores of an image are not finite.
    """
    shared.refuse(shared.of_data(config))
    manifest = open_data(config)
    split = known_split(config, manifest)
    net, found = load_network(config, manifest)
    num_images, num_classes = manifest.num_images(split), len(manifest.class_names)
    counts, without, images = Counts.none(num_classes), Counts.none(num_classes), dict[int, ImageScore]()
    per_image, calibration = torch.zeros(2, num_images, num_classes, dtype=torch.int64), Calibration()
    try:
        work = partial(_count_share, net, config, manifest)
        for number, sample_id, of_image, confidences, attention_off in map_images(work, num_images, config):
            assert number not in images, "an image was counted twice"
            images[number] = ImageScore.of(sample_id, of_image)
            counts.merge(of_image)
            calibration.merge(confidences)
            if attention_off:
                without.merge(attention_off)
            per_image[:, number] = torch.stack(of_image.confusion.intersection_and_union())
    except ScoresNotFinite as error:
        raise CheckpointError(f"{found.url}: has no score: {error}; set evaluate.checkpoint to another one") from error
    of_this_evaluation = {
        **inference_settings(config.evaluate),
        "recurrence": net.head.recurrence,
        "trained_recurrence": found.progress["model"]["recurrence"],
        "align_corners": net.align_corners,
        "miou_interval": {"method": "percentile bootstrap over images", **INTERVAL},
        "checkpoint": found.url,
        "checkpoint_sha256": found.sha256,
    }
    protocol = validation_protocol(config, manifest, split) | of_this_evaluation
    interval, class_intervals = bootstrap_intervals(*per_image, **INTERVAL)
    score = checked_score(counts, len(images), manifest, split, protocol)._replace(
        interval=interval,
        class_intervals=tuple(each if each[0] == each[0] else None for each in class_intervals),
        confidences=calibration.counts.tolist(),
        gamma=net.gamma,
        attention_off_miou=without.confusion.miou() if _ablated(net, config) else None,
    )
    return Evaluation(score, [images[number] for number in range(num_images)], per_image, found, net, manifest)


def _ablated(net: CCNet, config: Config) -> bool:
    return config.evaluate.attention_off and net.head.recurrence > 0


def _count_share(
    net: CCNet, config: Config, manifest: Manifest, numbers: list[int], device: torch.device
) -> Iterator[tuple[int, str, Counts, Calibration, Counts | None]]:
    """(number in the split, id, counts, confidences, counts with the attention off if asked for) of each sample."""
    net, options, num_classes = placed(net, device), config.evaluate, len(manifest.class_names)
    for sample in evaluation_samples(config, manifest, options.split, numbers, options.scale):
        calibration, without = Calibration(), None
        counts = _count(net, sample, num_classes, device, options, calibration)
        if _ablated(net, config):
            with net.attention_off():
                without = _count(net, sample, num_classes, device, options)
        yield sample.number, sample.sample_id, counts, calibration, without

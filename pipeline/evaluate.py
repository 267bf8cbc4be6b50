"""Scores a network over a split: every image exactly once, counts summed over all workers, one division at the end."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import ray
import torch

from ccnet import CCNet, ConfusionMatrix, build_ccnet
from ccnet.step import evaluate_step
from pipeline import checkpoint, cluster, tracking, workers
from pipeline.config import Config
from pipeline.datasets import Sample, evaluation_samples, open_data
from pipeline.shards import Manifest
from pipeline.storage import open_store
from pipeline.transforms import UInt8


class Score(NamedTuple):
    """What a confusion matrix says of a split."""

    counts: list[list[int]]
    """int64[K, K], row = truth, column = prediction."""
    class_names: tuple[str, ...]
    num_images: int
    protocol: dict[str, Any]
    """How the numbers were made (law 8)."""

    @property
    def matrix(self) -> ConfusionMatrix:
        matrix = ConfusionMatrix(len(self.class_names))
        matrix.counts += torch.tensor(self.counts, dtype=torch.int64)
        return matrix

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur in label or prediction, 0..1."""
        return float(self.matrix.miou())

    @property
    def majority_miou(self) -> float:
        """mIoU of a predictor that always answers the most frequent class of these labels."""
        pixels = torch.tensor(self.counts).sum(1)
        majority = torch.zeros_like(torch.tensor(self.counts))
        majority[:, int(pixels.argmax())] = pixels
        matrix = ConfusionMatrix(len(self.class_names))
        matrix.counts += majority
        return float(matrix.miou())

    def metrics(self) -> dict[str, float]:
        """Metric points: val/miou, val/pixel_accuracy and val/iou/<class> of every class that occurs."""
        matrix = self.matrix
        points = {"val/miou": self.miou, "val/pixel_accuracy": float(matrix.pixel_accuracy())}
        for name, iou in zip(self.class_names, matrix.iou().tolist(), strict=True):
            if iou == iou:  # NaN: the class occurs neither in label nor in prediction
                points[f"val/iou/{name}"] = iou
        return points

    def table(self) -> str:
        """Per-class IoU and the summary, ready to print."""
        width = max(len(n) for n in (*self.class_names, "majority class"))
        pixels = torch.tensor(self.counts).sum(1)
        lines = [f"{'class':<{width}}  {'IoU':>6}  {'pixels':>7}"]
        for name, iou, share in zip(self.class_names, self.matrix.iou().tolist(), (pixels / pixels.sum()).tolist(), strict=True):
            lines.append(f"{name:<{width}}  {'absent' if iou != iou else f'{iou:.4f}':>6}  {share:>6.1%}")
        lines.append(f"{'mIoU':<{width}}  {self.miou:.4f}  {self.num_images} images")
        lines.append(f"{'majority class':<{width}}  {self.majority_miou:.4f}  mIoU of always answering the commonest class")
        return "\n".join(lines)


def evaluate_samples(
    net: CCNet, samples: Iterable[Sample], num_classes: int, device: torch.device
) -> tuple[ConfusionMatrix, int]:
    """Confusion matrix and number of images of some samples, on one device."""
    confusion, num_images = ConfusionMatrix(num_classes), 0
    for sample in samples:
        evaluate_step(net, as_batch(sample.image, device), torch.from_numpy(sample.label)[None].to(device), confusion)
        num_images += 1
    return confusion, num_images


def as_batch(image: UInt8, device: torch.device) -> torch.Tensor:
    """uint8[1, 3, h, w] on the device from uint8[h, w, 3]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].to(device)  # [1, 3, h, w]


def reduced_score(
    confusion: ConfusionMatrix, num_images: int, manifest: Manifest, split: str, protocol: dict[str, Any], device: torch.device
) -> Score:
    """The score over all training workers. Raises RuntimeError when an image was missed or counted twice."""
    counts = workers.sum_over_workers(confusion.counts.to(device)).cpu()
    images = int(workers.sum_over_workers(torch.tensor(num_images, device=device)))
    return checked_score(counts, images, manifest, split, protocol)


def checked_score(counts: torch.Tensor, num_images: int, manifest: Manifest, split: str, protocol: dict[str, Any]) -> Score:
    """The score of summed counts int64[K, K]. Raises RuntimeError when an image was missed or counted twice."""
    if num_images != manifest.num_images(split):
        raise RuntimeError(f"{num_images} images of {split} were scored, the manifest lists {manifest.num_images(split)}")
    return Score(counts.tolist(), tuple(manifest.class_names), num_images, protocol)


def describe(config: Config, manifest: Manifest, split: str = "val") -> dict[str, Any]:
    """The protocol of a score (law 8); the checkpoint's hash is added where it is known."""
    return {
        "data": config.data.name,
        "data_fingerprint": manifest.fingerprint,
        "split": split,
        "resolution": "labels at native resolution",
        "image_scale": config.evaluate.scale,
        "inference": "whole image",
        "scales": [1.0],
        "flip": False,
        "classes_averaged": "those that occur in label or prediction",
        "num_images": manifest.num_images(split),
    }


def load_network(config: Config, manifest: Manifest) -> tuple[CCNet, checkpoint.Checkpoint]:
    """The network of `evaluate.checkpoint`, or of the best checkpoint of this configuration's run, on the CPU.

    Raises CheckpointError when there is none, or when it was trained at another recurrence or for other classes.
    """
    if reference := config.evaluate.checkpoint:
        is_folder = "/" in reference and not reference.startswith("models:/")
        url = reference if is_folder else tracking.find_checkpoint(tracking.tracking_uri(config.tracking), reference)
        parent, _, name = url.rstrip("/").rpartition("/")
        found = checkpoint.load(open_store(parent, config.storage), name, with_optimizer=False)
    else:
        runs = open_store(f"{config.runs_url}/{config.run_key}", config.storage)
        best = checkpoint.best(runs)
        if best is None:
            raise checkpoint.CheckpointError(f"{runs.url('')}: no checkpoint; run jobs.train first, or set evaluate.checkpoint")
        found = checkpoint.load(runs, best, with_optimizer=False)
    model = found.progress["model"]
    if model["recurrence"] != config.model.recurrence:
        raise checkpoint.CheckpointError(
            f"{found.url}: trained with recurrence {model['recurrence']}, but model.recurrence = {config.model.recurrence}; "
            f"add model.recurrence={model['recurrence']}"
        )
    classes = found.progress["score"]["class_names"]
    if tuple(classes) != manifest.class_names:
        raise checkpoint.CheckpointError(
            f"{found.url}: trained for the {len(classes)} classes {', '.join(classes[:3])}, ...; data set {manifest.name} has "
            f"{len(manifest.class_names)}: {', '.join(manifest.class_names[:3])}, ..."
        )
    net = build_ccnet(**model)
    checkpoint.restore(found, net)
    return net, found


def evaluate(config: Config) -> Score:
    """Scores the checkpoint on the validation split with `train.workers` Ray tasks, each image exactly once."""
    _, manifest = open_data(config)
    net, found = load_network(config, manifest)
    cluster.connect()
    num_workers, num_gpus = config.train.workers, int(cluster.gpus_for(config.train.workers))
    task = ray.remote(num_cpus=config.train.cpus_per_worker, num_gpus=num_gpus)(_evaluate_slice)
    shared = ray.put(net)
    parts = ray.get([task.remote(shared, config, manifest, rank) for rank in range(num_workers)])
    counts = torch.stack([torch.tensor(counts) for counts, _ in parts]).sum(0)
    protocol = describe(config, manifest) | {"checkpoint": found.url, "checkpoint_sha256": found.sha256}
    return checked_score(counts, sum(images for _, images in parts), manifest, "val", protocol)


def _evaluate_slice(net: CCNet, config: Config, manifest: Manifest, rank: int) -> tuple[list[list[int]], int]:
    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    torch.set_num_threads(workers.num_threads(config.train.workers))
    store = open_store(config.data_url, config.storage)
    indices = list(range(rank, manifest.num_images("val"), config.train.workers))
    samples = evaluation_samples(store, manifest, "val", indices, config.evaluate.scale)
    confusion, images = evaluate_samples(net.to(device), samples, len(manifest.class_names), device)
    return confusion.counts.cpu().tolist(), images

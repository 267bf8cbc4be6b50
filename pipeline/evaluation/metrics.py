"""Pixel counts of a split, and the figures computed from them: metric points and the per-class table."""

from typing import Any, NamedTuple

import torch

from ccnet import ConfusionMatrix
from ccnet.boundary_iou import BoundaryIoU
from ccnet.calibration import BINS, Calibration
from pipeline.formatting import table
from pipeline.tracking.keys import class_keys

BOUNDARY_RATIO = 0.02
"""Width of a boundary as a share of the image diagonal: the paper's value for COCO and LVIS."""
ABOVE_CHANCE = 0.02
"""How far an mIoU must lie above that of the same predictions at random pixels: labels of noise stay below."""


class Counts(NamedTuple):
    """Pixel counts of some images; counts of several workers add up to those of all their images."""

    confusion: ConfusionMatrix
    boundary: BoundaryIoU

    @classmethod
    def none(cls, num_classes: int) -> "Counts":
        """The counts of no image."""
        return cls(ConfusionMatrix(num_classes), BoundaryIoU(num_classes, dilation_ratio=BOUNDARY_RATIO))

    def add(self, prediction: torch.Tensor, label: torch.Tensor) -> "Counts":
        """Counts one batch, uint8[B, H, W] each; returns self."""
        self.confusion.update(prediction, label)
        self.boundary.update(prediction, label)
        return self

    def merge(self, other: "Counts") -> "Counts":
        """Adds the counts of other images; returns self."""
        self.confusion.merge(other.confusion)
        self.boundary.merge(other.boundary)
        return self


class ImageScore(NamedTuple):
    """How well one image was predicted."""

    sample_id: str
    labelled: int
    """Its pixels with a label."""
    wrong: float
    """Share of them with another class than the label's; 0 if there are none."""
    miou: float
    """Mean IoU over the classes that occur in its label or prediction; NaN if none does."""
    class_iou: tuple[float, ...]
    """NaN where the class occurs in neither."""

    @classmethod
    def of(cls, sample_id: str, counts: Counts) -> "ImageScore":
        """The score of one image by its counts."""
        pixels, iou = counts.confusion.counts, counts.confusion.iou()
        labelled = int(pixels.sum())
        wrong = 1 - int(pixels.diagonal().sum()) / labelled if labelled else 0.0
        return cls(sample_id, labelled, wrong, counts.confusion.miou(), tuple(iou.tolist()))


class Score(NamedTuple):
    """The score of a split, which JSON can hold: `Score(**json.loads(json.dumps(score._asdict())))`."""

    counts: list[list[int]]
    """int64[K, K], row = truth, column = prediction."""
    class_names: tuple[str, ...]
    num_images: int
    protocol: dict[str, Any]
    """How the numbers were measured (law 8)."""
    boundary_counts: list[list[int]]
    """int64[2, K], intersection and union of the boundaries."""
    interval: tuple[float, float] | None = None
    """Interval of the mIoU over images, of the kind in the protocol's `miou_interval`; None if it was not computed."""
    doubts: tuple[str, ...] = ()
    """What the data say against the score, each in a few words: `doubts` of pipeline/data/labels.py."""
    gamma: float | None = None
    """Weight of the attention; None if R = 0, or in a score of an earlier version."""
    attention_off_miou: float | None = None
    """mIoU of the same weights with R = 0; None if it was not measured."""
    class_intervals: tuple[tuple[float, float] | None, ...] | None = None
    """As `interval`, of the IoU of each class; None for one that does not occur."""
    confidences: list[list[int]] | None = None
    """int64[2, 256], the counts of a `Calibration`; None if it was not measured."""

    @property
    def matrix(self) -> ConfusionMatrix:
        return _matrix(torch.tensor(self.counts))

    @property
    def boundary(self) -> BoundaryIoU:
        boundary = BoundaryIoU(len(self.class_names), dilation_ratio=self.protocol["boundary_dilation_ratio"])
        boundary.counts += torch.tensor(self.boundary_counts)
        return boundary

    @property
    def calibration(self) -> Calibration | None:
        if self.confidences is None:
            return None
        calibration = Calibration()
        calibration.counts += torch.tensor(self.confidences)
        return calibration

    @property
    def level(self) -> float:
        """Share of resamples that the intervals hold, 0 to 1."""
        return float(self.protocol["miou_interval"]["level"])

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur in label or prediction, 0..1."""
        return self.matrix.miou()

    @property
    def num_labelled(self) -> int:
        """Number of classes that have a pixel in the labels."""
        return int(torch.tensor(self.counts).sum(1).count_nonzero())

    @property
    def coverage(self) -> str:
        """`over 1 of 2 classes` if the labels lack a class, to be shown next to the mIoU; empty if they have every class."""
        averaged, labelled, known = int(self.matrix.iou().isfinite().sum()), self.num_labelled, len(self.class_names)
        if labelled == known:
            return ""
        only_predicted = f", {averaged - labelled} of them without a label" if averaged > labelled else ""
        return f"over {averaged} of {known} classes{only_predicted}"

    @property
    def flaw(self) -> str | None:
        """Why this score is no reason to recommend its checkpoint; None if it is one."""
        if self.num_labelled < len(self.class_names):
            return f"its score covers {self.num_labelled} of {len(self.class_names)} classes"
        if not self.miou > self.majority_miou:
            figures = f"its mIoU {self.miou:.4f} is not above {self.majority_miou:.4f}"
            return f"{figures}, that of always predicting the most frequent class"
        if not self.miou > self.chance_miou + ABOVE_CHANCE:
            figures = f"its mIoU {self.miou:.4f} is not more than {ABOVE_CHANCE:g} above {self.chance_miou:.4f}"
            return f"{figures}, that of the same predictions at random pixels"
        few = ["a single image"] if self.num_images == 1 else []
        return f"its score means little: {', '.join([*few, *self.doubts])}" if few or self.doubts else None

    @property
    def caveat(self) -> str:
        """All that speaks against the score, in a few words, to be shown next to its figures; empty if nothing does."""
        return _joined(self.coverage, self._weakness)

    @property
    def _weakness(self) -> str:
        """The caveat without the classes that are absent."""
        weak = ""
        if not self.miou > self.majority_miou and self.num_labelled > 1:
            weak = f"not above the {self.majority_miou:.4f} of the majority class"
        elif not self.miou > self.chance_miou + ABOVE_CHANCE and self.num_labelled > 1:
            weak = f"hardly above the {self.chance_miou:.4f} of chance"
        return _joined(weak, *self.doubts)

    @property
    def majority_miou(self) -> float:
        """mIoU of a predictor that always predicts the most frequent class of these labels."""
        pixels = torch.tensor(self.counts).sum(1)
        majority = torch.zeros_like(torch.tensor(self.counts))
        majority[:, int(pixels.argmax())] = pixels
        return _matrix(majority).miou()

    @property
    def chance_miou(self) -> float:
        """mIoU that is expected if each class is predicted as often as here, but at random pixels."""
        counts = torch.tensor(self.counts, dtype=torch.float64)
        labelled, predicted = counts.sum(1), counts.sum(0)
        both = labelled * predicted / counts.sum()
        return (both / (labelled + predicted - both)).nanmean().item()

    def metrics(self) -> dict[str, float]:
        """Metric points val/<figure>, and val/iou/<key of the class> of every class that occurs.

        `val/num_classes` is the number of classes that the labels have.
        """
        matrix = self.matrix
        points = {
            "val/miou": self.miou,
            "val/num_classes": float(self.num_labelled),
            "val/pixel_accuracy": matrix.pixel_accuracy(),
            "val/mean_accuracy": matrix.mean_accuracy(),
            "val/frequency_weighted_iou": matrix.frequency_weighted_iou(),
            "val/boundary_miou": self.boundary.miou(),
        }
        if self.gamma is not None:
            points["val/gamma"] = self.gamma
        if self.calibration is not None:
            points["val/calibration_error"] = self.calibration.error()
        points |= {f"val/iou/{key}": iou for key, iou in zip(class_keys(self.class_names), matrix.iou().tolist(), strict=True)}
        return {key: value for key, value in points.items() if value == value}  # NaN: nothing to divide by

    def table(self) -> str:
        """Figures of each class, then over all classes, ready to print."""
        pixels = torch.tensor(self.counts).sum(1)
        columns = (self.matrix.iou(), self.matrix.class_accuracy(), self.boundary.iou())
        rows = [
            [name, *(figure(float(column[k])) for column in columns), f"{float(pixels[k] / max(1, int(pixels.sum()))):.1%}"]
            for k, name in enumerate(self.class_names)
        ]
        summary = self.summary()
        width = max(len(name) for name in (*self.class_names, *(name for name, _, _ in summary)))
        classes = table(("class", "IoU", "accuracy", "boundary IoU", "pixels"), rows, width=width)
        return "\n".join([classes, *(f"{name:<{width}}  {figure(value):>6}  {note}".rstrip() for name, value, note in summary)])

    def summary(self) -> list[tuple[str, float, str]]:
        """(name, value, note) of each figure over all classes."""
        matrix, caveat, note = self.matrix, self.caveat, _joined(self.caveat, counted(self.num_images))
        if self.interval:
            low, high = self.interval
            note += f", {100 * self.level:g} % interval over images {low:.4f} to {high:.4f}"
        absent = f"over all {len(self.class_names)} classes, absent ones counting 0: the published code's figure"
        width = f"d = {100 * self.boundary.dilation_ratio:g} % of the image diagonal"
        attention = []
        if self.attention_off_miou is not None:
            attention.append(("attention off", self.attention_off_miou, "mIoU of the same weights with R = 0"))
        if self.gamma is not None:
            attention.append(("gamma", self.gamma, "weight of the attention; near 0 it changes nothing"))
        calibrated = []
        if self.calibration is not None:
            about = f"mean difference of confidence and accuracy, {BINS} bins (ECE); 0 is best"
            calibrated.append(("calibration error", self.calibration.error(), about))
        return [
            ("mIoU", self.miou, note),
            *attention,
            ("all-classes mIoU", matrix.miou_all_classes(), _joined(self._weakness, absent)),
            ("pixel accuracy", matrix.pixel_accuracy(), caveat),
            ("mean accuracy", matrix.mean_accuracy(), caveat),
            ("frequency-weighted IoU", matrix.frequency_weighted_iou(), caveat),
            ("boundary mIoU", self.boundary.miou(), _joined(caveat, width)),
            *calibrated,
            ("majority class", self.majority_miou, "mIoU of always predicting the most frequent class"),
        ]


def _joined(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def counted(num_images: int) -> str:
    """`1 image`, `4 images`."""
    return "1 image" if num_images == 1 else f"{num_images} images"


def _matrix(counts: torch.Tensor) -> ConfusionMatrix:
    matrix = ConfusionMatrix(len(counts))
    matrix.counts += counts
    return matrix


def figure(value: float) -> str:
    """`0.7134`, or `absent` for what could not be computed."""
    return f"{value:.4f}" if value == value else "absent"

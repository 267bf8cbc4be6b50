"""Figures of counts: the printed table, the metric points, and the score in a checkpoint."""

import json

import pytest
import torch

from pipeline.evaluation.metrics import Counts, Score

PROTOCOL = {"boundary_dilation_ratio": 0.02, "miou_interval": {"level": 0.95}}
TRAINED = Score(
    counts=[[80, 10, 0], [0, 10, 0], [0, 0, 0]],
    class_names=("road", "car", "sky"),
    num_images=4,
    protocol=PROTOCOL,
    boundary_counts=[[6, 3, 0], [10, 10, 0]],
)
EVALUATED = TRAINED._replace(interval=(0.61, 0.74))


def test_the_table_of_an_evaluation() -> None:
    assert EVALUATED.table().splitlines() == [
        "class                      IoU  accuracy  boundary IoU  pixels",
        "road                    0.8889    0.8889        0.6000   90.0%",
        "car                     0.5000    1.0000        0.3000   10.0%",
        "sky                     absent    absent        absent    0.0%",
        "mIoU                    0.6944  over 2 of 3 classes, 4 images, 95 % interval over images 0.6100 to 0.7400",
        "all-classes mIoU        0.4630  over all 3 classes, absent ones counting 0: the published code's figure",
        "pixel accuracy          0.9000  over 2 of 3 classes",
        "mean accuracy           0.9444  over 2 of 3 classes",
        "frequency-weighted IoU  0.8500  over 2 of 3 classes",
        "boundary mIoU           0.4500  over 2 of 3 classes, d = 2 % of the image diagonal",
        "majority class          0.4500  mIoU of always predicting the most frequent class",
    ]


def test_gamma_and_the_score_without_attention_stand_below_the_miou() -> None:
    score = TRAINED._replace(gamma=0.5, attention_off_miou=0.25)
    lines = [line.split() for line in score.table().splitlines()]
    after = next(i for i, line in enumerate(lines) if line[:1] == ["mIoU"]) + 1
    assert (lines[after][:3], lines[after + 1][:2]) == (["attention", "off", "0.2500"], ["gamma", "0.5000"])
    assert score.metrics() == TRAINED.metrics() | {"val/gamma": 0.5}


def test_what_was_not_counted_is_not_in_the_table() -> None:
    assert "interval" not in TRAINED.table()


def test_metric_points_are_the_figures_and_the_classes_that_occur() -> None:
    assert TRAINED.metrics() == pytest.approx(
        {
            "val/miou": 25 / 36,
            "val/num_classes": 2,
            "val/pixel_accuracy": 0.9,
            "val/mean_accuracy": 17 / 18,
            "val/frequency_weighted_iou": 0.85,
            "val/boundary_miou": 0.45,
            "val/iou/road": 8 / 9,
            "val/iou/car": 0.5,
        }
    )


def scored(*counts: list[int]) -> Score:
    return TRAINED._replace(counts=list(counts), class_names=("background", "crack"), boundary_counts=[[0, 0], [0, 0]])


MAJORITY = "its mIoU 0.4000 is not above 0.4000, that of always predicting the most frequent class"
CHANCE = "is not more than 0.02 above 0.3333, that of the same predictions at random pixels"


@pytest.mark.parametrize(
    ("score", "caveat", "flaw"),
    [
        (scored([9, 1], [1, 9]), "", None),
        (scored([9, 0], [0, 0]), "over 1 of 2 classes", "its score covers 1 of 2 classes"),
        (scored([8, 1], [0, 0]), "over 2 of 2 classes, 1 of them without a label", "its score covers 1 of 2 classes"),
        (scored([0, 0], [0, 0]), "over 0 of 2 classes", "its score covers 0 of 2 classes"),
        (scored([8, 0], [2, 0]), "not above the 0.4000 of the majority class", MAJORITY),
        (scored([5, 5], [5, 5]), "hardly above the 0.3333 of chance", f"its mIoU 0.3333 {CHANCE}"),
        (scored([9, 1], [1, 9])._replace(doubts=("all seen",)), "all seen", "its score means little: all seen"),
    ],
)  # fmt: skip
def test_a_score_says_in_its_own_lines_what_speaks_against_it_and_why_it_recommends_nothing(
    score: Score, caveat: str, flaw: str | None
) -> None:
    assert (score.caveat, score.flaw) == (caveat, flaw)
    lines = {line[:22].strip(): line for line in score.table().splitlines()}
    assert lines["mIoU"].endswith(f"{caveat}, 4 images" if caveat else "  4 images")
    for name in ("pixel accuracy", "mean accuracy", "frequency-weighted IoU", "boundary mIoU"):
        assert caveat in lines[name]


def test_labels_of_noise_are_at_chance_however_they_are_predicted() -> None:
    """A network that guesses beats the majority class: 1/3 against 1/4 for two classes of equal size."""
    drawn = torch.Generator().manual_seed(0)
    label = torch.randint(0, 2, (4, 24, 24), dtype=torch.uint8, generator=drawn)
    blobs = torch.randint(0, 2, (4, 3, 3), dtype=torch.uint8, generator=drawn).repeat_interleave(8, 1).repeat_interleave(8, 2)
    counts = Counts.none(2).add(blobs, label).confusion.counts
    score = scored(*counts.tolist())
    assert score.miou > score.majority_miou
    assert score.flaw
    assert score.flaw.endswith("that of the same predictions at random pixels")


def test_a_score_of_one_image_recommends_nothing() -> None:
    assert scored([9, 1], [1, 9])._replace(num_images=1).flaw == "its score means little: a single image"


@pytest.mark.parametrize("score", [EVALUATED, TRAINED])
def test_a_checkpoint_keeps_the_score(score: Score) -> None:
    again = Score(**json.loads(json.dumps(score._asdict())))
    assert again.table() == score.table()
    assert again.metrics() == score.metrics()


def test_counts_of_parts_add_up_to_the_counts_of_the_whole() -> None:
    label = torch.randint(0, 3, (4, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = Counts.none(3).add(label.roll(1, dims=2), label)
    parts = Counts.none(3).add(label[:1].roll(1, dims=2), label[:1])
    parts.merge(Counts.none(3).add(label[1:].roll(1, dims=2), label[1:]))
    assert torch.equal(parts.confusion.counts, whole.confusion.counts)
    assert torch.equal(parts.boundary.counts, whole.boundary.counts)

"""Data sets on which a score means little: its lines say so, and it recommends no checkpoint, whatever the network predicts."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from pipeline.data.prepare import prepare
from pipeline.evaluation.evaluate import checked_score
from pipeline.evaluation.metrics import Counts
from pipeline.evaluation.protocol import validation_protocol
from pipeline.images.codec import IGNORE, UInt8
from pipeline.loading.batches import evaluation_samples
from tests.support import folders
from tests.support.folders import rows_of

Predict = Callable[[UInt8], UInt8]
DRAWN = np.random.default_rng(0)


def perfect(label: UInt8) -> UInt8:
    return np.where(label == IGNORE, 0, label).astype(np.uint8)


def first_class(label: UInt8) -> UInt8:
    return np.zeros_like(label)


def next_class(label: UInt8) -> UInt8:
    return (perfect(label) + 1) % 2


def guess(label: UInt8) -> UInt8:
    return DRAWN.integers(0, 2, (3, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)


def noise() -> UInt8:
    return DRAWN.integers(0, 2, (24, 24), dtype=np.uint8)


def few(*ids: int) -> UInt8:
    """A label with one pixel of each id; the others are ignored."""
    label = np.full((24, 24), IGNORE, np.uint8)
    label[0, : len(ids)] = ids
    return label


def border() -> UInt8:
    label = np.zeros((24, 24), np.uint8)
    label[4:-4, 4:-4] = 1
    label[10:14, 10:14] = IGNORE
    return label


A, B, C = rows_of(0, 1), rows_of(1, 0), rows_of(0, 0, 1)
RARE = np.where(np.arange(576).reshape(24, 24) < 3, 1, 0).astype(np.uint8)


class Case(NamedTuple):
    train: list[UInt8]
    val: list[UInt8]
    predict: Predict
    caveat: str
    """In the line of every figure."""
    flaw: str
    """Why no alias moves."""
    copied: int = 0
    """Images of val that are copies of training images."""


LITTLE = "its score means little: "
DOUBTFUL = {
    "val is train": Case([A, B], [A, B], perfect, "2 of the images also in another split", LITTLE, copied=2),
    "one image of val is in train": Case([A, B], [A, C], perfect, "1 of the images also in another split", LITTLE, copied=1),
    "one image, with other labels in val": Case([A, B], [B, A], perfect, "2 of the images also", LITTLE, copied=2),
    "val of one image": Case([A, B], [A], perfect, "", f"{LITTLE}a single image"),
    "one class in val": Case([A, B], [rows_of(0)] * 2, perfect, "over 1 of 2 classes", "its score covers 1 of 2 classes"),
    "one label for all": Case([A] * 3, [A] * 2, perfect, "all labels the same file", LITTLE),
    "a border for all": Case([border()] * 2, [border()] * 2, perfect, "all labels the same file", LITTLE),
    "labels of noise": Case([noise(), noise()], [noise(), noise()], guess, "of chance", "at random pixels"),
    "three pixels of a class": Case([RARE, A], [RARE] * 2, first_class, "of the majority class", "the most frequent class"),
    "two pixels a label": Case([A, B], [few(0, 1), few(1, 0)], perfect, "4 of 1,152 pixels labelled", LITTLE),
    "classes change places": Case([A, B], [B, C], next_class, "of the majority class", "the most frequent class"),
    "a class that is never predicted": Case([A, B], [C, A], first_class, "of the majority class", "the most frequent class"),
    "one class an image": Case([rows_of(0), rows_of(1)], [rows_of(0), rows_of(1)], first_class, "of the majority class", "not"),
}  # fmt: skip


@pytest.mark.parametrize("name", DOUBTFUL)
def test_a_score_that_means_little_says_so_and_recommends_nothing(tmp_path: Path, name: str) -> None:
    case = DOUBTFUL[name]
    folder = folders.write(tmp_path / "source", "[background, crack]", case.train, case.val)
    for i in range(case.copied):
        shutil.copy(folder / f"images/train/{i}.png", folder / f"images/val/{i}.png")
    config = folders.config(tmp_path, folder)
    manifest, counts = prepare(config), Counts.none(2)
    for sample in evaluation_samples(config, manifest, "val", list(range(len(case.val))), config.evaluate.scale):
        counts.add(torch.from_numpy(case.predict(sample.label))[None], torch.from_numpy(sample.label)[None])
    score = checked_score(counts, len(case.val), manifest, "val", validation_protocol(config, manifest))
    assert case.caveat in score.caveat
    assert score.flaw
    assert case.flaw in score.flaw
    lines = [line for line in score.table().splitlines() if line.startswith(("mIoU", "all-", "pixel", "mean", "freq", "bound"))]
    assert len(lines) == 6
    for line in lines if "over" not in case.caveat else lines[:1]:
        assert case.caveat in line


def test_a_sound_score_has_no_caveat(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "source", "[background, crack]", [A, B], [A, C])
    config = folders.config(tmp_path, folder)
    manifest, counts = prepare(config), Counts.none(2).add(torch.from_numpy(A)[None], torch.from_numpy(A)[None])
    score = checked_score(counts, 2, manifest, "val", validation_protocol(config, manifest))
    assert (score.caveat, score.flaw) == ("", None)
    of_train = checked_score(counts, 2, manifest, "train", validation_protocol(config, manifest, "train"))
    assert of_train.caveat == "images of the training split"

"""What is found in a folder of images and masks: layout, splits, sizes, classes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.load import storage_at
from pipeline.errors import SourceError
from pipeline.images.codec import UInt8, encode_jpeg, encode_png
from pipeline.start.folder import Folder, look
from tests.support.folders import noise, rows_of


def found(root: Path) -> Folder:
    return look(str(root), storage_at(str(root)))


def pairs(root: Path, image: Callable[[int], str], label: Callable[[int], str], number: int = 10) -> None:
    """Writes images (height 24, width 32) and masks of 0 and 255 under the given names."""
    for i in range(number):
        picture: UInt8 = np.ascontiguousarray(np.tile(noise(i), (1, 2, 1))[:, :32])
        mask: UInt8 = np.ascontiguousarray(np.tile(rows_of(0, 255), (1, 2))[:, :32])
        for name, data in ((image(i), encode_jpeg(picture)), (label(i), encode_png(mask))):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/{}.jpg", "masks/{}.png"),
        ("Image/{}.jpg", "Label/{}_label.png"),
        ("{}.jpg", "{}_mask.png"),
        ("data/images/{}.jpg", "data/masks/{}.png"),
        ("archive/data/JPEGImages/{}.jpg", "archive/data/SegmentationClass/{}.png"),
    ],
)
def test_a_folder_without_splits_and_class_table_is_read(tmp_path: Path, image: str, label: str) -> None:
    pairs(tmp_path / "mine", image.format, label.format)
    folder = found(tmp_path / "mine")
    assert (folder.layout, folder.size, folder.class_names) == ("folders", (24, 32), ("background", "foreground"))
    assert folder.val_fraction == 0.2
    assert sum(folder.num_images.values()) == 10
    assert min(folder.num_images.values()) > 0
    assert folder.notes == []


def test_own_splits_and_an_own_class_table_are_kept(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        pairs(tmp_path, f"{split}/images/{{}}.jpg".format, f"{split}/masks/{{}}.png".format)
    (tmp_path / "classes.yaml").write_text("{0: ground, 255: crack}")
    folder = found(tmp_path)
    assert (folder.val_fraction, folder.num_images, folder.entries) == (None, {"train": 10, "val": 10}, None)
    assert folder.class_names == ("ground", "crack")


def test_the_layouts_of_public_data_sets_are_recognised_by_their_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        pairs(tmp_path, f"{split}/{{}}.jpg".format, f"{split}annot/{{}}.png".format)
    assert found(tmp_path).layout == "camvid"


def test_a_faulty_table_is_an_error_and_not_replaced(tmp_path: Path) -> None:
    pairs(tmp_path, "images/{}.jpg".format, "masks/{}.png".format)
    (tmp_path / "classes.yaml").write_text("[only one]")
    with pytest.raises(SourceError, match=r"classes\.yaml: 1 class that is not ignored"):
        found(tmp_path)


def test_files_that_are_left_out_are_noted(tmp_path: Path) -> None:
    pairs(tmp_path, "images/{}.jpg".format, "masks/{}.png".format)
    for i in range(3):
        (tmp_path / f"images/more{i}.heic").write_bytes(b"")
    assert "more0.heic" in found(tmp_path).notes[0]

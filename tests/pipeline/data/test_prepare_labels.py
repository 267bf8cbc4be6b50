"""Preparation maps labels in colours, several ids and id 255 to classes, and refuses data sets that teach nothing."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.prepare import prepare, survey
from pipeline.errors import SourceError
from pipeline.images.codec import UInt8, decode_label, encode_png
from pipeline.loading.feed import Feed
from pipeline.loading.samples import open_samples
from pipeline.storage.store import open_store
from tests.support.folders import config, noise, rows_of, write

COLOURED = """
classes:
  - {id: 0, name: road, color: [128, 64, 128]}
  - {id: 1, name: car, color: [0, 0, 142]}
  - {id: 9, ignore: true, color: [0, 0, 0]}
"""
COLORS = np.zeros((256, 4), np.uint8)
COLORS[[0, 1, 9]] = (128, 64, 128, 255), (0, 0, 142, 255), (0, 0, 0, 0)
IDS = rows_of(0, 1, 9)


def painted(ids: UInt8, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(COLORS[ids]).convert(mode).save(file, "png")
    return file.getvalue()


def test_labels_in_colours_are_packed_as_their_ids(tmp_path: Path) -> None:
    ids = write(tmp_path / "ids", COLOURED, [IDS] * 3, [IDS])
    colours = write(tmp_path / "colours", COLOURED, [painted(IDS), painted(IDS, "RGBA"), IDS], [painted(IDS)])
    made = config(tmp_path, colours)
    surveyed, manifest = survey(made), prepare(made)
    assert surveyed.fingerprint == manifest.fingerprint == survey(config(tmp_path, ids)).fingerprint
    rows = open_samples(made, manifest, "train").read([0, 1, 2])
    assert all(np.array_equal(decode_label(row.label), IDS) for row in rows)
    assert manifest.splits["val"].pixels == (192, 192)
    assert manifest.splits["val"].ignored == 192
    assert prepare(made) == manifest


def test_labels_in_colours_cannot_be_used_in_place(tmp_path: Path) -> None:
    folder = write(tmp_path / "source", COLOURED, [IDS, painted(IDS)], [IDS])
    with pytest.raises(SourceError) as caught:
        prepare(config(tmp_path, folder, packed=False))
    (fault,) = caught.value.faults
    assert fault == (
        f"{folder}/masks/train/1.png: its ids are stored as RGB of 8 bits a channel, "
        "which only packing turns into 8-bit ids: set data.packed=true"
    )


def test_faults_of_labels_in_colours_are_named_once_beside_those_of_the_image(tmp_path: Path) -> None:
    wrong = Image.fromarray(np.full((24, 24, 3), 5, np.uint8))
    file = io.BytesIO()
    wrong.save(file, "png")
    folder = write(tmp_path / "source", COLOURED, [painted(IDS), painted(IDS)[:-9], file.getvalue()], [IDS])
    (folder / "images/train/2.png").write_bytes(b"")
    with pytest.raises(SourceError) as caught:
        prepare(config(tmp_path, folder))
    faults = [fault.removeprefix(f"{folder}/") for fault in caught.value.faults]
    assert faults[0] == "images/train/2.png: empty file: copy it again"
    assert faults[1].startswith("masks/train/1.png: truncated PNG")
    assert faults[2].startswith("masks/train/2.png: colours that the list of classes gives to none or to several: [5, 5, 5] (576")
    assert len(faults) == 3


def test_without_listed_colours_a_label_in_colours_is_a_fault_that_names_them(tmp_path: Path) -> None:
    folder = write(tmp_path / "source", "[road, car]", [painted(rows_of(0, 1))], [rows_of(0, 1)])
    with pytest.raises(SourceError) as caught:
        prepare(config(tmp_path, folder))
    assert caught.value.faults == [
        f"{folder}/masks/train/0.png: colours that the list of classes gives to none or to several: [0, 0, 142] (288 pixels), "
        "[128, 64, 128] (288 pixels); list them in classes.yaml (layout `folders`; with ignore: true if they are no class), or "
        "store class ids in one channel"
    ]


def test_a_palette_that_contradicts_the_classes_is_a_fault(tmp_path: Path) -> None:
    image = Image.fromarray(rows_of(0, 1), "P")
    image.putpalette([0, 0, 142, 128, 64, 128])
    file = io.BytesIO()
    image.save(file, "png")
    folder = write(tmp_path / "source", COLOURED, [file.getvalue()], [IDS])
    with pytest.raises(SourceError, match=r"masks/train/0.png: its palette contradicts .*: index 0 has the colour of id 1"):
        prepare(config(tmp_path, folder))


def test_id_255_is_a_class_where_the_list_says_so(tmp_path: Path) -> None:
    """Only padding is ignored: nothing takes a stored 255 for ignored."""
    label = rows_of(0, 255)
    lines = "classes: [{id: 0, name: background}, {id: 255, name: crack}]"
    made = config(tmp_path, write(tmp_path / "source", lines, [label] * 2, [label]), crop_size=25, cat_max=0.9)
    manifest = prepare(made)
    assert manifest.splits["train"].pixels == (576, 576)
    assert manifest.splits["train"].ignored == 0
    _, classes, _ = Feed(made, manifest, 0, workers=1).crops(np.arange(4))
    for crop in classes:  # 25 x 25 pixels with an image of 24 x 24
        assert (crop == 1).sum() == 24 * 12
        assert (crop == 255).sum() == 25 + 24


def test_several_ids_are_counted_as_one_class(tmp_path: Path) -> None:
    lines = "classes: [{id: 0, name: road}, {id: 1, name: vehicle}, {id: 2, name: vehicle}]"
    manifest = prepare(config(tmp_path, write(tmp_path / "source", lines, [rows_of(0, 1, 2)], [rows_of(0, 2)])))
    assert manifest.class_names == ("road", "vehicle")
    assert manifest.splits["train"].pixels == (192, 384)
    assert manifest.splits["train"].images == (1, 1)


@pytest.mark.parametrize("packed", [True, False])
def test_a_data_set_that_teaches_nothing_is_refused_and_nothing_left(tmp_path: Path, packed: bool) -> None:
    folder = write(tmp_path / "source", "[background, crack]", [rows_of(0, 255)] * 2, [rows_of(0, 255)])
    made = config(tmp_path, folder, packed=packed)
    with pytest.raises(SourceError, match=r"`classes: \[\{id: 0, name: background\}, \{id: 255, name: crack\}\]`"):
        prepare(made)
    assert open_store(made.storage.path, made.storage).list() == []


def test_ids_that_are_numbered_in_another_way_get_the_lines_first(tmp_path: Path) -> None:
    folder = write(tmp_path / "source", "[a, b, c]", [rows_of(0, 128, 255), rows_of(0, 1)], [rows_of(0, 128)])
    with pytest.raises(SourceError) as caught:
        prepare(config(tmp_path, folder))
    assert "spread" not in str(caught.value)  # the id 1 is none of them
    (folder / "masks/train/1.png").write_bytes(encode_png(rows_of(0, 128)))
    with pytest.raises(SourceError) as caught:
        prepare(config(tmp_path, folder))
    lines = "`classes: [{id: 0, name: a}, {id: 128, name: b}, {id: 255, name: c}]`"
    assert (
        caught.value.faults[0] == f"{folder}: the ids look like 3 classes spread over 0 to 255: write {lines} into classes.yaml"
    )
    assert len(caught.value.faults) == 4


def test_images_and_masks_that_are_swapped_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "source", COLOURED, [encode_png(noise(1))], [encode_png(noise(2))])
    (folder / "images/train/0.png").write_bytes(encode_png(IDS))
    with pytest.raises(SourceError, match=r"masks/train/0.png: colours that the list of classes gives to none"):
        prepare(config(tmp_path, folder))

"""The layouts of real data sets; tests without their files are skipped."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data.classes import CAMVID, VOC, classes
from pipeline.data.source.pairing import Pair
from pipeline.images.codec import LABEL_SUFFIXES, SUFFIXES
from pipeline.storage.store import Store
from tests.support.sources import faults, find_splits, make, voc

SHARED = Path(__file__).parents[4] / "shared" / "data"
SAMPLES = SHARED / "samples"
CAMVID_FOLDER = SHARED / "camvid"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no sample files at {SAMPLES}")
needs_camvid = pytest.mark.skipif(not CAMVID_FOLDER.is_dir(), reason=f"no CamVid at {CAMVID_FOLDER}")


@needs_camvid
def test_camvid_itself() -> None:
    source = Store(str(CAMVID_FOLDER))
    splits = find_splits("camvid", source, {})
    assert {split: len(pairs) for split, pairs in splits.items() if split != "test"} == {"train": 367, "val": 101}
    first = Pair("0001TP_006690", "train/0001TP_006690.png", "trainannot/0001TP_006690.png")
    assert min(splits["train"], key=lambda p: p.sample_id) == first
    assert replace(classes("camvid", source), color_ids={}) == CAMVID


@needs_camvid
def test_the_paths_of_camvids_own_lists_are_not_real_and_the_fault_names_the_real_ones() -> None:
    found = faults("camvid", Store(str(CAMVID_FOLDER)), {"train": "train.txt"})
    assert len(found) == 2 * 367
    assert found[0].startswith("train.txt: line 1: SegNet/CamVid/train/0001TP_006690.png: no such file: ")
    assert "the source has train/0001TP_006690.png, write that" in found[0]


@needs_samples
def test_cityscapes_itself() -> None:
    splits = find_splits("cityscapes", Store(str(SAMPLES / "cityscapes")), {})
    ids = ["aachen_000000_000019", "aachen_000001_000019", "aachen_000002_000019", "aachen_000003_000019"]
    assert [pair.sample_id for pair in splits["train"]] == ids
    assert splits["val"] == [
        Pair(
            "frankfurt_000000_000294",
            "leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png",
            "gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png",
        )
    ]


@needs_samples
def test_ade20k_itself_has_validation_images_only_here() -> None:
    source = Store(str(SAMPLES / "ade20k"))
    base = "ADEChallengeData2016"
    source_fix = "put them there, or correct data.source or data.layout"
    assert faults("ade20k", source) == [
        f"{base}/images/training: no files *{'|'.join(SUFFIXES)}: {source_fix}",
        f"{base}/annotations/training: no files *{'|'.join(LABEL_SUFFIXES)}: {source_fix}",
    ]
    known = classes("ade20k", source)
    assert known.names[:5] == ("wall", "building", "sky", "floor", "tree")
    assert len(set(known.names)) == 150


@needs_samples
def test_voc_itself() -> None:
    source = Store(str(SAMPLES / "voc"))
    base = "VOCdevkit/VOC2012"
    assert find_splits("voc", source, {}) == {
        "train": [Pair("2011_000003", f"{base}/JPEGImages/2011_000003.jpg", f"{base}/SegmentationClass/2011_000003.png")],
        "val": [Pair("2011_000006", f"{base}/JPEGImages/2011_000006.jpg", f"{base}/SegmentationClass/2011_000006.png")],
    }
    names = (SAMPLES / "voc" / "class_names.txt").read_text().splitlines()
    short = {"_background_": "background", "potted plant": "pottedplant", "tv/monitor": "tvmonitor"}
    assert tuple(short.get(name, name) for name in names) == VOC.names


@needs_samples
def test_lists_in_the_form_of_ccnet_and_of_deeplab(tmp_path: Path) -> None:
    city = "aachen/aachen_000000_000019"
    image, label = f"leftImg8bit/train/{city}_leftImg8bit.png", f"gtFine/train/{city}_gtFine_labelIds.png"
    for name in ("leftImg8bit", "gtFine"):
        os.symlink(SAMPLES / "cityscapes" / name, tmp_path / name)
    source = make(tmp_path, train__lst=f"{image}\t{label}\n")
    splits = find_splits("cityscapes", source, {"train": "train.lst"})
    assert splits["train"] == [Pair("aachen_000000_000019_leftImg8bit", image, label)]
    assert [pair.sample_id for pair in splits["val"]] == ["frankfurt_000000_000294"]
    aug = voc(tmp_path / "voc", "", train="a\n", val="c\n", train_aug="/JPEGImages/d.jpg /SegmentationClassAug/d.png\n")
    aug.write("SegmentationClassAug/d.png", b"x")
    splits = find_splits("voc", aug, {"train": "ImageSets/Segmentation/train_aug.txt"})
    assert splits["train"] == [Pair("d", "JPEGImages/d.jpg", "SegmentationClassAug/d.png")]

"""The account of a source: every file is that of a sample, a text file that was read, or left out for a reason."""

import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pipeline.data.layouts import find_samples
from pipeline.data.source.inventory import Inventory, LeftOut
from pipeline.errors import SourceError
from pipeline.storage.store import Store
from tests.support.sources import make, voc

SAMPLES = ("images/train/a.jpg", "masks/train/a.png", "images/val/v.jpg", "masks/val/v.png")


def left_out(root: Path, *files: str) -> list[tuple[str, str, tuple[str, ...], bool]]:
    """(split, kind, keys, whether it is a warning) of what is left out beside two samples."""
    groups = find_samples("folders", make(root, *SAMPLES, *files), {}).inventory.left_out
    return [(group.split, group.kind, group.keys, bool(group.fix)) for group in groups]


def test_files_of_desktops_and_unfinished_copies_are_only_counted(tmp_path: Path) -> None:
    litter = ("__MACOSX/._a.jpg", "images/.DS_Store", "images/train/@eaDir/a.jpg/t.jpg", "images/train/Thumbs.db",
              "images/train/b.jpg.part", "masks/val/.ipynb_checkpoints/v-checkpoint.png")  # fmt: skip
    found = left_out(tmp_path, *litter)
    assert {(kind, warned) for _, kind, _, warned in found} == {("hidden files, desktop files and unfinished copies", False)}
    assert sorted(key for *_, keys, _ in found for key in keys) == sorted(litter)


@pytest.mark.parametrize(
    ("files", "split", "kind", "warned"),
    [
        (["images/train/notes.txt"], "train", "files with endings that are not read", False),
        (["images/train/x.xyz", "masks/train/x.xyz"], "train", "files with endings that are not read", True),
        (["images/train/b.heic", "masks/train/b.npy"], "train", "files .heic, which are not read", True),
        (["images/train/a.heic"], "train", "previews and other files of samples", False),
        (["masks/train/a.json"], "train", "previews and other files of samples", False),
        (["masks/val/v_color.png"], "val", "previews and other files of samples", False),
        (["images/extra/b.jpg", "masks/extra/b.png"], "", "files in folders that no split reads", True),
        (["masks_color/train/a.png"], "", "files in folders that no split reads", False),
        (["docs/readme.md"], "", "files in folders that no split reads", False),
        (["images/test/t.jpg"], "test", "files of a split without labels", False),
    ],
)
def test_what_looks_like_a_sample_is_a_warning(tmp_path: Path, files: list[str], split: str, kind: str, warned: bool) -> None:
    assert (split, kind, warned) in [(group[0], group[1], group[3]) for group in left_out(tmp_path, *files)]


def test_samples_that_no_list_names_are_a_warning_and_images_without_label_are_not(tmp_path: Path) -> None:
    flat = [f"{folder}/{stem}.{end}" for stem in "abc" for folder, end in (("images", "jpg"), ("masks", "png"))]
    inventory = find_samples("folders", make(tmp_path, *flat, "images/d.jpg", train__txt="a", val__txt="b"), {}).inventory
    assert inventory.lines() == (
        "files           9 seen: images with labels: 1 in train, 1 in val; lists and class tables: 2; left out: 3",
        "left out        train, val: images and labels that no list names (2): images/c.jpg, masks/c.png",
        "left out        train, val: images without label that no list names (1): images/d.jpg",
    )
    assert inventory.warnings() == (
        ("left out: train, val: images and labels that no list names (2): images/c.jpg, masks/c.png",
         "name them in a list, or move them to another folder"),
    )  # fmt: skip


def test_the_unlabelled_images_of_voc_are_no_warning(tmp_path: Path) -> None:
    inventory = find_samples("voc", voc(tmp_path, "", train="a\nb", val="c"), {}).inventory
    assert [(group.kind, group.keys) for group in inventory.left_out] == [
        ("images without label that no list names", ("JPEGImages/d.jpg",))
    ]
    assert inventory.warnings() == ()


def test_an_image_that_does_not_fit_the_names_of_cityscapes_is_a_warning(tmp_path: Path) -> None:
    files = [name.format(place) for place in ("train/u/a", "val/u/b")
             for name in ("leftImg8bit/{}_leftImg8bit.png", "gtFine/{}_gtFine_labelIds.png")]  # fmt: skip
    inventory = find_samples(
        "cityscapes", make(tmp_path, *files, "leftImg8bit/train/u/c.png", "gtCoarse/train/u/c.png"), {}
    ).inventory
    assert [(group.split, group.kind, bool(group.fix)) for group in inventory.left_out] == [
        ("", "files in folders that no split reads", False),
        ("train", "pictures whose names do not fit the layout", True),
    ]


def test_a_link_to_nothing_that_is_no_sample_is_a_warning(tmp_path: Path) -> None:
    make(tmp_path, *SAMPLES)
    (tmp_path / "more").symlink_to(tmp_path / "disk")
    inventory = find_samples("folders", Store(str(tmp_path)), {}).inventory
    assert [(group.kind, group.keys, bool(group.fix)) for group in inventory.left_out] == [
        ("links whose target does not exist", ("more",), True)
    ]


def test_of_many_files_the_first_three_are_named() -> None:
    group = LeftOut("train", "files", tuple("abcde"), "")
    assert Inventory({"train": 1}, 2, (), (group,)).lines()[1] == "left out        train: files (5): a, b, c and 2 more"


NAMES = st.builds(
    lambda form, name, tail, end: unicodedata.normalize(form, name) + tail + end,
    st.sampled_from(["NFC", "NFD"]),
    st.sampled_from(["a", "b", "é", ".a", "a_2", "img_a", "Thumbs"]),
    st.sampled_from(["", "_mask", "_color", "_labelIds", ".jpg", "_x"]),
    st.sampled_from([".png", ".jpg", ".PNG", ".tif", ".txt", ".json", ".heic", ".db", ".xyz", ".webp", ""]),
)
FOLDERS = st.sampled_from([
    *(f"{kind}/{split}" for kind in ("images", "masks") for split in ("train", "val", "test", "train/x")),
    "images", "masks", "train", "valid", "extra", "__MACOSX/images", "labels/val",
])  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.builds("{}/{}".format, FOLDERS, NAMES), max_size=6),
    st.lists(st.builds("{}/{}".format, FOLDERS, NAMES), max_size=2),
)
def test_every_file_is_accounted_for_once(files: list[str], links: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = make(Path(folder), *SAMPLES, *files)
        for link in set(links) - {*SAMPLES, *files}:
            (Path(folder) / link).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / link).symlink_to("nowhere")
        try:
            found = find_samples("folders", source, {})
        except SourceError:
            event("refused")
            return
        paired = [key for pairs in found.splits.values() for pair in pairs for key in pair.keys]
        rest = [key for group in found.inventory.left_out for key in group.keys]
        assert sorted([*paired, *found.inventory.texts, *rest]) == source.list()

"""The layouts: the pairs and classes found in a folder or bucket, and the texts of the faults."""

import os
import secrets
from pathlib import Path

import pytest

from pipeline.config.base import Storage
from pipeline.data.classes import GENERATED, classes
from pipeline.data.source.pairing import Pair
from pipeline.errors import SourceError, StorageError
from pipeline.images.codec import IGNORE, LABEL_SUFFIXES, SUFFIXES
from pipeline.storage.store import Store, open_store
from tests.support.sources import ADE, faults, find_splits, make, object_info, voc

IMAGES, LABELS = "|".join(SUFFIXES), "|".join(LABEL_SUFFIXES)
VAL = ("val/v.png", "valannot/v.png")


def test_a_missing_folder_an_empty_folder_an_empty_prefix_name_the_setting(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SourceError) as caught:
            find_splits("camvid", Store(str(folder)), {})
        expected = f"data.source = {folder}: no such folder, or an empty one: correct data.source"
        assert caught.value.faults == [expected]


def test_generated_has_classes_and_no_pairs(tmp_path: Path) -> None:
    assert classes("generated", None) == GENERATED
    with pytest.raises(SourceError, match=r"'generated': has no pairs of files; legal: camvid, cityscapes, ade20k, voc, folders"):
        find_splits("generated", Store(str(tmp_path)), {})


def test_a_fault_of_many_files_is_one_line_of_the_message(tmp_path: Path) -> None:
    source = make(tmp_path, *VAL, "train/z.png", "trainannot/z.png", *(f"train/{i}.png" for i in range(10, 40)))
    with pytest.raises(SourceError) as caught:
        find_splits("camvid", source, {})
    assert len(caught.value.faults) == 30
    first = f"{tmp_path}/train/10.png: image without label: add {tmp_path}/trainannot/10.png"
    assert str(caught.value) == f"{first} (29 more files have it: 11.png, 12.png, 13.png, 14.png, 15.png and 24 more)"


def test_long_lists_of_faults_are_cut_in_the_message_only() -> None:
    error = SourceError([f"{i}.png: odd in way {'x' * i}" for i in range(30)], "mend them")
    assert str(error).splitlines()[19:] == [f"19.png: odd in way {'x' * 19}", "... and 10 more", "mend them"]
    assert len(error.faults) == 30


def test_a_source_one_folder_too_high_is_named(tmp_path: Path) -> None:
    make(tmp_path / "CamVid", *VAL, "train/a.png", "trainannot/a.png")
    with pytest.raises(SourceError) as caught:
        find_splits("camvid", Store(str(tmp_path)), {})
    assert caught.value.faults[0] == f"{tmp_path}/train: no files *{IMAGES}: set data.source={tmp_path}/CamVid"


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    make(tmp_path / "disk", "a.png")
    source = make(tmp_path / "source", *VAL, "trainannot/a.png")
    os.symlink(tmp_path / "disk", tmp_path / "source" / "train")
    os.symlink(tmp_path / "source", tmp_path / "source" / "valannot" / "loop")
    os.symlink(tmp_path / "disk", tmp_path / "disk" / "loop")
    assert find_splits("camvid", source, {})["train"] == [Pair("a", "train/a.png", "trainannot/a.png")]


def test_pairs_are_sorted_and_other_files_ignored(tmp_path: Path) -> None:
    files = "train/b.jpg", "train/a.PNG", "trainannot/a.png", "trainannot/b.png", "train/notes.txt", "train/.c.png"
    assert find_splits("camvid", make(tmp_path, *VAL, *files), {}) == {
        "train": [Pair("a", "train/a.PNG", "trainannot/a.png"), Pair("b", "train/b.jpg", "trainannot/b.png")],
        "val": [Pair("v", *VAL)],
    }


def test_test_is_taken_when_it_has_labels(tmp_path: Path) -> None:
    source = make(tmp_path, *VAL, "train/a.png", "trainannot/a.png", "test/t.png", "test/u.png")
    assert list(find_splits("camvid", source, {})) == ["train", "val"]
    make(tmp_path, "testannot/t.png")
    assert faults("camvid", source) == ["test/u.png: image without label: add testannot/u.png"]
    make(tmp_path, "testannot/u.png")
    assert [p.sample_id for p in find_splits("camvid", source, {})["test"]] == ["t", "u"]


def test_all_faults_of_all_splits_at_once(tmp_path: Path) -> None:
    source = make(tmp_path, "val/a.png", "val/b.png", "val/b.jpg", "val/c.png", "valannot/c.png", "valannot/d.png", "train/x.png")
    assert faults("camvid", source) == [
        f"trainannot: no files *{LABELS}: put them there, or correct data.source or data.layout; or write a list of `IMAGE "
        "LABEL` lines and set data.lists.train=LIST (what lies there: train/: 1 .png; val/: 3 .png, 1 .jpg; "
        "valannot/: 2 .png)",
        "val/b.png: same name as b.jpg: a sample has one file",
        "val/a.png: image without label: add valannot/a.png",
        "val/b.jpg: image without label: add valannot/b.png",
        "valannot/d.png: label without image: add it to val",
    ]


def test_a_cityscapes_id_may_be_in_one_city_only(tmp_path: Path) -> None:
    files = [f"leftImg8bit/{city}_leftImg8bit.png" for city in ("train/aachen/a_0", "train/bonn/a_0", "val/ulm/u_0")]
    labels = [f.replace("leftImg8bit/", "gtFine/").replace("_leftImg8bit", "_gtFine_labelIds") for f in files]
    assert faults("cityscapes", make(tmp_path, *files, *labels)) == [
        "leftImg8bit/train/bonn/a_0_leftImg8bit.png: has the sample id `a_0` of leftImg8bit/train/aachen/a_0_leftImg8bit.png: "
        "rename one"
    ]


def test_cityscapes_images_may_be_jpeg_and_its_test_split_comes_by_a_list_only(tmp_path: Path) -> None:
    stems = {"train/aachen/a": "jpg", "val/ulm/u": "jpeg", "test/berlin/b": "png"}
    files = [f"leftImg8bit/{stem}_leftImg8bit.{end}" for stem, end in stems.items()]
    source = make(tmp_path, *files, *(f"gtFine/{stem}_gtFine_labelIds.png" for stem in stems))
    splits = find_splits("cityscapes", source, {})
    assert {split: [p.sample_id for p in pairs] for split, pairs in splits.items()} == {"train": ["a"], "val": ["u"]}
    source.write("test.lst", f"{files[2]}\tgtFine/test/berlin/b_gtFine_labelIds.png\n".encode())
    assert find_splits("cityscapes", source, {"test": "test.lst"})["test"] == [
        Pair("b_leftImg8bit", files[2], "gtFine/test/berlin/b_gtFine_labelIds.png")
    ]


@pytest.mark.parametrize("base", ["", "ADEChallengeData2016/"])
def test_ade20k_by_its_folder_or_the_parent(tmp_path: Path, base: str) -> None:
    source = make(tmp_path, *(base + name for name in ADE))
    source.write(f"{base}objectInfo150.txt", object_info().encode())
    assert find_splits("ade20k", source, {}) == {
        "train": [Pair("t", base + ADE[0], base + ADE[1])],
        "val": [Pair("v", base + ADE[2], base + ADE[3])],
    }
    known = classes("ade20k", source)
    assert (known.names[:4], len(known.names)) == (("wall", "building", "screen door", "thing 4"), 150)
    assert known.colors[:3] == ((128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert (known.label_map[0], known.label_map[1], known.label_map[150], len(known.label_map)) == (IGNORE, 0, 149, 151)


@pytest.mark.parametrize("base", ["", "VOC2012/", "VOCdevkit/VOC2012/"])
def test_voc_takes_what_its_lists_name(tmp_path: Path, base: str) -> None:
    source = voc(tmp_path, base, train="b\na\n\n", val="c\n", test="d\n")
    splits = find_splits("voc", source, {})
    assert {split: [p.sample_id for p in pairs] for split, pairs in splits.items()} == {"train": ["a", "b"], "val": ["c"]}
    assert splits["val"] == [Pair("c", f"{base}JPEGImages/c.jpg", f"{base}SegmentationClass/c.png")]


def test_faults_of_voc_name_the_line(tmp_path: Path) -> None:
    source = voc(tmp_path, "", train="a\nd\na\n")
    assert faults("voc", source) == [
        "ImageSets/Segmentation/train.txt: line 2: `d`: no label SegmentationClass/d.png: add it, or correct the line",
        "ImageSets/Segmentation/train.txt: line 3: `a`: is in line 1 already: delete one",
        "ImageSets/Segmentation/val.txt: no such file: it lists the sample ids; "
        "put them there, or correct data.source or data.layout",
    ]


def test_folders_by_split_may_be_nested(tmp_path: Path) -> None:
    names = "train/b", "train/deep/er/a", "val/v"
    source = make(tmp_path, *(f"images/{n}.jpeg" for n in names), *(f"masks/{n}.png" for n in names))
    splits = find_splits("folders", source, {})
    assert [p.sample_id for p in splits["train"]] == ["b", "deep/er/a"]
    assert splits["train"][1] == Pair("deep/er/a", "images/train/deep/er/a.jpeg", "masks/train/deep/er/a.png")
    assert list(splits) == ["train", "val"]


def test_folders_flat_with_lists(tmp_path: Path) -> None:
    files = [f"images/{n}.jpg" for n in "abc"] + ["images/x/d.png", "masks/x/d.png"] + [f"masks/{n}.png" for n in "abc"]
    source = make(tmp_path, *files, train__txt="x/d\nb\n", val__txt="\ufeffc", test__txt="a")
    splits = find_splits("folders", source, {})
    assert {k: [p.sample_id for p in v] for k, v in splits.items()} == {"train": ["b", "x/d"], "val": ["c"], "test": ["a"]}


def test_folders_of_neither_kind_are_shown_both(tmp_path: Path) -> None:
    first, lies, second = faults("folders", make(tmp_path, "images/a.png", "masks/a.png"))
    assert first.endswith(
        "no split `train`: layout `folders` keeps it either in images/train/ and masks/train/, "
        "or in images/ and masks/ with train.txt next to them, one sample id (image name without suffix) per line; "
        "or set data.lists.train to a list of `IMAGE LABEL` lines"
    )
    assert lies.endswith("what lies there: images/: 1 .png; masks/: 1 .png")
    assert "no split `val`" in second
    assert "data.val_fraction=0.2 takes it from train" in second


def test_faults_of_flat_folders(tmp_path: Path) -> None:
    source = make(tmp_path, "images/a.png", "images/a.jpg", "masks/a.png", train__txt="a\nb.png\n", val__txt=" \n")
    assert faults("folders", source) == [
        "images/a.png: same name as a.jpg: a sample has one file",
        f"train.txt: line 2: `b.png`: no image images/b.png{IMAGES}: add it, or correct the line",
        "train.txt: line 2: `b.png`: no label masks/b.png.png: add it, or correct the line",
        "val.txt: lists no sample: write one sample id (image name without suffix) per line",
    ]


def test_a_list_replaces_the_layouts_own_way_for_its_split(tmp_path: Path) -> None:
    files = "raw/1/a.jpg", "raw/2/a.jpg", "raw/b b.jpg", "lab/1.png", "lab/2.png", "lab/b b.png"
    text = "/raw/1/a.jpg  /lab/1.png\r\n\n./raw/2/a.jpg lab/2.png\nraw/b b.jpg\tlab/b b.png\n"
    source = make(tmp_path, *VAL, *files, ours__txt=text)
    assert find_splits("camvid", source, {"train": "ours.txt"}) == {
        "train": [
            Pair("b b", "raw/b b.jpg", "lab/b b.png"),
            Pair("raw/1/a", "raw/1/a.jpg", "lab/1.png"),
            Pair("raw/2/a", "raw/2/a.jpg", "lab/2.png"),
        ],
        "val": [Pair("v", *VAL)],
    }


def test_a_list_may_hold_full_paths_and_paths_of_windows(tmp_path: Path) -> None:
    files = [f"images/{name}.jpg" for name in "abcd"] + [f"masks/{name}.png" for name in "abcd"]
    texts = {
        "train.txt": f"\ufeff{tmp_path}/images/a.jpg \r\nimages\\b.jpg\t\r\n\r\n",
        "val.txt": f"{tmp_path}/images/c.jpg {tmp_path}/masks/c.png\nimages\\d.jpg,masks\\d.png\n",
    }
    source = make(tmp_path, *files)
    for name, text in texts.items():
        source.write(name, text.encode())
    splits = find_splits("folders", source, {})
    assert {k: [p.sample_id for p in v] for k, v in splits.items()} == {"train": ["a", "b"], "val": ["c", "d"]}


@pytest.mark.parametrize("line", ["/home/joe/set/images/a.jpg", "set/images/a.jpg", "C:\\set\\images\\a.jpg", "A.JPG"])
def test_a_list_of_another_machine_or_spelling_is_told_the_right_path(tmp_path: Path, line: str) -> None:
    source = make(tmp_path, "images/a.jpg", "masks/a.png", "masks/b.jpg", train__txt=f"{line}\n", val__txt="b.jpg")
    near, *others = faults("folders", source)
    assert near == f"train.txt: line 1: `{line}`: no such image: the source has images/a.jpg, write that"
    assert others[0].startswith("val.txt: line 1: `b.jpg`: no image images/b.jpg")  # and not masks/b.jpg


def test_a_name_that_is_no_text_is_a_fault_of_its_file(tmp_path: Path) -> None:
    source = make(tmp_path, "train/a.png", "trainannot/a.png", *VAL)
    Path(os.fsdecode(bytes(tmp_path) + b"/train/\xff.png")).write_bytes(b"x")
    assert faults("camvid", source) == ["train/\\udcff.png: the name is no UTF-8 text: rename the file"]


def test_faults_of_a_list_name_the_line(tmp_path: Path) -> None:
    text = "a.jpg a.png\na.jpg a.png\nb.jpg\na b c\ngone.jpg a.png\na.png a.png"
    source = make(tmp_path, *VAL, "a.jpg", "a.png", ours__txt=text, empty__txt="\n")
    assert faults("camvid", source, {"train": "ours.txt", "val": "empty.txt", "test": "lists/gone.txt"}) == [
        "ours.txt: line 2: image a.jpg is in line 1 already: delete one",
        "ours.txt: line 3: 1 fields, not `IMAGE LABEL`: write two, with a tab between if a name has blanks",
        "ours.txt: line 4: 3 fields, not `IMAGE LABEL`: write two, with a tab between if a name has blanks",
        "ours.txt: line 5: gone.jpg: no such file: add it, or correct the line (paths are relative to data.source)",
        "a.png: has the sample id `a` of a.jpg: rename one",
        "empty.txt: lists no sample: write one `IMAGE LABEL` pair of paths per line",
        "lists/gone.txt: no such file: data.lists.test = lists/gone.txt: write a path below data.source, a full path or an "
        "s3:// address",
    ]


@pytest.fixture
def bucket(endpoint: str, credentials: None) -> Store:
    name = f"bucket-{secrets.token_hex(4)}"
    store = open_store(f"s3://{name}/data/source", Storage(path="unused", endpoint=endpoint))
    store._fs().mkdir(name)
    return store


def test_a_bucket_gives_the_same_pairs_and_classes_as_a_folder(tmp_path: Path, bucket: Store) -> None:
    names = "train/b", "train/deep/a", "val/v"
    folder = make(tmp_path, *(f"images/{n}.jpg" for n in names), *(f"masks/{n}.png" for n in names))
    folder.write("classes.yaml", b"[wall, door]")
    folder.write("ours.txt", b"images/val/v.jpg masks/val/v.png")
    for key in folder.list():
        bucket.write(key, folder.read(key))
    for lists in ({}, {"train": "ours.txt"}):
        assert find_splits("folders", bucket, lists) == find_splits("folders", folder, lists)
    assert classes("folders", bucket) == classes("folders", folder)


def test_faults_in_a_bucket_give_the_full_address(bucket: Store) -> None:
    with pytest.raises(SourceError) as caught:
        find_splits("camvid", bucket, {})
    expected = f"data.source = {bucket.root}: nothing below this prefix: correct data.source"
    assert caught.value.faults == [expected]
    gone = Store("s3://no-such-bucket-anywhere/x", bucket.endpoint)
    with pytest.raises(
        StorageError, match=r"data.source: s3://no-such-bucket-anywhere/x .* `no-such-bucket-anywhere` does not exist"
    ):
        find_splits("camvid", gone, {})
    for name in ("train/a.png", *VAL):
        bucket.write(name, b"x")
    with pytest.raises(SourceError) as caught:
        find_splits("camvid", bucket, {})
    assert caught.value.faults == [
        f"{bucket.root}/trainannot: no files *{LABELS}: put them there, or correct data.source or data.layout; or write a "
        "list of `IMAGE LABEL` lines and set data.lists.train=LIST (what lies there: train/: 1 .png; val/: 1 .png; "
        "valannot/: 1 .png)"
    ]

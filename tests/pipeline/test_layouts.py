"""The layouts: what is found in a folder or bucket, the classes, and what the faults say. Real samples where they are."""

import json
import os
import secrets
from pathlib import Path

import pytest

from pipeline.class_tables import CITYSCAPES, VOC, palette
from pipeline.layouts import CAMVID, CITYSCAPES_LABEL_MAP, GENERATED, IGNORE, LayoutError, Pair, classes, find_splits
from pipeline.settings import Storage
from pipeline.storage import StorageError, Store, open_store

SHARED = Path(__file__).parents[3] / "shared" / "data"
SAMPLES = SHARED / "samples"
CAMVID_FOLDER = SHARED / "camvid"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no sample files at {SAMPLES}")
needs_camvid = pytest.mark.skipif(not CAMVID_FOLDER.is_dir(), reason=f"no CamVid at {CAMVID_FOLDER}")

VAL = ("val/v.png", "valannot/v.png")


def make(root: Path, *files: str, **texts: str) -> Store:
    """A source of one-byte files, and of texts by name (`__` for the dot)."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    for name, text in texts.items():
        (root / name.replace("__", ".")).write_text(text)
    return Store(str(root))


def faults(layout: str, source: Store, lists: dict[str, str] | None = None) -> list[str]:
    """The faults, with the source's address cut off."""
    with pytest.raises(LayoutError) as caught:
        find_splits(layout, source, lists or {})
    return [fault.replace(f"{source.root}/", "") for fault in caught.value.faults]


def class_faults(source: Store, text: str) -> list[str]:
    source.write("classes.yaml", text.encode())
    with pytest.raises(LayoutError) as caught:
        classes("folders", source)
    assert all(fault.startswith(source.url("classes.yaml")) for fault in caught.value.faults)
    return [fault.removeprefix(f"{source.url('classes.yaml')}: ") for fault in caught.value.faults]


def test_a_missing_folder_an_empty_folder_an_empty_prefix_name_the_setting(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(LayoutError) as caught:
            find_splits("camvid", Store(str(folder)), {})
        expected = f"data.source = {folder}: no such folder, or an empty one: correct data.source"
        assert caught.value.faults == [expected]


def test_generated_has_classes_and_no_pairs(tmp_path: Path) -> None:
    assert classes("generated", None) == GENERATED
    with pytest.raises(LayoutError, match=r"'generated': has no pairs of files; legal: camvid, cityscapes, ade20k, voc, folders"):
        find_splits("generated", Store(str(tmp_path)), {})


def test_long_lists_of_faults_are_cut_in_the_message_only(tmp_path: Path) -> None:
    source = make(tmp_path, *VAL, "train/z.png", "trainannot/z.png", *(f"train/{i}.png" for i in range(30)))
    with pytest.raises(LayoutError, match=r"\.\.\. and 10 more$") as caught:
        find_splits("camvid", source, {})
    assert len(caught.value.faults) == 30


def test_a_source_one_folder_too_high_is_named(tmp_path: Path) -> None:
    make(tmp_path / "CamVid", *VAL, "train/a.png", "trainannot/a.png")
    with pytest.raises(LayoutError) as caught:
        find_splits("camvid", Store(str(tmp_path)), {})
    assert caught.value.faults[0] == f"{tmp_path}/train: no files *.png|.jpg|.jpeg: set data.source={tmp_path}/CamVid"


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
        "trainannot: no files *.png: put them there, or correct data.source or data.layout",
        "val/b.png: same name as b.jpg: a sample has one file",
        "val/a.png: image without label: add valannot/a.png",
        "val/b.jpg: image without label: add valannot/b.png",
        "valannot/d.png: label without image: add it to val",
    ]


def test_classes_of_camvid(tmp_path: Path) -> None:
    known = classes("camvid", Store(str(tmp_path)))
    assert known == classes("camvid", None) == CAMVID
    assert len(known.names) == len(known.colors) == 11
    assert (known.label_map[8], known.names[8], known.label_map[11], 12 in known.label_map) == (8, "Car", 255, False)


def test_classes_json_takes_precedence_and_ignored_ids_leave_no_gap(tmp_path: Path) -> None:
    entries = [
        {"id": 7, "name": "road", "color": [1, 2, 3]},
        {"id": 0, "name": "void", "color": [0, 0, 0], "ignore": True},
        {"id": 3, "name": "sky", "color": [4, 5, 6]},
    ]
    known = classes("camvid", make(tmp_path, classes__json=json.dumps({"classes": entries, "note": "ours"})))
    assert (known.names, known.colors) == (("sky", "road"), ((4, 5, 6), (1, 2, 3)))
    assert known.label_map == {0: 255, 3: 0, 7: 1}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "not valid JSON: "),
        ("[]", r"expected \{classes: "),
        ('{"classes": [{"id": 1}]}', "entry 1: name = None: must be a text"),
        (
            '{"classes": [{"id": 300, "name": "a", "color": [1, 2, 3]}]}',
            "entry 1: id = 300: must be a whole number from 0 to 255",
        ),
        ('{"classes": []}', "0 classes that are not ignored"),
    ],
)
def test_broken_classes_json_is_named(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(LayoutError, match=rf"{tmp_path}/classes.json: {fault}"):
        classes("camvid", make(tmp_path, classes__json=text))


@needs_camvid
def test_camvid_itself() -> None:
    source = Store(str(CAMVID_FOLDER))
    splits = find_splits("camvid", source, {})
    assert {split: len(pairs) for split, pairs in splits.items() if split != "test"} == {"train": 367, "val": 101}
    first = Pair("0001TP_006690", "train/0001TP_006690.png", "trainannot/0001TP_006690.png")
    assert min(splits["train"], key=lambda p: p.sample_id) == first
    assert classes("camvid", source) == CAMVID


@needs_camvid
def test_the_paths_of_camvids_own_lists_are_not_real_and_the_fault_tells_the_real_ones() -> None:
    found = faults("camvid", Store(str(CAMVID_FOLDER)), {"train": "train.txt"})
    assert len(found) == 2 * 367
    assert found[0].startswith("train.txt: line 1: SegNet/CamVid/train/0001TP_006690.png: no such file: ")
    assert "the source has train/0001TP_006690.png, write that" in found[0]


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


def test_classes_of_cityscapes() -> None:
    assert classes("cityscapes", None) == CITYSCAPES
    assert len(CITYSCAPES.names) == len(CITYSCAPES.colors) == 19
    named = dict(zip(CITYSCAPES.names, CITYSCAPES.colors, strict=True))
    stored = {7: "road", 19: "traffic light", 26: "car", 33: "bicycle"}
    assert {i: CITYSCAPES.names[CITYSCAPES_LABEL_MAP[i]] for i in stored} == stored
    assert (named["road"], named["car"], named["bicycle"]) == ((128, 64, 128), (0, 0, 142), (119, 11, 32))
    assert [i for i in range(256) if i not in CITYSCAPES_LABEL_MAP] == list(range(34, 255))


ADE = ("images/training/t.jpg", "annotations/training/t.png", "images/validation/v.jpg", "annotations/validation/v.png")


def object_info(separator: str = "\t", lines: int = 150) -> str:
    names = ["wall", "building, edifice", "screen door, screen", *(f"thing {i}, synonym" for i in range(4, lines + 1))]
    rows = [["Idx", "Ratio", "Train", "Val", "Name"], *([f"{i} ", "0.1", "7", "8", n] for i, n in enumerate(names, 1))]
    return "".join(separator.join(row) + " \r\n" for row in rows)


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


def test_a_missing_or_broken_list_of_ade20k_classes(tmp_path: Path) -> None:
    source = make(tmp_path, *ADE)
    with pytest.raises(LayoutError, match=r"objectInfo150.txt: no such file: .* copy it there from ADEChallengeData2016.zip"):
        classes("ade20k", source)
    for text in ("", "no table", object_info(lines=149)):
        source.write("objectInfo150.txt", text.encode())
        with pytest.raises(LayoutError, match=r"objectInfo150.txt: expected a heading and the lines 1 to 150"):
            classes("ade20k", source)
    with pytest.raises(LayoutError, match=r"data.source is missing: layout `ade20k`"):
        classes("ade20k", None)


@needs_samples
def test_ade20k_itself_has_validation_images_only_here() -> None:
    source = Store(str(SAMPLES / "ade20k"))
    base = "ADEChallengeData2016"
    source_fix = "put them there, or correct data.source or data.layout"
    assert faults("ade20k", source) == [
        f"{base}/images/training: no files *.png|.jpg|.jpeg: {source_fix}",
        f"{base}/annotations/training: no files *.png: {source_fix}",
    ]
    known = classes("ade20k", source)
    assert known.names[:5] == ("wall", "building", "sky", "floor", "tree")
    assert len(set(known.names)) == 150


def voc(root: Path, base: str, **lists: str) -> Store:
    source = make(root, *(f"{base}JPEGImages/{i}.jpg" for i in "abcd"), *(f"{base}SegmentationClass/{i}.png" for i in "abc"))
    for split, text in lists.items():
        source.write(f"{base}ImageSets/Segmentation/{split}.txt", text.encode())
    return source


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


def test_classes_and_palette_of_voc() -> None:
    assert classes("voc", None) == VOC
    assert (len(VOC.names), VOC.names[15], VOC.colors[15], VOC.label_map[255]) == (21, "person", (192, 128, 128), 255)
    # PASCAL VOC 2012 development kit, VOClabelcolormap: background, aeroplane, bicycle, tvmonitor, void.
    assert [palette(i) for i in (0, 1, 2, 20, 255)] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (0, 64, 128), (224, 224, 192)]
    assert len({palette(i) for i in range(256)}) == 256


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
    first, second = faults("folders", make(tmp_path, "images/a.png", "masks/a.png"))
    assert first.endswith(
        "no split `train`: layout `folders` keeps it either in images/train/ and masks/train/, "
        "or in images/ and masks/ with train.txt beside them, one sample id (image name without suffix) a line"
    )
    assert "no split `val`" in second


def test_faults_of_flat_folders(tmp_path: Path) -> None:
    source = make(tmp_path, "images/a.png", "images/a.jpg", "masks/a.png", train__txt="a\nb.png\n", val__txt=" \n")
    assert faults("folders", source) == [
        "images/a.png: same name as a.jpg: a sample has one file",
        "train.txt: line 2: `b.png`: no image images/b.png.png|.jpg|.jpeg: add it, or correct the line",
        "train.txt: line 2: `b.png`: no label masks/b.png.png: add it, or correct the line",
        "val.txt: lists no sample: write one sample id (image name without suffix) a line",
    ]


def test_a_plain_list_of_names_counts_from_0(tmp_path: Path) -> None:
    known = classes("folders", make(tmp_path, classes__yaml="- wall\n- door\n"))
    assert known.names == ("wall", "door")
    assert known.colors == ((0, 0, 0), (128, 0, 0))
    assert known.label_map == {0: 0, 1: 1, 255: 255}


def test_classes_yaml_with_ids_colours_and_ignored_ones(tmp_path: Path) -> None:
    text = """
    classes:
      - {id: 9, name: door}
      - {id: 0, ignore: true}
      - {id: 255, name: wall, color: [1, 2, 3]}
    """
    known = classes("folders", make(tmp_path, classes__yaml=text))
    assert (known.names, known.colors) == (("door", "wall"), (palette(9), (1, 2, 3)))
    assert known.label_map == {0: 255, 9: 0, 255: 1}


def test_every_mistake_in_classes_yaml(tmp_path: Path) -> None:
    text = """
    classes:
      - {id: 1, name: wall, colour: [1, 2, 3]}
      - {id: true, name: no, color: [1, 2, 300], ignore: 1}
      - door
      - {id: 2, name: sky}
      - {id: 2, name: sky}
    """
    assert class_faults(Store(str(tmp_path)), text) == [
        "entry 1: colour = [1, 2, 3]: no such key; legal: id, name, color, ignore",
        "entry 2: id = True: must be a whole number from 0 to 255, the value of the class in the labels",
        "entry 2: ignore = 1: must be true or false",
        "entry 2: name = False: must be a text (YAML reads a bare no, on or 1 as something else: put it in quotes)",
        "entry 2: color = [1, 2, 300]: must be [red, green, blue], each 0 to 255 (or leave it out)",
        "entry 3: 'door': expected {id: 0..255, name: NAME}, and if need be color: [r, g, b] or ignore: true",
        "entry 5: id = 2: entry 4 has it too (give each class an id of its own)",
        "entry 5: name = 'sky': entry 4 has it too (rename one)",
    ]


def test_classes_yaml_as_a_whole(tmp_path: Path) -> None:
    source = Store(str(tmp_path))
    form = "a list of names, or `classes:` and a list of {id, name, color, ignore}"
    with pytest.raises(LayoutError, match=r"classes.yaml: no such file: layout `folders` reads its classes from there"):
        classes("folders", source)
    assert class_faults(source, "wall") == [f"expected {form}; found str"]
    assert class_faults(source, "names: [wall]") == [f"expected {form}; found the keys names"]
    assert class_faults(source, "[wall")[0].startswith("not valid YAML: ")
    assert class_faults(source, "[]") == ["0 classes that are not ignored: must be 1 to 255, for 255 means ignored"]
    many = "\n".join(f"- c{i}" for i in range(256))
    assert class_faults(source, many) == ["256 classes that are not ignored: must be 1 to 255, for 255 means ignored"]
    (tmp_path / "classes.yaml").write_bytes(b"- \xff")
    with pytest.raises(LayoutError, match=r"classes.yaml: not UTF-8 text \(invalid start byte at byte 2\): save it as UTF-8"):
        classes("folders", source)


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


def test_faults_of_a_list_name_the_line(tmp_path: Path) -> None:
    text = "a.jpg a.png\na.jpg a.png\nb.jpg\na b c\ngone.jpg a.png\na.png a.png"
    source = make(tmp_path, *VAL, "a.jpg", "a.png", ours__txt=text, empty__txt="\n")
    assert faults("camvid", source, {"train": "ours.txt", "val": "empty.txt", "test": "lists/gone.txt"}) == [
        "ours.txt: line 2: image a.jpg is in line 1 already: delete one",
        "ours.txt: line 3: 1 fields, not `IMAGE LABEL`: write two, with a tab between if a name has blanks",
        "ours.txt: line 4: 3 fields, not `IMAGE LABEL`: write two, with a tab between if a name has blanks",
        "ours.txt: line 5: gone.jpg: no such file: add it, or correct the line (paths are relative to data.source)",
        "a.png: has the sample id `a` of a.jpg: rename one",
        "empty.txt: lists no sample: write one `IMAGE LABEL` pair of paths a line",
        "lists/gone.txt: no such file: data.lists.test = lists/gone.txt: must be a path below data.source",
    ]


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
    with pytest.raises(LayoutError) as caught:
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
    with pytest.raises(LayoutError) as caught:
        find_splits("camvid", bucket, {})
    assert caught.value.faults == [
        f"{bucket.root}/trainannot: no files *.png: put them there, or correct data.source or data.layout"
    ]

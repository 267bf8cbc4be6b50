"""The CamVid layout: what is found, and what the faults of a folder say."""

import json
from pathlib import Path

import pytest

from pipeline.layouts import CAMVID, GENERATED, LayoutError, classes, find_pairs

CAMVID_FOLDER = Path(__file__).parents[3] / "shared" / "data" / "camvid"


def make(root: Path, *files: str) -> str:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return str(root)


def test_pairs_are_sorted_by_name_and_other_files_ignored(tmp_path: Path) -> None:
    source = make(
        tmp_path, "train/b.jpg", "train/a.png", "trainannot/a.png", "trainannot/b.png", "train/notes.txt", "train/.c.png"
    )
    found = find_pairs("camvid", source, "train")
    assert [(p.sample_id, Path(p.image).name, Path(p.label).name) for p in found] == [
        ("a", "a.png", "a.png"),
        ("b", "b.jpg", "b.png"),
    ]


def test_all_faults_at_once(tmp_path: Path) -> None:
    source = make(tmp_path, "val/a.png", "val/b.png", "val/b.jpg", "val/c.png", "valannot/c.png", "valannot/d.png")
    with pytest.raises(LayoutError) as caught:
        find_pairs("camvid", source, "val")
    assert caught.value.faults == [
        f"{source}/val/b.png: same name as b.jpg: a sample has one file",
        f"{source}/val/a.png: image without label: add {source}/valannot/a.png",
        f"{source}/val/b.png: image without label: add {source}/valannot/b.png",
        f"{source}/valannot/d.png: label without image: add it to {source}/val",
    ]


def test_a_missing_folder_an_empty_folder_a_missing_split(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"nowhere: no such folder: correct data.source"):
        find_pairs("camvid", str(tmp_path / "nowhere"), "train")
    with pytest.raises(LayoutError, match=r"train: no such folder: layout `camvid` keeps `train/` and `trainannot/`") as caught:
        find_pairs("camvid", str(tmp_path), "train")
    assert len(caught.value.faults) == 2
    for name in ("train", "trainannot"):
        (tmp_path / name).mkdir()
    with pytest.raises(LayoutError, match=r"train: no .png or .jpg or .jpeg file: put"):
        find_pairs("camvid", str(tmp_path), "train")


def test_long_lists_of_faults_are_cut_in_the_message_only(tmp_path: Path) -> None:
    source = make(tmp_path, "train/z.png", "trainannot/z.png", *(f"train/{i}.png" for i in range(30)))
    with pytest.raises(LayoutError, match=r"\.\.\. and 10 more$") as caught:
        find_pairs("camvid", source, "train")
    assert len(caught.value.faults) == 30


def test_classes_of_camvid(tmp_path: Path) -> None:
    known = classes("camvid", str(tmp_path))
    assert known == CAMVID
    assert len(known.names) == len(known.colors) == 11
    assert (known.label_map[8], known.names[8], known.label_map[11], 12 in known.label_map) == (8, "Car", 255, False)


def test_classes_json_takes_precedence_and_ignored_ids_leave_no_gap(tmp_path: Path) -> None:
    entries = [
        {"id": 7, "name": "road", "color": [1, 2, 3]},
        {"id": 0, "name": "void", "color": [0, 0, 0], "ignore": True},
        {"id": 3, "name": "sky", "color": [4, 5, 6]},
    ]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": entries}))
    known = classes("camvid", str(tmp_path))
    assert (known.names, known.colors) == (("sky", "road"), ((4, 5, 6), (1, 2, 3)))
    assert known.label_map == {0: 255, 3: 0, 7: 1}


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"classes": [{"id": 1}]}', '{"classes": [{"id": 300, "name": "a", "color": [1, 2, 3]}]}', '{"classes": []}'],
)
def test_broken_classes_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(LayoutError, match=r"classes.json: .* expected \{classes: "):
        classes("camvid", str(tmp_path))


def test_generated_has_classes_and_no_pairs() -> None:
    assert classes("generated", None) == GENERATED
    with pytest.raises(LayoutError, match="has no folder of pairs"):
        find_pairs("generated", "", "train")


@pytest.mark.skipif(not CAMVID_FOLDER.is_dir(), reason=f"no CamVid at {CAMVID_FOLDER}")
def test_camvid_itself() -> None:
    assert [len(find_pairs("camvid", str(CAMVID_FOLDER), split)) for split in ("train", "val")] == [367, 101]
    assert classes("camvid", str(CAMVID_FOLDER)) == CAMVID

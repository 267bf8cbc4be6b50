"""The classes of each layout, and the faults reported for class files with mistakes."""

import json
from pathlib import Path

import pytest

from pipeline.data.classes import CAMVID, CITYSCAPES, CITYSCAPES_LABEL_MAP, VOC, classes, palette
from pipeline.errors import SourceError
from pipeline.storage.store import Store
from tests.support.sources import ADE, make, object_info


def class_faults(source: Store, text: str) -> list[str]:
    source.write("classes.yaml", text.encode())
    with pytest.raises(SourceError) as caught:
        classes("folders", source)
    assert all(fault.startswith(source.url("classes.yaml")) for fault in caught.value.faults)
    return [fault.removeprefix(f"{source.url('classes.yaml')}: ") for fault in caught.value.faults]


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
        ('{"classes": [{"id": 1}]}', "entry 1: name = None: must be text"),
        (
            '{"classes": [{"id": 300, "name": "a", "color": [1, 2, 3]}]}',
            "entry 1: id = 300: must be a whole number from 0 to 255",
        ),
        ('{"classes": []}', "0 classes that are not ignored"),
    ],
)
def test_broken_classes_json_is_named(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(SourceError, match=rf"{tmp_path}/classes.json: {fault}"):
        classes("camvid", make(tmp_path, classes__json=text))


def test_classes_of_cityscapes() -> None:
    assert classes("cityscapes", None) == CITYSCAPES
    assert len(CITYSCAPES.names) == len(CITYSCAPES.colors) == 19
    named = dict(zip(CITYSCAPES.names, CITYSCAPES.colors, strict=True))
    stored = {7: "road", 19: "traffic light", 26: "car", 33: "bicycle"}
    assert {i: CITYSCAPES.names[CITYSCAPES_LABEL_MAP[i]] for i in stored} == stored
    assert (named["road"], named["car"], named["bicycle"]) == ((128, 64, 128), (0, 0, 142), (119, 11, 32))
    assert [i for i in range(256) if i not in CITYSCAPES_LABEL_MAP] == list(range(34, 255))


def test_a_missing_or_broken_list_of_ade20k_classes(tmp_path: Path) -> None:
    source = make(tmp_path, *ADE)
    with pytest.raises(SourceError, match=r"objectInfo150.txt: no such file: .* copy it there from ADEChallengeData2016.zip"):
        classes("ade20k", source)
    for text in ("", "no table", object_info(lines=149)):
        source.write("objectInfo150.txt", text.encode())
        with pytest.raises(SourceError, match=r"objectInfo150.txt: expected a heading and the lines 1 to 150"):
            classes("ade20k", source)
    with pytest.raises(SourceError, match=r"data.source is missing: layout `ade20k`"):
        classes("ade20k", None)


def test_classes_and_palette_of_voc() -> None:
    assert classes("voc", None) == VOC
    assert (len(VOC.names), VOC.names[15], VOC.colors[15], VOC.label_map[255]) == (21, "person", (192, 128, 128), 255)
    # PASCAL VOC 2012 development kit, VOClabelcolormap: background, aeroplane, bicycle, tvmonitor, void.
    assert [palette(i) for i in (0, 1, 2, 20, 255)] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (0, 64, 128), (224, 224, 192)]
    assert len({palette(i) for i in range(256)}) == 256


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


@pytest.mark.parametrize("form", ["{}", "names: {}", "classes: {}"])
@pytest.mark.parametrize(
    "entries", ["{7: road, 2: car}", "[{id: 7, name: road}, {id: 2, name: car}]", "[_, _, car, _, _, _, _, road]"]
)
def test_classes_yaml_is_a_list_or_ids_with_names(tmp_path: Path, form: str, entries: str) -> None:
    known = classes("folders", make(tmp_path, classes__yaml=form.format(entries)))
    assert [known.names[known.label_map[stored]] for stored in (2, 7)] == ["car", "road"]
    assert known.label_map[255] == 255


def test_a_table_that_is_not_read_is_named_where_there_is_no_other(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"classes.yaml: no such file: .*; .*/data.yaml is not read: copy its names \("):
        classes("folders", make(tmp_path, data__yaml="names: [road, car]"))


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
        "entry 2: name = False: must be text (YAML reads an unquoted no, on or 1 as another type: put it in quotes)",
        "entry 2: color = [1, 2, 300]: must be [red, green, blue], each 0 to 255 (or leave it out)",
        "entry 3: 'door': expected {id: 0..255, name: NAME}, optionally with color: [r, g, b] or ignore: true",
        "entry 5: id = 2: entry 4 has the same id (give each class its own id)",
    ]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("a\nmIoU 1.0", "contains '\\n': must be one line of text without control characters (remove it)"),
        ("\x1b[31mred", "contains '\\x1b': must be one line of text without control characters (remove it)"),
        ("\ud800", "contains '\\ud800': must be one line of text without control characters (remove it)"),
        ("a\u2028b", "contains '\\u2028': must be one line of text without control characters (remove it)"),
        ("\u202eroad", "contains '\\u202e': must be one line of text without control characters (remove it)"),
        ("\u200b", "has no visible character (write a name)"),
        ("x" * 301, "has 301 characters: must be at most 300 (shorten it)"),
    ],
    ids=ascii,
)
def test_a_name_that_would_garble_a_table_is_refused(tmp_path: Path, name: str, fault: str) -> None:
    text = json.dumps([name, "road"])  # which is YAML too
    assert class_faults(Store(str(tmp_path)), text) == [f"entry 1: name = {name[:60]!a}: {fault}"]


def test_names_in_any_script_are_taken_as_they_are(tmp_path: Path) -> None:
    names = (
        "道路",
        "🚗",
        "👩\u200d🚒",
        "طريق",
        "सड़क",
        "cafe\u0301",
        "Road",
        "road",
        "a/b",
        "..",
        "None",
        "true",
        "1",
        "$x$",
        "x" * 300,
    )
    store = Store(str(tmp_path))
    store.write("classes.yaml", json.dumps(names, ensure_ascii=False).encode())
    assert classes("folders", store).names == names


def test_classes_yaml_as_a_whole(tmp_path: Path) -> None:
    source = Store(str(tmp_path))
    form = "a list of names, {id: name}, or `classes:` and a list of {id, name, color, ignore}"
    with pytest.raises(SourceError, match=r"classes.yaml: no such file: layout `folders` reads its classes from there"):
        classes("folders", source)
    assert class_faults(source, "wall") == [f"expected {form}; found 'wall'"]
    assert class_faults(source, "") == [f"expected {form}; found nothing"]
    assert class_faults(source, "{nc: 1, names: [wall]}") == [f"expected {form}; found the keys nc, names"]
    assert class_faults(source, "{wall: 0, door: 1}") == [f"expected {form}; found the keys wall, door"]
    assert class_faults(source, "{-1: wall, 0: door}")[0].startswith("entry 1: id = -1: must be a whole number from 0 to 255")
    for text in ("{0: wall, 1: door, 1: sky}", "names: {0: wall, 1: door, 1: sky}"):
        assert class_faults(source, text) == ["has 1 twice, of which YAML would keep the last: delete one"]
    assert class_faults(source, "[wall")[0].startswith("not valid YAML: ")
    fix = "name also what the other pixels are, such as {id: 0, name: background}"
    for text, number in (("[]", "0 classes that are"), ("[crack]", "1 class that is")):
        fault = f"{number} not ignored: at least 2, because with fewer there is nothing to learn: {fix}"
        assert class_faults(source, text) == [fault]
    for many in (256, 300):
        (fault,) = class_faults(source, "\n".join(f"- c{i}" for i in range(many)))
        assert fault.startswith(
            f"{many} classes: at most 255, because labels have 8 bits, and one of their values means ignored: "
        )
    (tmp_path / "classes.yaml").write_bytes(b"- \xff")
    with pytest.raises(SourceError, match=r"classes.yaml: not UTF-8 text \(invalid start byte at byte 2\): save it as UTF-8"):
        classes("folders", source)


@pytest.mark.parametrize(
    "text",
    [
        "classes: [{id: 0, name: road}, {id: 1, name: vehicle}, {id: 2, name: vehicle}]",
        "classes: [{id: [2, 1], name: vehicle}, {id: 0, name: road}]",
        "[road, vehicle, vehicle]",
    ],
)
def test_several_ids_are_one_class(tmp_path: Path, text: str) -> None:
    known = classes("folders", make(tmp_path, classes__yaml=text))
    assert (known.names, known.colors) == (("road", "vehicle"), (palette(0), palette(1)))
    assert known.label_map == {0: 0, 1: 1, 2: 1, 255: 255}


def test_a_list_of_ids_is_checked_id_by_id(tmp_path: Path) -> None:
    text = "classes: [{id: [1, 2], name: a}, {id: [2, 3], name: b}, {id: [], name: c}, {id: [4, x], name: d}, {id: 5, name: e}]"
    legal = "must be a whole number from 0 to 255, the value of the class in the labels"
    assert class_faults(Store(str(tmp_path)), text) == [
        "entry 2: id = 2: entry 1 has the same id (give each class its own id)",
        f"entry 3: id = []: {legal}",
        f"entry 4: id = [4, 'x']: {legal}",
    ]


def test_listed_colours_tell_ids_unless_two_classes_share_them(tmp_path: Path) -> None:
    text = """
    classes:
      - {id: 0, name: road, color: [1, 2, 3]}
      - {id: 1, name: car}
      - {id: 2, name: truck, color: [9, 9, 9]}
      - {id: [4, 3], name: car, color: [4, 5, 6]}
      - {id: 5, name: car, color: [7, 8, 9]}
      - {id: 6, name: bus, color: [9, 9, 9]}
      - {id: 7, ignore: true, color: [0, 0, 0]}
    """
    known = classes("folders", make(tmp_path, classes__yaml=text))
    assert known.color_ids == {(1, 2, 3): 0, (4, 5, 6): 3, (7, 8, 9): 5, (0, 0, 0): 7}
    assert known.colors == ((1, 2, 3), (4, 5, 6), (9, 9, 9), (9, 9, 9))
    assert known.label_map == {0: 0, 1: 1, 2: 2, 3: 1, 4: 1, 5: 1, 6: 3, 7: 255, 255: 255}
    assert (CAMVID.color_ids, VOC.color_ids) == ({}, {})

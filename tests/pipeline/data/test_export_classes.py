"""The class tables of annotation tools, read where a source has no classes.yaml."""

from pathlib import Path

import pytest

from pipeline.data.classes import classes
from pipeline.errors import SourceError
from pipeline.images.codec import IGNORE
from tests.support.sources import make

CVAT = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\n\ncar:0,0,142:wheel,door:\n"


@pytest.mark.parametrize(
    ("key", "text", "names", "ids"),
    [
        ("labelmap.txt", CVAT, ("background", "road", "car"), (0, 1, 2)),
        (
            "train/_classes.csv",
            "Pixel Value, Class\r\n0, background\r\n1, car\r\n7, tree\r\n",
            ("background", "car", "tree"),
            (0, 1, 7),
        ),
        ("_classes.csv", "\ufeffPixel Value, Class\n0,road, wet\n1,car\n", ("road, wet", "car"), (0, 1)),
        ("class_names.txt", "_background_\r\ncar", ("_background_", "car"), (0, 1)),
        ("class_dict.csv", "name,r,g,b\nSky,128,128,128\nCar,64,0,128\n", ("Sky", "Car"), (0, 1)),
    ],
)
def test_the_tables_of_annotation_tools_name_the_classes(
    tmp_path: Path, key: str, text: str, names: tuple[str, ...], ids: tuple[int, ...]
) -> None:
    source = make(tmp_path, "images/train/a.jpg")
    source.write(key, text.encode())
    known = classes("folders", source)
    assert known.names == names
    assert known.label_map == {IGNORE: IGNORE, **{stored: index for index, stored in enumerate(ids)}}
    if key in ("labelmap.txt", "class_dict.csv"):
        assert known.colors[1] == ((128, 64, 128) if key == "labelmap.txt" else (64, 0, 128))


def test_tables_of_two_splits_must_be_the_same(tmp_path: Path) -> None:
    source = make(tmp_path, "train/a.jpg")
    table = "Pixel Value, Class\n0, background\n1, {}\n2, {}\n"
    source.write("train/_classes.csv", table.format("car", "tree").encode())
    source.write("valid/_classes.csv", table.format("car", "tree").encode())
    assert classes("folders", source).names == ("background", "car", "tree")
    source.write("valid/_classes.csv", table.format("tree", "car").encode())
    with pytest.raises(
        SourceError, match=r"valid/_classes.csv: its ids or names are not those of .*/train/_classes.csv, so equal"
    ):
        classes("folders", source)


def test_a_classes_yaml_comes_first(tmp_path: Path) -> None:
    assert classes("folders", make(tmp_path, classes__yaml="[wall, door]", labelmap__txt=CVAT)).names == ("wall", "door")


@pytest.mark.parametrize(
    ("key", "text", "fault"),
    [
        (
            "labelmap.txt",
            "road:red::\n",
            "line 1: 'red' is no whole number: a line has the form `name:red,green,blue:parts:actions`",
        ),
        (
            "_classes.csv",
            "Pixel Value, Class\nzero, road\n",
            "line 2: 'zero' is no whole number: a line has the form `Pixel Value, Class`",
        ),
        (
            "class_dict.csv",
            "name,r,g,b\nSky,1,2,300\n",
            "entry 1: color = [1, 2, 300]: must be [red, green, blue], each 0 to 255",
        ),
    ],
)
def test_a_faulty_table_names_the_line(tmp_path: Path, key: str, text: str, fault: str) -> None:
    source = make(tmp_path, "images/train/a.jpg")
    source.write(key, text.encode())
    with pytest.raises(SourceError) as caught:
        classes("folders", source)
    assert caught.value.faults[0].startswith(f"{source.root}/{key}: {fault}")


def test_the_fault_of_a_missing_table_names_the_tables_that_are_read(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"classes.yaml: no such file: .*labelmap.txt, _classes.csv, class_dict.csv"):
        classes("folders", make(tmp_path, "images/train/a.jpg"))

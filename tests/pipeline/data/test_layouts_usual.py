"""Layout `folders`: the forms in which people and annotation tools keep images and labels, and the messages for the others."""

import unicodedata
from pathlib import Path

import pytest

from pipeline.data.classes import classes
from pipeline.data.layouts import find_samples
from pipeline.data.source.pairing import Pair, TextList
from pipeline.errors import SourceError
from pipeline.storage.store import Store
from tests.support.sources import faults, find_splits, make


def pairs(source: Store) -> dict[str, list[tuple[str, str]]]:
    return {split: [pair.keys for pair in found] for split, found in find_splits("folders", source, {}).items()}


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Validation"])
@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/{}/a.jpg", "masks/{}/a.png"),
        ("Images/{}/a.JPG", "Masks/{}/a.PNG"),
        ("{}/images/a.tif", "{}/labels/a.tif"),
        ("img_dir/{}/a.webp", "ann_dir/{}/a.bmp"),
        ("images/{}/a.jfif", "annotations/{}/a.tiff"),
        ("{}/a_jpg.rf.0a1b.jpg", "{}/a_jpg.rf.0a1b_mask.png"),
        ("images/{}/a.jpg", "images/{}/a_labelIds.png"),
        ("images/{}/a.jpg", "masks/{}/a_mask.png"),
        ("images/{}/a.jpg", "masks/{}/a.jpg.png"),
        ("images/{}/a_sat.jpg", "masks/{}/a_mask.png"),
        ("{}/a_sat.jpg", "{}/a_mask.png"),
        ("images/{}/img_a.jpg", "masks/{}/mask_a.png"),
        ("images/{}/u/a_leftImg8bit.png", "masks/{}/u/a_gtFine_labelIds.png"),
        ("images/{}/a.png", "masks/{}/a_manual1.tif"),
        ("{}/a.png", "{}_labels/a_L.png"),
        ("{}_images/a.png", "{}_masks/a.png"),
    ],
)
def test_usual_folders_and_names_are_read(tmp_path: Path, val: str, image: str, label: str) -> None:
    made = {split: [name.format(folder) for name in (image, label)] for split, folder in (("train", "train"), ("val", val))}
    source = make(tmp_path, *made["train"], *made["val"])
    assert pairs(source) == {split: [tuple(files)] for split, files in made.items()}


def test_a_folder_of_images_and_labels_keeps_the_image_as_id(tmp_path: Path) -> None:
    source = make(tmp_path, "train/x_jpg.rf.9f.jpg", "train/x_jpg.rf.9f_mask.png", "valid/y.jpg", "valid/y_mask.png")
    assert find_splits("folders", source, {})["train"] == [
        Pair("x_jpg.rf.9f", "train/x_jpg.rf.9f.jpg", "train/x_jpg.rf.9f_mask.png")
    ]


@pytest.mark.parametrize("line", ["a", "a.jpg", "images/a.jpg", "./images/a.jpg", "/images/a", "images/a.jpg masks/a.png",
                                  "images/a.jpg,masks/a.png", "images/a.jpg\tmasks/a.png"])  # fmt: skip
def test_a_line_of_a_list_names_its_image_in_any_usual_way(tmp_path: Path, line: str) -> None:
    source = make(
        tmp_path, "images/a.jpg", "masks/a.png", "images/b.jpg", "masks/b.png", train__txt=f"{line}\n", val__txt="b.jpg"
    )
    assert pairs(source) == {"train": [("images/a.jpg", "masks/a.png")], "val": [("images/b.jpg", "masks/b.png")]}


def test_an_export_of_cvat_is_read(tmp_path: Path) -> None:
    source = make(tmp_path, *(f"JPEGImages/{i}.jpg" for i in "ab"), *(f"SegmentationClass/{i}.png" for i in "ab"),
                  *(f"SegmentationObject/{i}.png" for i in "ab"),
                  labelmap__txt="# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\n")  # fmt: skip
    source.write("ImageSets/Segmentation/train.txt", b"a\n")
    source.write("ImageSets/Segmentation/val.txt", b"b\n")
    assert pairs(source) == {
        split: [(f"JPEGImages/{i}.jpg", f"SegmentationClass/{i}.png")] for split, i in (("train", "a"), ("val", "b"))
    }
    known = classes("folders", source)
    assert (known.names, known.colors) == (("background", "road"), ((0, 0, 0), (128, 64, 128)))


@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD"), ("NFD", "NFD")])
def test_names_in_both_unicode_forms_are_pairs_and_stay_as_stored(tmp_path: Path, forms: tuple[str, str]) -> None:
    image, label = (unicodedata.normalize(form, "café") for form in forms)
    source = make(
        tmp_path, f"images/{image}.jpg", f"masks/{label}.png", "images/v.jpg", "masks/v.png", train__txt="café", val__txt="v"
    )
    assert find_splits("folders", source, {})["train"] == [Pair(image, f"images/{image}.jpg", f"masks/{label}.png")]


def test_two_unicode_forms_of_one_name_are_a_fault(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "images/train/é.png") for form in ("NFC", "NFD")]
    source = make(tmp_path, *names, "masks/train/é.png", "images/val/v.png", "masks/val/v.png")
    (fault,) = faults("folders", source)
    assert fault.endswith("a sample has one file")


def test_previews_beside_labels_are_left_out_with_their_count(tmp_path: Path) -> None:
    labels = [
        f"masks/{split}_gtFine_{kind}"
        for split in ("train/a", "val/b")
        for kind in ("labelIds.png", "color.png", "polygons.json")
    ]
    found = find_samples(
        "folders", make(tmp_path, "images/train/a.jpg", "images/val/b.jpg", "images/val/b_overlay.jpg", *labels), {}
    )
    assert found.splits["val"] == [Pair("b", "images/val/b.jpg", "masks/val/b_gtFine_labelIds.png")]
    assert found.inventory.lines()[1:] == (
        "left out        val: previews and other files of samples (3): images/val/b_overlay.jpg, masks/val/b_gtFine_color.png, "
        "masks/val/b_gtFine_polygons.json",
        "left out        train: previews and other files of samples (2): masks/train/a_gtFine_color.png, "
        "masks/train/a_gtFine_polygons.json",
    )
    assert found.inventory.warnings() == ()


def test_of_several_possible_labels_the_setting_chooses(tmp_path: Path) -> None:
    names = ["_labelIds", "_labelTrainIds"]
    source = make(tmp_path, *(f"images/{s}.jpg" for s in ("train/a", "val/b")),
                  *(f"masks/{s}{n}.png" for s in ("train/a", "val/b") for n in names))  # fmt: skip
    assert faults("folders", source)[0] == (
        "images/train/a.jpg: has 2 labels: a_labelIds.png, a_labelTrainIds.png: set data.label_suffix=_labelIds, "
        "or write a list of `IMAGE LABEL` lines and set data.lists.train=LIST"
    )
    chosen = find_samples("folders", source, {}, label_suffix="_labelTrainIds")
    assert chosen.splits["val"] == [Pair("b", "images/val/b.jpg", "masks/val/b_labelTrainIds.png")]
    assert "previews and other files of samples (1): masks/train/a_labelIds.png" in chosen.inventory.lines()[1]


def test_a_label_is_never_given_to_the_image_of_another_number(tmp_path: Path) -> None:
    source = make(tmp_path, "images/train/s.jpg", "masks/train/s_2.png", "images/val/v.jpg", "masks/val/v.png")
    assert faults("folders", source) == [
        "images/train/s.jpg: image without label: add masks/train/s.png",
        "masks/train/s_2.png: label without image: add it to images/train",
    ]


def test_what_lies_in_the_place_of_labels_is_named_with_what_reads_it(tmp_path: Path) -> None:
    images = "images/train/a.heic", "images/train/b.heic", "images/val/c.jpg"
    source = make(tmp_path, *images, "labels/train/a.txt", "labels/train/b.txt", "labels/val/c.txt")
    first, second, third = faults("folders", source)
    assert first.startswith(
        "images/train: no files *.png|.jpg|.jpeg|.jfif|.tif|.tiff|.bmp|.webp (2 .heic there): convert them to PNG or JPEG"
    )
    assert second.startswith("labels/train: no files *.png|.tif|.tiff|.bmp (2 .txt there): polygons and boxes are not read")
    assert "labelme2voc.py" in second
    assert third.startswith("labels/val: ")


def test_a_label_saved_as_jpeg_and_one_in_other_letters_are_explained(tmp_path: Path) -> None:
    images, labels = ("images/train/A.jpg", "images/train/b.jpg", "images/val/v.jpg"), ("masks/train/b.jpg", "masks/val/v.png")
    source = make(tmp_path, *images, *labels, "images/train/c.jpg", "masks/train/c.png", "masks/train/a.png")
    assert faults("folders", source)[:2] == [
        "images/train/A.jpg: image without label: masks/train/a.png differs in upper and lower case only: rename it",
        "images/train/b.jpg: image without label: masks/train/b.jpg is no label file: export it again as PNG, value = class id",
    ]


@pytest.mark.parametrize(
    "text", ["train/a.json", "train/_annotations.coco.json", "annotations/instances_train2017.json", "annotations/a.xml"]
)
def test_polygons_are_named_wherever_they_lie(tmp_path: Path, text: str) -> None:
    source = make(tmp_path, "train/a.jpg", "train/b.jpg", text)
    assert "polygons and boxes are not read, and no command imports them" in faults("folders", source)[0]
    flat = make(tmp_path / "flat", "a.jpg", "a.json")
    assert "polygons and boxes are not read" in faults("folders", flat)[0]


def test_labels_in_an_unknown_folder_are_shown_with_the_lists_that_read_them(tmp_path: Path) -> None:
    source = make(tmp_path, "train/images/a.jpg", "train/v1.2/labels/a.png", "val/images/b.jpg")
    first, second = faults("folders", source)
    assert first == (
        "train/masks: no files *.png|.tif|.tiff|.bmp: put them there, or correct data.source or data.layout; or write a list of "
        "`IMAGE LABEL` lines and set data.lists.train=LIST (what lies there: train/images/: 1 .jpg; train/v1.2/: 1 .png; "
        "val/images/: 1 .jpg)"
    )
    assert second.endswith("; if val has no labels, move it to a folder `test`")


def test_the_folders_of_nnu_net_are_read(tmp_path: Path) -> None:
    names = [
        f"{folder}/case_00{i}{channel}.png" for i in range(4) for folder, channel in (("imagesTr", "_0000"), ("labelsTr", ""))
    ]
    source = make(tmp_path, *names)
    for i in range(4):  # copies of one image would stay together
        (tmp_path / f"imagesTr/case_00{i}_0000.png").write_bytes(bytes(i + 1))
    found = find_samples("folders", source, {}, val_fraction=0.5)
    pairs = sorted(pair.keys for split in found.splits.values() for pair in split)
    assert pairs == [(f"imagesTr/case_00{i}_0000.png", f"labelsTr/case_00{i}.png") for i in range(4)]


def test_labels_of_jpeg_or_with_other_names_are_not_advised_to_be_renamed(tmp_path: Path) -> None:
    source = make(tmp_path, "images/train/a.png", "masks/train/a.jpg", "images/val/v.png", "masks/val/v.png")
    assert faults("folders", source)[0].endswith(
        " (1 .jpg there): JPEG and WebP change class ids: exchange images and masks if they are swapped, or export the mask "
        "again as PNG, without smoothing"
    )
    ids = [f"{split}/x/x_0" for split in ("train", "val")]
    files = [f"leftImg8bit/{i}_leftImg8bit.png" for i in ids] + [f"gtFine/{i}_gtFine_labelTrainIds.png" for i in ids]
    assert faults("cityscapes", make(tmp_path / "city", *files))[0].endswith(
        "(1 .png there): gtFine/train/x/x_0_gtFine_labelTrainIds.png and the others have other names: correct data.layout, or "
        "set data.layout=folders and write a classes.yaml with the ids of these labels"
    )


def test_a_folder_at_one_deeper_place_is_proposed_and_at_several_is_not(tmp_path: Path) -> None:
    source = make(tmp_path, "set/img/a.jpg", "set/masks_machine/a.png")
    assert faults("folders", source)[0].endswith(f"; or set data.source={source.url('set')}".replace(f"{source.root}/", ""))
    make(tmp_path, "other/img/a.jpg")
    assert "set data.source" not in faults("folders", source)[0]


def test_several_masks_of_an_image_and_an_image_that_is_not_read_are_explained(tmp_path: Path) -> None:
    source = make(tmp_path, "images/train/a.jpg", "masks/train/a_car.png", "masks/train/a_road.png",
                  "images/val/v.jpg", "masks/val/v.png", "images/val/q.heic", "masks/val/q.png")  # fmt: skip
    assert faults("folders", source) == [
        "images/train/a.jpg: has several masks: a_car.png, a_road.png: one mask per class or object is not read: draw them into "
        "one mask, value = class id",
        "masks/val/q.png: label without image: images/val/q.heic is not read: convert it to PNG or JPEG",
    ]


def test_names_in_other_letters_are_explained_where_no_name_fits(tmp_path: Path) -> None:
    names = [("images/train/A.jpg", "masks/train/a.png"), ("images/train/B.jpg", "masks/train/b.png")]
    source = make(tmp_path, *(name for pair in names for name in pair), "images/val/v.jpg", "masks/val/v.png")
    fix = "differs in upper and lower case only: rename it"
    assert faults("folders", source) == [f"{image}: image without label: {label} {fix}" for image, label in names]


def test_the_previews_of_cityscapes_and_the_objects_of_voc_are_no_forgotten_samples(tmp_path: Path) -> None:
    ids = [f"{split}/x/x_0" for split in ("train", "val")]
    files = [f"leftImg8bit/{i}_leftImg8bit.png" for i in ids]
    labels = [
        f"gtFine/{i}_gtFine_{kind}" for i in ids for kind in ("labelIds.png", "color.png", "instanceIds.png", "polygons.json")
    ]
    assert find_samples("cityscapes", make(tmp_path / "city", *files, *labels), {}).inventory.warnings() == ()
    voc = [f"{folder}/{name}" for name in "ab" for folder in ("SegmentationClass", "SegmentationObject")]
    source = make(tmp_path / "voc", "JPEGImages/a.jpg", "JPEGImages/b.jpg", *(f"{name}.png" for name in voc),
                  train__txt="a\n", val__txt="b\n")  # fmt: skip
    assert find_samples("folders", source, {}).inventory.warnings() == ()


def test_links_to_nothing_are_named(tmp_path: Path) -> None:
    source = make(tmp_path, "images/train/a.jpg", "masks/train/a.png", "images/val/v.jpg", "masks/val/v.png")
    for name in ("images/train/gone.jpg", "masks/train/gone.png"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    fix = "a link whose target does not exist: restore the target, or delete the link"
    assert faults("folders", source) == [f"images/train/gone.jpg: {fix}", f"masks/train/gone.png: {fix}"]


def test_a_folder_that_is_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    source = make(tmp_path, "masks/train/a.png", "images/val/v.jpg", "masks/val/v.png")
    (tmp_path / "images" / "train").symlink_to(tmp_path / "disk")
    assert faults("folders", source)[-1].startswith("images/train: a link whose target does not exist")


def test_a_list_outside_the_source_is_read(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "images/train/a.jpg", "masks/train/a.png", "images/val/v.jpg", "masks/val/v.png")
    (tmp_path / "mine").mkdir()
    mine = make(tmp_path / "mine", ours__txt="images/val/v.jpg masks/val/v.png\n", names__txt="images/val/v.jpg\n")
    for name in ("ours.txt", "names.txt"):
        splits = find_samples(
            "folders", source, {"train": TextList(mine, name, f"data.lists.train = {tmp_path}/mine/{name}")}
        ).splits
        assert [pair.keys for pair in splits["train"]] == [("images/val/v.jpg", "masks/val/v.png")]
    with pytest.raises(SourceError) as caught:
        find_samples("folders", source, {"train": TextList(mine, "gone.txt", "data.lists.train = gone.txt")})
    assert caught.value.faults[0].startswith(f"{tmp_path}/mine/gone.txt: no such file: data.lists.train = gone.txt: write a path")


@pytest.mark.parametrize("lists", [{}, {"train__txt": "{}"}, {"all__txt": "{}"}])
def test_a_fraction_makes_val_of_images_without_one(tmp_path: Path, lists: dict[str, str]) -> None:
    names = [f"{i:02}" for i in range(40)]
    texts = {key: text.format("\n".join(names)) for key, text in lists.items()}
    source = make(tmp_path, *(f"images/{n}.jpg" for n in names), *(f"masks/{n}.png" for n in names), **texts)
    for number, name in enumerate(names):
        source.write(f"images/{name}.jpg", bytes(1 + number))
    splits = find_samples("folders", source, {}, val_fraction=0.25).splits
    assert [pair.sample_id for pair in splits["val"]] == ["03", "07", "08", "09", "13", "29", "39"]
    assert sorted([*splits["train"], *splits["val"]], key=lambda pair: pair.sample_id) == [
        Pair(n, f"images/{n}.jpg", f"masks/{n}.png") for n in names
    ]


def test_a_fraction_is_refused_where_it_does_nothing(tmp_path: Path) -> None:
    source = make(tmp_path, "images/train/a.jpg", "masks/train/a.png", "images/val/v.jpg", "masks/val/v.png")
    with pytest.raises(SourceError, match=r"data.val_fraction = 0.5: .* has a split `val` of its own: remove the setting"):
        find_samples("folders", source, {}, val_fraction=0.5)
    one = make(tmp_path / "one", "images/a.jpg", "masks/a.png")
    with pytest.raises(SourceError, match=r"data.val_fraction = 0.5: train gets \d images and val \d: set another share"):
        find_samples("folders", one, {}, val_fraction=0.5)

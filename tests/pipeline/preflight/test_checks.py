"""Each check reports its fault with the fix, and reports nothing without the fault."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config.load import load, override, parse
from pipeline.data import synthetic
from pipeline.data.manifest import Manifest, Split
from pipeline.preflight import checks, data_checks, storage_checks
from pipeline.preflight.findings import Finding
from pipeline.storage.store import Store

ROOT = Path(__file__).parents[3]
TWO_CPUS = {"CPU": 2.0, "object_store_memory": 600 * 2.0**20}


def config(**overrides: Any) -> Any:
    base = parse(
        {
            "name": "t",
            "storage": {"path": "s3://bucket"},
            "data": {"name": "g", "layout": "generated", "crop_size": 65, "scale": [1.0, 1.0]},
            "model": {"recurrence": 2, "backbone": "resnet18"},
            "train": {"workers": 2, "global_batch": 8},
        }
    )
    return override(base, {key.replace("__", "."): value for key, value in overrides.items()})


def split(**changes: Any) -> Split:
    clean = Split(
        num_images=10, index="i", content="c", bytes=30_000, pixels=(30_000, 9_000, 3_000), images=(10, 8, 4), ignored=250,
        smallest=(65, 65), largest=(65, 65),
    )  # fmt: skip
    return replace(clean, **changes)


def manifest(train: Split | None = None, **changes: Any) -> Manifest:
    colors = ((0, 0, 0), (1, 1, 1), (2, 2, 2))
    splits = {"train": train or split(), "val": split()}
    clean = Manifest("g", "generated", ("road", "car", "lamp"), colors, {0: 0, 1: 1, 2: 2}, splits, True, "")
    return replace(clean, **changes)


def with_val(val: Split, train: Split | None = None) -> Manifest:
    return manifest(splits={"train": train or split(), "val": val})


def test_clean_data_and_settings_have_no_finding() -> None:
    assert checks.examine_settings(config(), manifest(), TWO_CPUS) == []


def test_the_demo_has_no_finding() -> None:
    demo = load(ROOT / "jobs/configs/demo.yaml")
    label = [synthetic.sample(index, synthetic.SEED, 129)[1] for index in range(20)]
    pixels = tuple(sum(int((ids == k).sum()) for ids in label) for k in range(6))
    images = tuple(sum(int((ids == k).any()) for ids in label) for k in range(6))
    found = split(pixels=pixels, images=images, ignored=0, smallest=(129, 129), largest=(129, 129))
    shown = manifest(class_names=synthetic.NAMES, colors=synthetic.COLORS, splits={"train": found, "val": found})
    assert checks.examine_settings(demo, shown, TWO_CPUS) == []


def test_a_finding_reads_as_a_line_and_as_a_paragraph() -> None:
    found = Finding("error", "data.x = 3: must be 2", "data.x=2")
    assert found.line == "data.x = 3: must be 2 (data.x=2)"
    assert str(found) == "error    data.x = 3: must be 2\n         fix: data.x=2"
    assert str(Finding("warning", "a.png: empty file")) == "warning  a.png: empty file"


def test_errors_come_first_and_all_at_once() -> None:
    broken = config(loss__class_weights=[1, 2], data__oversample={"bus": 1})
    found = checks.examine_settings(broken, manifest(num_duplicates=1, duplicates=(("train/a", "val/b"),)), {"CPU": 1})
    assert [finding.level for finding in found] == ["error", "error", "error", "warning"]


# Labels


def test_a_split_that_is_mostly_ignored_is_doubted() -> None:
    half = split(pixels=(300, 50, 30), ignored=380)
    assert data_checks.labels(manifest(half)) == []
    found = data_checks.labels(manifest(replace(half, ignored=620)))
    fix = "compare the ids in the labels with the label map of layout `generated`"
    assert found == [Finding("warning", "train: 62 % of the pixels are ignored", fix)]


def test_a_split_without_any_label_is_an_error_unless_it_is_the_test_split() -> None:
    nothing = split(pixels=(0, 0, 0), images=(0, 0, 0), ignored=42_250)
    for name, level in (("train", "error"), ("val", "error"), ("test", "warning")):
        (found,) = data_checks.labels(manifest(splits={"train": split(), "val": split(), name: nothing}))
        assert (found.level, found.what) == (level, f"{name}: every pixel is ignored")


def test_dead_classes_are_named() -> None:
    dead = split(pixels=(30_000, 0, 3_000), images=(10, 0, 4))
    (found,) = data_checks.labels(with_val(dead, dead))
    assert (found.level, found.what) == ("warning", "no split has a pixel of 1 of the 3 classes: car")


def test_classes_that_only_the_validation_has_are_named() -> None:
    (found,) = data_checks.labels(manifest(split(pixels=(30_000, 9_000, 0), images=(10, 8, 0))))
    assert found.what == "train has no pixel of 1 of the 3 classes: lamp, which other splits contain"
    assert found.fix == "move images of these classes to train, or ignore the classes: their IoU will be 0"


def test_classes_that_val_lacks_are_named_with_what_the_score_is_over() -> None:
    rare = split(pixels=(30_000, 0, 0), images=(10, 0, 0))
    (found,) = data_checks.labels(with_val(rare))
    assert (found.level, found.what) == (
        "warning",
        "val has no pixel of 2 of the 3 classes: car, lamp, which other splits contain",
    )
    assert found.fix == "move images of these classes to val: mIoU is over 1 of 3 classes"


def test_data_that_teach_nothing_are_an_error_and_their_classes_are_not_named_again() -> None:
    one = split(pixels=(30_000, 0, 0), images=(10, 0, 0))
    (found,) = data_checks.labels(manifest(one))
    assert (found.level, found.what) == ("error", "train: every labelled pixel is `road`, so there is nothing to learn")


def test_a_val_that_is_part_of_train_is_named_as_such() -> None:
    pairs = tuple((f"train/{i}", f"val/{i}") for i in range(10))
    (found,) = data_checks.duplicates(manifest(num_duplicates=10, duplicates=pairs))
    assert found.what.startswith("every image of val occurs in more than one split, byte for byte: train/0 = val/0")


def test_images_that_occur_in_two_splits_are_counted_and_shown() -> None:
    pairs = tuple((f"train/{i}", f"val/{i}") for i in range(5))
    (found,) = data_checks.duplicates(manifest(num_duplicates=5, duplicates=pairs))
    assert found.level == "warning"
    assert found.what == (
        "5 images occur in more than one split, byte for byte: train/0 = val/0, train/1 = val/1, train/2 = val/2, ..."
    )
    assert data_checks.duplicates(manifest()) == []


# Sizes


def test_a_crop_that_no_image_fills_is_doubted_with_one_that_fits() -> None:
    (found,) = data_checks.sizes(config(data__crop_size=[65, 73]), manifest())
    assert found.what == (
        "data.crop_size = [65, 73]: every crop is padded: even the largest image, scaled up, is only 65 x 65 (height x width)"
    )
    assert found.fix == "data.crop_size=[65, 65], or a larger data.scale"
    assert data_checks.sizes(config(data__crop_size=[65, 73], data__scale=[1.0, 1.125]), manifest()) == []


def test_a_crop_that_may_be_mostly_padding_is_doubted() -> None:
    found = data_checks.sizes(config(data__scale=[0.5, 2.0]), manifest())
    what = "data.crop_size = [65, 65]: the smallest image, scaled down to 32 x 32 (height x width), leaves 75.8 % padding"
    assert found == [Finding("warning", what, "a smaller data.crop_size, or raise the low end of data.scale")]
    assert data_checks.sizes(config(data__scale=[0.75, 2.0]), manifest()) == []


def test_short_sides_replace_the_scale() -> None:
    wide = manifest(split(smallest=(100, 200), largest=(100, 200)))
    settings = config().model_dump(mode="json")
    del settings["data"]["scale"], settings["data"]["scale_step"]
    for sides, number in (([40, 64], 1), ([50, 65], 0)):
        settings["data"]["short_sides"] = sides
        assert len(data_checks.sizes(parse(settings), wide)) == number


# Settings against the data


def test_classes_to_oversample_must_exist_and_occur() -> None:
    without_lamp = manifest(split(images=(10, 8, 0)))
    assert data_checks.oversampling(config(data__oversample={"bus": 1, "car": 1, "lamp": 2}), without_lamp) == [
        Finding("error", "data.oversample.bus: no such class", "legal: road, car, lamp"),
        Finding("error", "data.oversample.lamp: no training image contains it", "leave it out"),
    ]
    assert data_checks.oversampling(config(data__oversample={"car": 1}), manifest()) == []


# Buckets


def test_every_bucket_is_proven_and_the_missing_ones_are_named(endpoint: str, credentials: None) -> None:
    for name in ("runs", "masks", "models", "source"):
        Store(f"s3://{name}", endpoint)._fs().mkdir(name)
    Store("s3://source", endpoint).write("x/a.png", b"")
    named = {
        "storage__path": "s3://runs/a",
        "storage__endpoint": endpoint,
        "data__layout": "camvid",
        "data__source": "s3://source/x",
        "predict__images": "s3://source/x",
        "predict__output": "s3://masks",
        "export__output": "s3://models/net.onnx",
    }
    assert storage_checks.buckets(config(**named)) == []
    gone = config(
        **named
        | {
            "data__source": "s3://gone",
            "predict__output": "s3://lost/p",
            "export__output": "s3://lost/n.onnx",
            "predict__images": None,
        }
    )
    assert [(f.level, f.what.partition(":")[0]) for f in storage_checks.buckets(gone)] == [
        ("warning", "predict.output"),  # export.output is in the same bucket, which is checked once
        ("warning", "data.source"),
    ]
    in_place = override(gone, {"data.packed": False})
    assert [f.level for f in storage_checks.buckets(in_place)] == ["warning", "error"]


def test_a_bucket_known_to_be_fine_is_not_checked_again_and_a_folder_never() -> None:
    assert storage_checks.buckets(config(storage__path="s3://nowhere/a"), checked=["s3://nowhere/b"]) == []
    assert storage_checks.buckets(config(storage__path="/some/folder")) == []

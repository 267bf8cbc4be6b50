"""The tables and the report of a dry run."""

from pathlib import Path
from typing import Any

from pipeline.config.config import Config
from pipeline.config.load import parse
from pipeline.data.manifest import Manifest, Split
from pipeline.data.statistics import class_table, split_table
from pipeline.preflight.findings import Finding, report
from pipeline.preflight.plan import run_table

ERROR, WARNING = Finding("error", "a = 1: must be 2", "a=2"), Finding("warning", "b: doubtful", "check b")


def config(root: Path, **sections: dict[str, Any]) -> Config:
    data = {"name": "toy", "layout": "generated", "crop_size": 65, "scale": [1.0, 1.0]}
    data |= {"generated": {"num_train": 8, "num_val": 4, "size": 65}} | sections.pop("data", {})
    tree = {"name": "t", "storage": {"path": str(root)}, "model": {"recurrence": 2, "backbone": "resnet18"}, "data": data}
    return parse(tree | {"train": {"global_batch": 4, "steps": 10}} | sections)


def manifest() -> Manifest:
    train = Split(
        num_images=1200, index="i", content="c", bytes=3 * 2**20, pixels=(600, 200), images=(1200, 300), ignored=200,
        smallest=(40, 60), largest=(40, 80),
    )  # fmt: skip
    return Manifest("toy", "generated", ("road", "car"), ((0, 0, 0), (1, 1, 1)), {0: 0, 1: 1}, {"train": train}, True, "")


def test_errors_come_first_and_are_counted() -> None:
    assert report([WARNING, ERROR, WARNING]) == (
        "error    a = 1: must be 2\n"
        "         fix: a=2\n"
        "warning  b: doubtful\n"
        "         fix: check b\n"
        "warning  b: doubtful\n"
        "         fix: check b\n"
        "\n"
        "1 error, 2 warnings"
    )
    assert report([]) == "0 errors, 0 warnings"


def test_of_many_faults_twenty_are_listed_and_all_are_counted() -> None:
    lines = report([Finding("error", f"{i}.png: empty file") for i in range(33)]).splitlines()
    assert lines[19:] == ["error    19.png: empty file", "         ... and 13 more", "", "33 errors, 0 warnings"]


def test_the_tables_show_sizes_ignored_pixels_and_classes() -> None:
    assert split_table(manifest()).splitlines() == [
        "split  images  height     width  bytes  ignored",
        "train   1,200      40  60 to 80  3 MiB     20 %",
    ]
    assert class_table(manifest()).splitlines() == [
        "class  train %  images",
        "road     75.00   1,200",
        "car      25.00     300",
    ]


def test_the_run_table_shows_what_training_comes_to(tmp_path: Path) -> None:
    oversampled = config(tmp_path, data={"oversample": {"car": 1.0}})
    lines = run_table(oversampled, manifest(), {"CPU": 2.0}).splitlines()
    assert lines[:5] == [
        "epoch           1,200 images, 300 steps",
        "training        10 steps, 0.03333 epochs, 40 samples seen",
        "global batch    4 = 2 x 2 images",
        "workers         2 on CPUs, 2 CPUs with the data; cluster: 2 CPUs, 0 GPUs",
        "crop            65 x 65, scale 1 to 1",
    ]
    assert lines[-2:] == [
        "all images      50 % of an epoch: 1,200 images, 0.5 times each",
        "car             50 % of an epoch: 300 images, 2 times each",
    ]


def test_the_run_table_shows_what_an_elastic_training_comes_to_at_its_smallest_and_largest(tmp_path: Path) -> None:
    lines = run_table(config(tmp_path, train={"workers": [1, 3], "global_batch": 4}), manifest(), {"CPU": 2.0}).splitlines()
    assert lines[2:4] == [
        "global batch    4 = 1 x 4 to 1 x 2 + 2 x 1 images",
        "workers         1 to 3 on CPUs, 1.5 to 2.5 CPUs with the data; cluster: 2 CPUs, 0 GPUs",
    ]
    assert lines[5] == "block           16 MiB, 248 steps to 16 MiB, 496 steps of a worker"


def test_the_run_table_shows_the_options_and_the_end(tmp_path: Path) -> None:
    train = {"precision": "bf16", "micro_batch": 2, "ema_decay": 0.9, "global_batch": 4, "steps": 10}
    stop = {"patience": 3, "cost": 5, "cost_per_worker_hour": 2}
    lines = run_table(config(tmp_path, train=train, stop=stop), manifest(), {"CPU": 2.0}).splitlines()
    assert lines[-2:] == [
        "trained with    bf16; passes of 2 images at most; average of weights, 0.9",
        "ends after      3 validations without a better mIoU; 2.5 worker hours",
    ]

"""Checks of how a run starts, trains and ends: each reports its fault, and reports nothing without the fault."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ccnet import build_ccnet
from pipeline.config.load import load, override, parse
from pipeline.data.manifest import Manifest, Split
from pipeline.model.learner import network_arguments
from pipeline.preflight import checks, training_checks
from pipeline.preflight.findings import Finding

CONFIGS = Path(__file__).parents[3] / "jobs" / "configs"


def config(**overrides: Any) -> Any:
    tree = {
        "name": "t",
        "storage": {"path": "s3://bucket"},
        "data": {"name": "g", "layout": "generated", "crop_size": 65, "scale": [1.0, 1.0]},
        "model": {"recurrence": 2, "backbone": "resnet18"},
        "train": {"workers": 2, "global_batch": 8},
    }
    return override(parse(tree), {key.replace("__", "."): value for key, value in overrides.items()})


def manifest() -> Manifest:
    split = Split(
        num_images=10, index="i", content="c", bytes=30_000, pixels=(30_000, 9_000, 3_000), images=(10, 8, 4), ignored=250,
        smallest=(65, 65), largest=(65, 65),
    )  # fmt: skip
    colors = ((0, 0, 0), (1, 1, 1), (2, 2, 2))
    splits = {"train": split, "val": split}
    return Manifest("g", "generated", ("road", "car", "lamp"), colors, {0: 0, 1: 1, 2: 2}, splits, True, "")


def test_the_checks_before_a_run_include_the_training() -> None:
    doubtful = config(train__freeze_norm=True)
    assert [found.what.partition(":")[0] for found in checks.examine_settings(doubtful, manifest(), {"CPU": 2})] == [
        "train.freeze_norm"
    ]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_configuration_trains_as_it_says(path: Path) -> None:
    found = training_checks.examine(load(path), manifest(), {"CPU": 64, "GPU": 8})
    # The recipes of published figures name the ImageNet weights in a comment: nobody has the file before it is put there.
    assert [finding.what.partition(":")[0] for finding in found] == ["model.weights"] * path.stem.endswith("_r101")


def test_class_weights_of_another_number_are_an_error() -> None:
    found = training_checks.losses(config(loss__class_weights=[1, 2]), manifest())
    assert found == [Finding("error", "loss.class_weights has 2 values: g has 3 classes", "give one for each class")]
    assert training_checks.losses(config(loss__class_weights=[1, 2, 1]), manifest()) == []


def test_mining_that_would_keep_every_pixel_is_doubted() -> None:
    (found,) = training_checks.losses(config(loss__ohem={}), manifest())
    what = "loss.ohem.min_kept = 400000: at least all pixels of the global batch, which makes OHEM plain cross-entropy"
    assert found == Finding("warning", what, "set less than 32768, or leave OHEM out")
    assert training_checks.losses(config(loss__ohem={"min_kept": 10_000}), manifest()) == []
    assert training_checks.losses(config(), manifest()) == []


def test_narrow_precision_is_doubted_where_the_run_is_on_cpus() -> None:
    assert training_checks.precision(config(), 0) == []
    for kind, cpus in (("bf16", "CPUs without AVX512-BF16 or AMX"), ("fp16", "CPUs")):
        narrow = config(train__precision=kind)
        assert training_checks.precision(narrow, 2) == []
        (found,) = training_checks.precision(narrow, 1)
        what = f"train.precision = {kind}: the run is on CPUs, and on {cpus} a step takes many times as long as in float32"
        assert found == Finding("warning", what, "train.precision=float32")


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = config(train__compile=True)
    monkeypatch.setenv("CXX", shutil.which("python3") or "python3")
    assert training_checks.compiler(compiled) == []
    monkeypatch.setenv("CXX", "no-such-compiler")
    (found,) = training_checks.compiler(compiled)
    assert (
        found.what
        == "train.compile: no C++ compiler `no-such-compiler` on this machine, and the machine of each worker needs one"
    )
    assert training_checks.compiler(config()) == []


def test_batch_norm_is_frozen_with_statistics_or_not_at_all() -> None:
    frozen = config(train__freeze_norm=True)
    (found,) = training_checks.frozen(frozen)
    assert found.what == "train.freeze_norm: without model.weights the backbone has statistics of 0 and 1, and keeps them"
    assert training_checks.frozen(override(frozen, {"model.weights": "s3://bucket/net.pth"})) == []
    assert training_checks.frozen(config()) == []


def test_a_large_backbone_from_random_weights_is_doubted() -> None:
    """CCNet issue 18: its ADE20K code was never published; trained from random weights, the score stays far below."""
    ade20k = load(CONFIGS / "ade20k_r101.yaml")
    (found,) = training_checks.random_start(ade20k)
    what = "model.weights: resnet101 starts from random weights, and published scores are those of an ImageNet backbone"
    assert found == Finding("warning", what, "model.weights=imagenet, or model.backbone=resnet18")
    assert training_checks.random_start(override(ade20k, {"model.weights": "s3://bucket/net.pth"})) == []
    assert training_checks.random_start(override(ade20k, {"model.backbone": "resnet18"})) == []
    assert training_checks.random_start(config(model__backbone="resnet50")) == []  # generated images


def test_without_aligned_corners_crops_are_multiples_of_eight() -> None:
    finetune = load(CONFIGS / "finetune.yaml")
    assert finetune.data.crop_size == (512, 512)
    assert training_checks.placed(finetune) == []
    (found,) = training_checks.placed(override(finetune, {"data.crop_size": [513, 520]}))
    assert found.what.startswith("data.crop_size = [513, 520]: with model.align_corners=false features and pixels align in")
    assert found.fix == "data.crop_size=[512, 520]"
    assert training_checks.placed(config()) == []


@pytest.mark.parametrize(
    ("setting", "effective", "idle", "fix"),
    [
        ("train.micro_batch", 4, 5, "set it lower, or leave it out"),
        ("train.ema_decay", 0.917, 0.918, "at most train.ema_decay=0.917, or leave it out"),
        ("stop.patience", 3, 4, "set it lower, or validate more often: train.validate_every"),
    ],
)
def test_a_setting_without_effect_is_named(setting: str, effective: float, idle: float, fix: str) -> None:
    """100 steps of 8 images on 2 workers, with 5 validations; the first validation is always the best so far."""
    base = config(train__steps=100, train__validate_every=20)
    assert training_checks.without_effect(override(base, {setting: effective})) == []
    (found,) = training_checks.without_effect(override(base, {setting: idle}))
    assert found.what.startswith(f"{setting} = {idle}: ")
    assert found.fix == fix


def test_small_passes_matter_while_the_fewest_workers_have_larger_shares() -> None:
    elastic = config(train__workers=[1, 8], train__micro_batch=4)
    assert training_checks.without_effect(elastic) == []
    (found,) = training_checks.passes(elastic)
    assert found.what == "train.micro_batch = 4: the images that batch norm averages over depend on the number of workers"
    assert training_checks.passes(config(train__workers=2, train__micro_batch=2)) == []
    assert training_checks.passes(config(train__workers=[2, 8], train__micro_batch=4)) == []


# The checkpoint to start from


def ours(tmp_path: Path, **overrides: Any) -> Any:
    """Settings that start from a file with the whole state of our network for three classes."""
    settings = config(model__weights=str(tmp_path / "net.pt"), model__weights_format="ccnet", **overrides)
    torch.save(build_ccnet(**network_arguments(config(), 3)).state_dict(), tmp_path / "net.pt")
    return settings


def test_a_checkpoint_that_fits_has_no_finding(tmp_path: Path) -> None:
    assert training_checks.weights(config(), 3) == []
    fits = ours(tmp_path)
    assert training_checks.weights(fits, 3) == []
    assert training_checks.weights(fits, 5) == []


def test_a_checkpoint_of_another_network_is_named_with_the_settings_that_fit(tmp_path: Path) -> None:
    (found,) = training_checks.weights(ours(tmp_path, model__backbone="resnet50"), 3)
    assert found == Finding("error", "model.backbone = 'resnet50': model.weights is of 'resnet18' (set model.backbone=resnet18)")


def test_a_checkpoint_that_lacks_something_is_an_error_before_a_worker_starts(tmp_path: Path) -> None:
    settings = ours(tmp_path)
    state = torch.load(tmp_path / "net.pt")
    del state["head.attention.gamma"]
    torch.save(state, tmp_path / "net.pt")
    (found,) = training_checks.weights(settings, 3)
    assert found.level == "error"
    assert "1 missing: head.attention.gamma [1]" in found.what


def test_a_store_that_refuses_is_an_error(endpoint: str, credentials: None) -> None:
    gone = config(model__weights="s3://gone/net.pt", storage__endpoint=endpoint)
    (found,) = training_checks.weights(gone, 3)
    assert found.what.startswith("model.weights = s3://gone/net.pt: ")

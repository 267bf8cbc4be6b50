"""A search space is refused before its first trial, if a trial could be refused or would be another one's repetition."""

import itertools
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.config import Config
from pipeline.config.load import load, override
from pipeline.errors import ConfigError
from pipeline.preflight import space_checks
from pipeline.preflight.findings import Finding

DEMO = str(Path(__file__).parents[3] / "jobs/configs/demo.yaml")


def config(space: dict[str, Any], *overrides: str) -> Config:
    return override(load(DEMO, list(overrides)), {"tune.space": space, "tune.grace_steps": 1})


def nothing(config: Config) -> list[Finding]:
    return []


def found(space: dict[str, Any], *overrides: str) -> list[str]:
    return [finding.line for finding in space_checks.examine(config(space, *overrides), nothing)]


@pytest.mark.parametrize(
    "key", ["evaluate.scale", "storage.path", "tune.trials", "train.workers", "train.log_every", "name", "data.shard_rows"]
)
def test_a_setting_that_shapes_no_model_cannot_be_searched(key: str) -> None:
    values = {"evaluate.scale": [0.5, 1.0], "storage.path": ["a", "b"], "name": ["a", "b"]}
    (line,) = found({key: {"choice": values.get(key, [1, 2])}})
    assert line == (
        f"tune.space.{key}: does not shape the model that a trial trains, so all its values are the same trial "
        f"(set {key} outside of tune.space)"
    )


def test_all_trials_share_their_data_and_their_steps() -> None:
    lines = found(
        {"data.name": {"choice": ["a", "b"]}, "data.generated.num_train": {"choice": [8, 16]}, "train.steps": {"choice": [9, 10]}}
    )
    assert [line.partition(":")[0] for line in lines] == [
        "tune.space.data.name",
        "tune.space.data.generated.num_train",
        "tune.space.train.steps",
    ]


def test_the_seed_and_what_shapes_a_model_can_be_searched() -> None:
    space = {
        "seed": {"choice": [0, 1]},
        "data.crop_size": {"choice": [97, 129]},
        "data.oversample.lamp": {"choice": [0.1, 0.2]},
        "loss.ohem.thresh": {"choice": [0.6, 0.7]},
        "train.learning_rate": {"log": [0.001, 0.1]},
    }
    assert found(space) == []


def test_combinations_that_no_training_takes_are_named_with_a_point() -> None:
    space = {"train.min_lr": {"choice": [0.0, 0.05]}, "train.learning_rate": {"log": [0.01, 0.1]}}
    (line,) = found(space)
    assert line.startswith("tune.space: ")
    assert " points tried are refused, such as train.min_lr=0.05 train.learning_rate=0.01: train.min_lr = 0.05: above" in line


def test_a_combination_that_the_checks_of_a_run_refuse_is_named() -> None:
    def checks(config: Config) -> list[Finding]:
        large = config.data.crop_size[0] > 100 and config.model.recurrence > 2
        other = Finding("error", "storage.path: known before", "")
        return [other, *([Finding("error", "memory: 9 GiB are needed", "a smaller crop")] if large else [])]

    made = config({"data.crop_size": {"choice": [97, 129]}, "model.recurrence": {"choice": [1, 2, 3]}})
    (line,) = (finding.line for finding in space_checks.examine(made, checks))
    assert "such as data.crop_size=129 model.recurrence=3: memory: 9 GiB are needed (a smaller crop)" in line


def test_trials_that_end_before_they_can_be_compared_are_refused() -> None:
    made = override(config({"seed": {"choice": [0, 1]}}, "train.steps=240"), {"tune.grace_steps": 241})
    (line,) = (finding.line for finding in space_checks.examine(made, nothing))
    assert line == (
        "tune.grace_steps = 241: above train.steps = 240 (tune.grace_steps=80, or 240, with which no trial is stopped early)"
    )
    assert space_checks.examine(override(made, {"tune.grace_steps": 240}), nothing) == []


def test_a_space_with_very_many_corners_is_sampled() -> None:
    space = {f"loss.{name}_weight": {"choice": [0.0, 0.1, 0.2, 0.3, 0.4]} for name in ("aux", "dice", "lovasz")}
    space |= {"train.momentum": {"choice": [0.8, 0.9]}, "train.weight_decay": {"choice": [0.0, 1e-4]}}
    made = config(space)
    points = list(space_checks.some_points(made))
    assert len(points) == space_checks.MOST_CORNERS + space_checks.DRAWS
    assert points == list(space_checks.some_points(made)), "the same points for the same seed"


VALUES: dict[str, list[Any]] = {
    "train.min_lr": [0.0, 0.001, 0.02, 0.5],
    "train.clip_norm": [None, 0.5],
    "train.precision": ["float32", "bf16"],
    "model.variant": ["official", "mmseg"],
    "model.align_corners": [None, True, False],
    "model.backbone": ["small", "resnet18", "resnet50"],
    "model.recurrence": [0, 1, 2],
    "data.crop_size": [96, 97, 129],
    "data.scale": [[1.0, 1.0], [0.5, 2.0], [2.0, 1.0]],
    "stop.patience": [None, 3],
}


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(VALUES)), st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=4),
    st.tuples(st.sampled_from([0.0005, 0.005, 0.05]), st.sampled_from([0.1, 1.0])),
)
def test_every_point_of_an_accepted_space_is_a_valid_configuration(
    chosen: dict[str, set[int]], rates: tuple[float, float]
) -> None:
    listed = {key: [VALUES[key][i % len(VALUES[key])] for i in sorted(numbers)] for key, numbers in chosen.items()}
    space = {key: {"choice": values} for key, values in listed.items()} | {"train.learning_rate": {"log": list(rates)}}
    try:
        made = config(space)
    except ConfigError:  # a value is wrong by itself
        return
    if space_checks.examine(made, nothing):
        return
    base, generator = override(made, {"tune.space": {}}), random.Random(1)
    for values in itertools.product(*listed.values()):
        rate = math.exp(generator.uniform(*map(math.log, rates)))
        override(base, dict(zip(listed, values, strict=True)) | {"train.learning_rate": rate})

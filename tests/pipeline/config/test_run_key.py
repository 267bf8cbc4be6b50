"""Which settings shape a run's key, and how changes of them are named."""

from typing import Any

import pytest

from pipeline.config.load import override, parse
from pipeline.config.run_key import ADDED, NOT_SHAPING, changed_settings, shaping
from tests.pipeline.config.test_load import tree


def test_the_run_key_follows_what_shapes_the_result() -> None:
    base = parse(tree())
    assert override(base, {"train.workers": 1, "train.log_every": 3}).run_key == base.run_key
    assert override(base, {"train.learning_rate": 0.5}).run_key != base.run_key
    assert override(base, {"seed": 1}).run_key != base.run_key


SHAPING = {
    "data": {"name", "layout", "crop_size", "scale", "scale_step", "short_sides", "flip", "cat_max", "photometric", "oversample",
             "generated"},
    "model": {"backbone", "recurrence", "init", "zero_init_residual", "variant", "stem", "weights", "weights_format"},
    "train": {"global_batch", "steps", "learning_rate", "momentum", "weight_decay", "power", "warmup_steps", "precision",
              "compile", "micro_batch", "clip_norm", "ema_decay", "freeze_norm"},
    "loss": {"aux_weight", "class_weights", "ohem", "consistency", "dice_weight", "lovasz_weight"},
}  # fmt: skip


def test_every_setting_shapes_the_model_or_is_named_as_one_that_does_not() -> None:
    """A new setting belongs in ADDED or in NOT_SHAPING: one that is forgotten would change the key of every run."""
    record = parse(tree()).record()
    assert {name: set(record[name]) & set(kept) for name, kept in NOT_SHAPING.items()} == {
        name: set(record[name]) - SHAPING[name] - set(ADDED.get(name, ())) for name in NOT_SHAPING
    }
    kept = shaping(record)
    assert kept.pop("seed") == 0
    assert {name: set(settings) for name, settings in kept.items()} == SHAPING
    assert set(record) - set(SHAPING) - {"seed"} == {
        "name", "storage", "faults", "stop", "evaluate", "predict", "export", "tracking", "tune", "benchmark"
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"train.micro_batch": 2},  # batch norm sees one pass at a time
        {"train.precision": "bf16"},
        {"train.compile": True},
        {"train.ema_decay": 0.9},
        {"train.freeze_norm": True},
        {"train.clip_norm": 1.0},
        {"model.weights": "s3://bucket/net.pth"},
    ],
    ids=str,
)
def test_another_way_of_training_is_another_run(change: dict[str, Any]) -> None:
    assert override(parse(tree()), change).run_key != parse(tree()).run_key


def test_an_added_setting_shapes_the_model_and_at_its_default_keeps_the_key_of_older_runs() -> None:
    config = parse(tree())
    record = config.record()
    for section, settings in ADDED.items():
        for name, value in settings.items():
            assert record[section].pop(name) == value, f"{section}.{name}"
    assert shaping(record) == shaping(config.record())
    assert override(config, {"model.gamma_init": 1.0}).run_key != config.run_key
    assert override(config, {"model.align_corners": False}).run_key != config.run_key


def test_what_a_run_survives_and_when_it_ends_leave_its_key() -> None:
    base = parse(tree())
    ways = {"train.workers": [1, 4], "train.validate_every": 7, "stop.hours": 3, "faults.hang_s": 9, "evaluate.background": True}
    ways |= {"train.checkpoint_every": 5}
    assert override(base, ways).run_key == base.run_key


def test_an_earlier_run_is_named_by_its_key() -> None:
    assert override(parse(tree()), {"train.resume": "t-0123abcd", "seed": 3}).run_key == "t-0123abcd"


def test_a_loss_shapes_the_run() -> None:
    assert parse(tree(loss={"ohem": {}})).run_key != parse(tree()).run_key


def test_changes_name_each_setting_with_both_values() -> None:
    before = {"seed": 1, "train": {"global_batch": 8, "gone": 1}, "loss": {"ohem": None}, "data": {"oversample": {"Car": 2}}}
    after = {"seed": 1, "train": {"global_batch": 16, "added": 3}, "loss": {"ohem": {"threshold": 0.7}},
             "data": {"oversample": {"Car": 2, "Bus": 3}}}  # fmt: skip
    assert changed_settings(before, before) == []
    assert changed_settings(before, after) == [
        "train.global_batch was 8 and is 16",
        "train.gone was 1 and is None",
        "train.added was None and is 3",
        "loss.ohem was None and is {'threshold': 0.7}",
        "data.oversample was {'Car': 2} and is {'Car': 2, 'Bus': 3}",
    ]
    assert changed_settings(before["train"], after["train"], "train.")[0] == "train.global_batch was 8 and is 16"

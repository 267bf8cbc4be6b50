"""Settings that are derived from sizes and counts, and the file that holds them with their reasons."""

from typing import Any

import pytest

from pipeline.config.load import parse
from pipeline.config.settings_yaml import parse_yaml
from pipeline.start.folder import Folder
from pipeline.start.recipe import Speed, nested, schedule, settings, text


def folder(size: tuple[int, int] = (360, 480), train: int = 100, val: int = 20, **changed: Any) -> Folder:
    found = Folder("/data/my set #1", "folders", 0.2, {"train": train, "val": val}, 10**6, size, size, ("background", "crack"),
                   [{"id": 0, "name": "background"}, {"id": 255, "name": "crack: 'a'"}], [])  # fmt: skip
    return found._replace(**changed)


@pytest.mark.parametrize("gpus", [0, 1, 4])
@pytest.mark.parametrize("size", [(24, 24), (65, 90), (360, 480), (1080, 1920), (3000, 200), (6000, 8000)])
@pytest.mark.parametrize("train", [1, 5, 40, 100_000])
def test_every_folder_gives_a_legal_configuration(size: tuple[int, int], train: int, gpus: int) -> None:
    found = settings(folder(size, train), "mine", gpus) | schedule(folder(size, train), 8, Speed(0.5, 0.1), 15)
    config = parse(nested(found, []))
    assert config.train.global_batch >= config.train.most_workers
    low, high = config.data.scale
    assert low <= config.evaluate.scale <= high
    scaled = [side * config.evaluate.scale for side in size]
    assert all(crop <= max(17, side) for crop, side in zip(config.data.crop_size, scaled, strict=True))


def test_the_file_gives_the_same_configuration_and_a_reason_for_every_derived_setting() -> None:
    found = settings(folder(), "mine", 0) | schedule(folder(), 8, Speed(0.5, 0.1), 15)
    tree = nested(found, ["loss.dice_weight=0.5", "model.weights=/a b.pth"])
    written = text(tree, {key: why for key, (_, why) in found.items()}, "one\ntwo")
    assert parse(parse_yaml(written)) == parse(tree)
    assert written.startswith("# one\n# two\nname: mine\n")
    lines = written.splitlines()
    for key, (_, why) in found.items():
        assert not why or any(
            line.strip().startswith(f"{key.rpartition('.')[2]}:") and line.endswith(f"  # {why}") for line in lines
        )


@pytest.mark.parametrize("minutes", [1, 2, 15, 600])
@pytest.mark.parametrize("speed", [Speed(0.05, 0.01), Speed(1.5, 0.3), Speed(60, 20)])
def test_a_training_takes_the_given_minutes_at_most_unless_ten_steps_take_longer(minutes: float, speed: Speed) -> None:
    found = {key: value for key, (value, _) in schedule(folder(), 8, speed, minutes).items()}
    steps, validations = found["train.steps"], -(-found["train.steps"] // found["train.validate_every"])
    taken = steps * speed.step_s + validations * 20 * speed.image_s
    assert steps == 10 or taken <= 60 * minutes
    assert 10 <= steps <= 1000
    assert 1 <= validations <= 5
    assert found["stop.hours"] == pytest.approx(minutes / 60, abs=1e-4)

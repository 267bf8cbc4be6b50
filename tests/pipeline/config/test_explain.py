"""Each mistake is one line in the words of the settings, not of the library that finds it."""

from pathlib import Path

import pytest

from pipeline.config.load import load
from pipeline.errors import ConfigError

DEMO = Path(__file__).parents[3] / "jobs" / "configs" / "demo.yaml"


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("train=3", "train = 3: is a section, which takes no value: set what is in it (train.workers=...), or leave it out"),
        ("storage.buckets=[b]", "storage.buckets = ['b']: is a section, which takes no value: set what is in it "
                                "(storage.buckets.NAME=...), or leave it out"),
        ("data.lists.trian=x", "data.lists.trian = 'trian': must be one of train, val, test (try train)"),
        ("evaluate.scales=1",
         "evaluate.scales = 1: must be a list; Scales, relative to `evaluate.scale`, whose scores are averaged."),
        ("train.steps=true", "train.steps = True: must be a number"),
        ("train.learning_rate=false", "train.learning_rate = False: must be a number"),
        ("train.workers=false", "train.workers = False: must be a number"),
        ("train.workers=[true, 2]", "train.workers = [True, 2]: must be a number"),
        ("train.steps=1" + 30 * "0", f"train.steps = 1{30 * '0'}: is too large: has more than 15 digits"),
        ("benchmark.made=[{height: 65, width: 65, format: gif, crop_size: 33}]",
         "benchmark.made.0.format = 'gif': must be one of png, jpeg"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(setting: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(DEMO, [setting])
    assert caught.value.mistakes == [line]


@pytest.mark.parametrize("workers", ["[2]", "[]", "[1, 2, 3]", "1,2"])
def test_a_list_of_another_length_says_what_the_setting_is(workers: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(DEMO, [f"train.workers={workers}"])
    assert "[min, max] follows the cluster's size." in caught.value.mistakes[-1]
    assert not any("missing" in line for line in caught.value.mistakes)


def test_a_text_that_is_written_as_a_number_needs_quotes(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(DEMO.read_text().replace("name: demo", "name: 7"))
    with pytest.raises(ConfigError, match=r"^name = 7: must be a text: write it in quotes$"):
        load(tmp_path / "a.yaml")


def test_a_value_of_any_size_is_shown_short(tmp_path: Path) -> None:
    lists = "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(12))  # 9^12 values, "billion laughs"
    (tmp_path / "a.yaml").write_text(f"a0: &a0 [x]\n{lists}" + DEMO.read_text())
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "a.yaml", ["x=" + "y" * 100_000])
    assert len(caught.value.mistakes) == 14
    assert max(map(len, caught.value.mistakes)) < 2000

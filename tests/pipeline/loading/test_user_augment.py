"""`data.augment`: the user's function sees each crop after ours, with numbers that depend on the sample alone."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.load import override
from pipeline.data.manifest import open_data
from pipeline.data.prepare import prepare
from pipeline.data.synthetic import NAMES
from pipeline.errors import ConfigError
from pipeline.loading.feed import Feed
from pipeline.loading.user_augment import augment_further, find_function, generator
from pipeline.preflight import data_checks
from tests.support.own_data import STEPS, by_step, config, make_source

CODE = """
import numpy as np

def darker(image, label, rng):
    return (image * rng.random()).astype(np.uint8), np.where(label == 5, 255, label).astype(np.uint8)

def one_thing(image, label, rng):
    return image

def other_size(image, label, rng):
    return image[:8], label[:8]

def floats(image, label, rng):
    return image / 255, label

def new_class(image, label, rng):
    return image, label * 0 + 77

def broken(image, label, rng):
    return image + undefined, label

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`own_augment` in the current folder."""
    (tmp_path / "own_augment.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    yield
    find_function.cache_clear()
    sys.modules.pop("own_augment", None)


def feed(folder: Path, name: str | None, first_step: int = 0, workers: int = 1) -> Feed:
    made = override(config(folder), {"data.augment": name})
    return Feed(made, open_data(made), first_step, workers)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    make_source(tmp_path / "source")
    prepare(config(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("module")
def test_the_function_changes_every_batch_and_any_number_of_workers_sees_the_same_ones(prepared: Path) -> None:
    changed = by_step(feed(prepared, "own_augment:darker"))
    assert not set(changed.values()) & set(by_step(feed(prepared, None)).values())
    assert by_step(feed(prepared, "own_augment:darker", workers=3)) == changed
    resumed = by_step(feed(prepared, "own_augment:darker", first_step=4))
    assert resumed == {step: changed[step] for step in range(4, STEPS)}
    assert override(config(prepared), {"data.augment": "own_augment:darker"}).run_key != config(prepared).run_key


def test_the_numbers_belong_to_the_sample_and_are_not_those_of_our_augmentation() -> None:
    numbers = {tuple(generator(*key).random(4)) for key in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))}
    assert len(numbers) == 5
    ours = np.random.Generator(np.random.Philox(key=np.zeros(2, np.uint64), counter=np.zeros(4, np.uint64))).random(100_000)
    assert not {*generator(0, 0, 0, 0).random(100)} & {*ours}


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("own_augment:one_thing", r"returned uint8\[25, 25, 3\] for uint8\[25, 25, 3\] and uint8\[25, 25\]: it must be"),
        ("own_augment:other_size", r"returned uint8\[8, 25, 3\], uint8\[8, 25\] for"),
        ("own_augment:floats", r"returned float64\[25, 25, 3\], uint8\[25, 25\]"),
        ("own_augment:new_class", "returned a label with class 77: classes are 0 to 5, or 255"),
        ("own_augment:broken", "NameError: name 'undefined' is not defined"),
        ("own_augment:nothing", "cannot be imported: AttributeError"),
        ("own_augment:number", "is no function"),
        ("no_such_module:f", "cannot be imported: ModuleNotFoundError.*start in the folder that holds the module"),
    ],
)
def test_a_function_that_does_not_fit_is_refused_before_the_run(prepared: Path, name: str, fault: str) -> None:
    made = feed(prepared, name)
    (found,) = data_checks.own_augmentation(made.config, made.manifest)
    assert found.level == "error"
    assert re.search(f"data.augment = {name}: .*{fault}", found.what), found.what


def test_a_name_of_another_form_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.augment = 'darker'"):
        override(config(tmp_path), {"data.augment": "darker"})


@pytest.mark.usefixtures("module")
def test_a_label_that_is_ignored_everywhere_is_allowed() -> None:
    image, label = np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 255, np.uint8)
    made = augment_further("own_augment:darker", image, label, len(NAMES), generator(0, 0, 0, 0))
    assert (made[1] == 255).all()

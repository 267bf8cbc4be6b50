"""The user's own augmentation: a function that is called after ours, with a generator that belongs to the sample."""

import importlib
import os
import sys
from collections.abc import Callable
from functools import cache

import numpy as np

from pipeline.errors import ConfigError
from pipeline.images.codec import IGNORE, UInt8

Function = Callable[[UInt8, UInt8, np.random.Generator], tuple[UInt8, UInt8]]
FORM = "a function(image, label, rng) that returns the new image uint8[h, w, 3] and label uint8[h, w]"


def generator(seed: int, epoch: int, sample: int, stream: int) -> np.random.Generator:
    """The generator of one sample: a pure function of its arguments (law 1), with other numbers than our augmentation draws."""
    key, counter = np.array([seed, epoch << 40 | sample], np.uint64), np.array([0, 0, 1, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@cache
def find_function(name: str) -> Function:
    """The function `module:function`; the module may lie in the current folder. Raises ConfigError."""
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:  # the installed command does not search there; Ray's processes search the driver's folder
        sys.path.append(os.getcwd())
    try:
        found: Function = getattr(importlib.import_module(module), function)
    except Exception as error:  # of any type: importing runs the user's code
        why = f"{type(error).__name__}: {error}"
        raise ConfigError(
            [f"data.augment = {name}: cannot be imported: {why}: start in the folder that holds the module"]
        ) from error
    if not callable(found):
        raise ConfigError([f"data.augment = {name}: is no function; it must be {FORM}"])
    return found


def augment_further(name: str, image: UInt8, label: UInt8, num_classes: int, random: np.random.Generator) -> tuple[UInt8, UInt8]:
    """What the function makes of a crop uint8[h, w, 3] and its classes uint8[h, w] (255: ignored).

    Raises ValueError if it returns something else, and whatever it raises.
    """
    made = find_function(name)(image, label, random)
    if not (isinstance(made, tuple) and len(made) == 2 and _alike(made[0], image) and _alike(made[1], label)):
        shapes = f"uint8{list(image.shape)} and uint8{list(label.shape)}"
        raise ValueError(f"data.augment = {name}: returned {_described(made)} for {shapes}: it must be {FORM}")
    if (odd := int(made[1][made[1] != IGNORE].max(initial=0))) >= num_classes:
        raise ValueError(f"data.augment = {name}: returned a label with class {odd}: classes are 0 to {num_classes - 1}, or 255")
    return made


def _alike(made: object, given: UInt8) -> bool:
    return isinstance(made, np.ndarray) and made.dtype == np.uint8 and made.shape == given.shape


def _described(made: object) -> str:
    parts: list[object] = [*made] if isinstance(made, tuple) else [made]
    return ", ".join(f"{each.dtype}{list(each.shape)}" if isinstance(each, np.ndarray) else type(each).__name__ for each in parts)

"""Lets memory run short in training: a pass of too many images asks torch for more than there is.

The file of CCNET_TEST_FITS says how many images of a pass fit.
"""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any


class Convolutions:
    """Changes torch's convolution at its import."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "torch.nn.modules.conv" or (spec := PathFinder.find_spec(name, path)) is None:
            return None
        load = spec.loader.exec_module

        def load_changed(module: ModuleType) -> None:
            load(module)
            _limit(module.Conv2d)

        spec.loader.exec_module = load_changed
        return spec


def _limit(convolution: Any) -> None:
    plain, file = convolution.forward, Path(os.environ["CCNET_TEST_FITS"])

    def forward(self: Any, image: Any) -> Any:
        import torch

        first = self.in_channels == 3 and torch.is_grad_enabled()  # of a pass, in training
        if first and file.exists() and len(image) > int(file.read_text()):
            torch.empty(2**60, dtype=torch.uint8)
        return plain(self, image)

    convolution.forward = forward


def install() -> None:
    """Changes torch's convolution once it is imported."""
    sys.meta_path.insert(0, Convolutions())

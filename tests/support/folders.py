"""A source in layout `folders` with given labels, and a configuration that prepares it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.config import Config
from pipeline.config.load import parse
from pipeline.images.codec import UInt8, encode_png


def rows_of(*ids: int, size: int = 24) -> UInt8:
    """A label uint8[size, size] with equally many rows of each id."""
    return np.repeat(np.array(ids, np.uint8), size // len(ids))[:, None].repeat(size, 1)


def noise(number: int, size: int = 24) -> UInt8:
    """An image uint8[size, size, 3]."""
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)


def write(root: Path, classes: str, train: Sequence[UInt8 | bytes], val: Sequence[UInt8 | bytes]) -> Path:
    """Writes a label and an image for each of the labels uint8[24, 24], which may also be the bytes of a file."""
    for number, (split, labels) in enumerate((("train", train), ("val", val))):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for i, label in enumerate(labels):
            (root / f"images/{split}/{i}.png").write_bytes(encode_png(noise(100 * number + i)))
            (root / f"masks/{split}/{i}.png").write_bytes(label if isinstance(label, bytes) else encode_png(label))
    (root / "classes.yaml").write_text(classes)
    return root


def config(root: Path, source: Path | str, **data: Any) -> Config:
    """A configuration whose storage is `root`/out."""
    given = {"name": "own", "layout": "folders", "source": str(source), "crop_size": 17, "scale": [1.0, 1.0], **data}
    return parse(
        {
            "name": "t",
            "storage": {"path": str(root / "out")},
            "tracking": {"uri": f"sqlite:///{root}/mlflow.db"},
            "model": {"recurrence": 2, "backbone": "small"},
            "data": given,
            "train": {"workers": 1, "global_batch": 2, "steps": 2},
        }
    )

"""A small data set in layout `folders`, and the hashes of the global batches that a feed makes from it."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.config import Config
from pipeline.data.manifest import open_data
from pipeline.data.synthetic import NAMES, SEED, sample
from pipeline.images.codec import encode_png
from pipeline.loading.blocks import num_blocks, steps_per_block
from pipeline.loading.feed import Batch, Feed
from pipeline.loading.sampler import PADDING

NUM_TRAIN, STEPS, GLOBAL_BATCH = 30, 9, 12


def make_source(folder: Path) -> Path:
    """Writes thirty training and two validation images in layout `folders`."""
    for split, count in (("train", NUM_TRAIN), ("val", 2)):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            image, label = sample(index + 1000 * (split == "val"), SEED, 40)
            (folder / "images" / split / f"{index:03d}.png").write_bytes(encode_png(image))
            (folder / "masks" / split / f"{index:03d}.png").write_bytes(encode_png(label))
    (folder / "classes.yaml").write_text("\n".join(f"- {name}" for name in NAMES))
    return folder


def config(folder: Path, **changed: Any) -> Config:
    data = {"name": "own", "layout": "folders", "source": str(folder / "source"), "crop_size": 25, "scale": [0.75, 2.0],
            "cat_max": 0.75, "photometric": True, "shard_rows": 7, "block_bytes": 40_000}  # fmt: skip
    train = {"workers": 1, "global_batch": GLOBAL_BATCH, "steps": STEPS}
    for key, value in changed.items():
        (data if key in {"packed", "oversample", "max_skipped", "name"} else train)[key] = value
    return Config.model_validate({
        "name": "t", "storage": {"path": str(folder / "out")}, "data": data, "train": train,
        "model": {"backbone": "small", "recurrence": 2},
    })  # fmt: skip


def feed_of(folder: Path, first_step: int = 0, workers: int = 1, **changed: Any) -> Feed:
    made = config(folder, **changed)
    return Feed(made, open_data(made), first_step, workers)


def hashes(batches: dict[int, list[Batch]]) -> dict[int, str]:
    """Step -> hash of its global batch, the ranks' parts in order."""
    found = {}
    for step, parts in batches.items():
        total = hashlib.sha256()
        for key in ("image", "label", "position"):
            total.update(np.concatenate([part[key] for part in parts]).tobytes())
        found[step] = total.hexdigest()
    return found


def by_step(feed: Feed) -> dict[int, str]:
    """Hashes of the global batches of all blocks of a feed, without padding."""
    steps, per_block = feed.config.train.steps, steps_per_block(feed.config, feed.workers)
    batches: dict[int, list[Batch]] = {step: [] for step in range(feed.first_step, steps)}
    for number in range(num_blocks(feed.first_step, steps, steps_per_block=per_block, workers=feed.workers)):
        rows = feed.rows({"id": np.array([number])})
        for step in np.unique(rows["step"]):
            mine = (rows["step"] == step) & (rows["position"] != PADDING)
            batches[int(step)].append({key: column[mine] for key, column in rows.items()})
    return hashes(batches)

"""Data sets of the image benchmark: the configuration's own, or pictures made for it, on each of its stores."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import yaml

from pipeline.config.benchmark import Pictures
from pipeline.config.config import Config
from pipeline.data import synthetic
from pipeline.data.classes import classes
from pipeline.data.index import PAGE_ROWS, page_key, write_index
from pipeline.data.manifest import Manifest, open_data
from pipeline.data.prepare import prepare
from pipeline.images import codec, resize
from pipeline.loading.samples import open_samples
from pipeline.storage.store import Store, open_store

logger = logging.getLogger(__name__)

NUM_PICTURES = {"train": 24, "val": 2}
SIDE = 65  # side of the generated picture before it is enlarged
OCTAVES = ((4, 6.0), (2, 4.0), (1, 0.4))
"""(divisor of the size, strength of the noise in grey levels). With them a PNG of 480 x 360 has about 250 kB (CamVid: 190 to
250), one of 2048 x 1024 2.6 MB; JPEG has 46 kB (CamVid's pictures: 46 to 77) and 480 kB."""


class Target(NamedTuple):
    """One data set on one store."""

    name: str
    config: Config
    """The configuration on this store, with one training worker."""
    manifest: Manifest
    images: int
    """Number of images of each stage in each round."""


def find_targets(config: Config) -> Iterator[Target]:
    """The data sets to measure; those that do not exist are made and prepared. Raises what `prepare` raises."""
    stores = config.benchmark.stores or (config.storage.path,)
    if not config.benchmark.made:
        for path in stores:
            own = _placed(config, path)
            yield Target(config.data.name, own, open_data(own), config.benchmark.images)
    for made in config.benchmark.made:
        name = f"{made.width}x{made.height}-{made.format}"
        source = open_store(f"{stores[0]}/pictures/{name}", config.storage)
        make_pictures(source, made)
        data: dict[str, Any] = {"name": f"bench-{name}", "layout": "folders", "source": source.root, "crop_size": made.crop_size,
                "lists": {}, "oversample": {}}  # fmt: skip
        for path in stores:
            placed = _placed(config, path)
            placed = placed.model_copy(update={"data": config.data.model_copy(update=data)})
            yield Target(name, placed, prepare(placed), made.images)


def _placed(config: Config, path: str) -> Config:
    storage, train = config.storage.model_copy(update={"path": path}), config.train.model_copy(update={"workers": 1})
    return config.model_copy(update={"storage": storage, "train": train})


def make_pictures(store: Store, made: Pictures) -> None:
    """Writes the pictures in the layout `folders`, unless they exist."""
    if store.exists("classes.yaml"):
        return
    logger.info("making %s", store.root)
    end = {"png": "png", "jpeg": "jpg"}[made.format]
    encode = {"png": codec.encode_png, "jpeg": codec.encode_jpeg}[made.format]
    for split, number in NUM_PICTURES.items():
        for position in range(number):
            image, label = picture(synthetic.split_index(split, position), (made.height, made.width))
            store.write(f"images/{split}/{position:04d}.{end}", encode(image))
            store.write(f"masks/{split}/{position:04d}.png", codec.encode_png(label))
    names = classes("generated", None).names
    # Written last: if this file exists, all pictures do.
    store.write("classes.yaml", yaml.safe_dump(list(names)).encode())


def picture(index: int, size: tuple[int, int]) -> tuple[codec.UInt8, codec.UInt8]:
    """Image uint8[H, W, 3] and label uint8[H, W]: a generated picture, enlarged, and as hard to compress as a photograph."""
    image, label = synthetic.sample(index, synthetic.SEED, SIDE)
    random = np.random.default_rng(index)
    for divisor, strength in OCTAVES:
        part = size[0] // divisor, size[1] // divisor
        noise = random.normal(0, strength, (*part, 3)).astype(np.float32)
        image = np.clip(np.rint(resize.resize_to(image, part) + noise), 0, 255).astype(np.uint8)
    return image, resize.resize_label_to(label, size)


def repeated(target: Target, num_rows: int) -> Manifest:
    """The manifest of a training split of `num_rows` rows over the target's few objects; writes its index if it is missing."""
    split = target.manifest.splits["train"]
    store = open_store(target.config.data_url, target.config.storage)
    folder = f"{split.index}-{num_rows}-rows"
    if not store.exists(page_key(folder, (num_rows - 1) // PAGE_ROWS)):
        logger.info("writing an index of %d rows to %s", num_rows, store.url(folder))
        entries = open_samples(target.config, target.manifest, "train").index.entries(range(split.num_images))
        cycled = [entries[row % len(entries)] for row in range(num_rows)]
        write_index(store, folder, cycled, [])
    return replace(target.manifest, splits={"train": replace(split, num_images=num_rows, index=folder)})

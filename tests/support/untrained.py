"""A small data set and the checkpoint of a network with random weights, ready to be evaluated and to predict."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ccnet import build_ccnet
from pipeline.checkpoints import checkpoint
from pipeline.config.config import Config
from pipeline.config.load import parse
from pipeline.data import synthetic
from pipeline.data.index import content, write_index
from pipeline.data.manifest import Manifest, Split, read_manifest, write_manifest
from pipeline.data.shards import Row, write_shard
from pipeline.evaluation.metrics import Score
from pipeline.evaluation.protocol import validation_protocol
from pipeline.images import codec
from pipeline.storage.store import open_store

NUM_IMAGES, SIZE = 10, 49
IDS = tuple(f"val-{position}" for position in range(NUM_IMAGES))
MODEL = {"backbone": "small", "num_classes": len(synthetic.NAMES), "recurrence": 2}


def make(storage: Path, scratch: Path, ids: Sequence[str] = IDS) -> Config:
    """Packs validation images and stores a checkpoint, its files first written to `scratch`; returns the configuration."""
    made = parse(
        {
            "name": "t",
            "storage": {"path": str(storage)},
            "data": {"name": "ten", "layout": "generated", "crop_size": 33},
            "model": {"backbone": "small", "recurrence": 2},
        }
    )
    pack(made, ids)
    store_checkpoint(made, scratch)
    return made


def store_checkpoint(config: Config, scratch: Path, seed: int = 0, **facts: Any) -> str:
    """Stores a checkpoint of random weights as that of the configuration's run, and returns its address.

    `facts` are added to what it says of its training.
    """
    torch.manual_seed(seed)
    net = build_ccnet(**MODEL)
    with torch.no_grad():
        net.head.attention.gamma.fill_(1.0)  # at its initial 0 every R gives the same result
    score = Score([[0]], synthetic.NAMES, 0, {}, [[0], [0]])
    checkpoint.save(
        scratch,
        checkpoint.snapshot(net, torch.optim.SGD(net.parameters(), lr=0.1)),
        {
            "step": 1,
            "metrics": {"miou": 0.5},
            "model": MODEL,
            "class_names": synthetic.NAMES,
            "score": score._asdict(),
            "config": config.record(),
            "protocol": validation_protocol(config, read_manifest(open_store(config.data_url, config.storage))),
            **facts,
        },
    )
    store = open_store(f"{config.runs_url}/{config.run_key}", config.storage)
    checkpoint.upload(scratch, store, checkpoint.folder_name(1))
    return store.url(checkpoint.folder_name(1))


def pack(config: Config, ids: Sequence[str], relabelled: int = 0) -> None:
    """Packs validation images; the first `relabelled` have other labels than usual."""
    store = open_store(config.data_url, config.storage)
    rows = []
    for position, sample_id in enumerate(ids):
        image, label = synthetic.sample(synthetic.split_index("val", position), 0, SIZE)
        if position < relabelled:
            label = label[::-1].copy()
        rows.append(Row(sample_id, codec.encode_png(image), codec.encode_png(label), SIZE, SIZE))
    entries = write_shard(store, "val-0.parquet", rows)
    write_index(store, "index-val", entries, [])
    pixels, size = (0,) * len(synthetic.NAMES), (SIZE, SIZE)
    split = Split(len(ids), "index-val", content(entries), 1, pixels, pixels, 0, size, size)
    ids = {k: k for k in range(len(synthetic.NAMES))}
    write_manifest(
        store, Manifest(config.data.name, "generated", synthetic.NAMES, synthetic.COLORS, ids, {"val": split}, True, "source")
    )

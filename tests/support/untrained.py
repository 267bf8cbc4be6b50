"""A small data set and the checkpoint of a network with random weights, ready to be evaluated and to predict."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ccnet import build_ccnet
from pipeline.checkpoints import checkpoint
from pipeline.config.config import Config
from pipeline.config.load import parse
from pipeline.data import synthetic
from pipeline.data.index import content, write_index
from pipeline.data.manifest import Manifest, Split, write_manifest
from pipeline.data.shards import Row, write_shard
from pipeline.evaluation.metrics import Score
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
    torch.manual_seed(0)
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
            "config": made.record(),
        },
    )
    checkpoint.upload(scratch, open_store(f"{made.runs_url}/{made.run_key}", made.storage), checkpoint.folder_name(1))
    return made


def pack(config: Config, ids: Sequence[str]) -> None:
    store = open_store(config.data_url, config.storage)
    rows = []
    for position, sample_id in enumerate(ids):
        pair = synthetic.sample(synthetic.split_index("val", position), 0, SIZE)
        rows.append(Row(sample_id, *map(codec.encode_png, pair), SIZE, SIZE))
    entries = write_shard(store, "val-0.parquet", rows)
    write_index(store, "index-val", entries, [])
    pixels, size = (0,) * len(synthetic.NAMES), (SIZE, SIZE)
    split = Split(len(ids), "index-val", content(entries), 1, pixels, pixels, 0, size, size)
    ids = {k: k for k in range(len(synthetic.NAMES))}
    write_manifest(store, Manifest("ten", "generated", synthetic.NAMES, synthetic.COLORS, ids, {"val": split}, True, "source"))

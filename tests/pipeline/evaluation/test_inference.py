"""A checkpoint is scored as its network was trained: masks of mmsegmentation's own code, made without aligned corners."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ccnet import CCNet, build_ccnet
from pipeline.checkpoints import checkpoint
from pipeline.config.config import Config
from pipeline.config.load import override, parse
from pipeline.data import synthetic
from pipeline.data.index import content, write_index
from pipeline.data.manifest import Manifest, Split, write_manifest
from pipeline.data.shards import Row, write_shard
from pipeline.evaluation import evaluate, inference
from pipeline.evaluation.predict import predict
from pipeline.images import codec
from pipeline.storage.store import open_store
from tests.ccnet.test_weights import GOLDEN, recipe

NAMES = ("a", "b", "c", "d", "e")
MODEL = {"backbone": "resnet18", "num_classes": 5, "recurrence": 2}


def golden() -> dict[str, Any]:
    """mmsegmentation's masks of two images; see tests/golden/README.md."""
    with np.load(GOLDEN / "mmseg_align_corners.npz") as arrays:
        return dict(arrays)


def small_net(z: dict[str, Any]) -> CCNet:
    net = build_ccnet(**MODEL)
    names = [name for name in net.state_dict() if not name.startswith("pixel_")]
    net.load_state_dict({name: recipe(int(z["seed"]), name, list(net.state_dict()[name].shape)) for name in names}, strict=False)
    last = net.head.bottleneck[3]
    with torch.no_grad():
        last.weight.mul_(torch.from_numpy(z["small_scale"]).view(-1, 1, 1, 1))
        last.bias.copy_(torch.from_numpy(z["small_bias"]))
    return net


def stored(tmp_path: Path, z: dict[str, Any], model: dict[str, Any]) -> tuple[Config, Manifest]:
    """A data set of the two images, labelled with mmsegmentation's masks, and a checkpoint of the network."""
    tree = {"name": "t", "storage": {"path": str(tmp_path / "store")}, "model": {"backbone": "resnet18", "recurrence": 2}}
    config = parse(tree | {"data": {"name": "two", "layout": "generated", "crop_size": 33}})
    store = open_store(config.data_url, config.storage)
    pairs = [(z[f"small_image{i}"], z[f"small_whole{i}"]) for i in (0, 1)]
    rows = [Row(f"val-{i}", *map(codec.encode_png, pair), *pair[1].shape) for i, pair in enumerate(pairs)]
    entries = write_shard(store, "val-0.parquet", rows)
    write_index(store, "index-val", entries, [])
    pixels = tuple(int(n) for n in np.bincount(np.concatenate([label.ravel() for _, label in pairs]), minlength=5))
    split = Split(2, "index-val", content(entries), 1, pixels, (2,) * 5, 0, (40, 49), (57, 56))
    manifest = Manifest("two", "generated", NAMES, synthetic.COLORS[:5], {k: k for k in range(5)}, {"val": split}, True, "source")
    write_manifest(store, manifest)
    net, local = small_net(z), tmp_path / "local"
    local.mkdir()
    state = checkpoint.snapshot(net, torch.optim.SGD(net.parameters(), lr=0.1))
    checkpoint.save(local, state, {"step": 1, "metrics": {"miou": 0.5}, "model": model, "class_names": NAMES})
    checkpoint.upload(local, open_store(f"{config.runs_url}/{config.run_key}", config.storage), checkpoint.folder_name(1))
    return config, manifest


@pytest.fixture(autouse=True)
def _without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_checkpoint_trained_without_aligned_corners_gives_the_masks_of_mmsegmentation(tmp_path: Path) -> None:
    z = golden()
    config, _ = stored(tmp_path, z, MODEL | {"align_corners": False})
    score = evaluate.evaluate(config).score
    assert (score.miou, score.protocol["align_corners"]) == (1.0, False)
    for way, options in (("whole", {}), ("slide", {"evaluate.window": 33})):
        output = tmp_path / way
        assert not predict(override(config, {"predict.output": str(output), **options})).faults
        for i in (0, 1):
            mask = codec.decode_label((output / f"val-{i}.png").read_bytes())
            assert np.array_equal(mask, z[f"small_{way}{i}"])


def test_a_checkpoint_without_the_record_aligned_its_corners(tmp_path: Path) -> None:
    z = golden()
    config, manifest = stored(tmp_path, z, MODEL)
    net, _ = inference.load_network(config, manifest)
    assert net.align_corners is True
    score = evaluate.evaluate(config).score
    assert score.protocol["align_corners"] is True
    assert score.miou < 0.8  # what the wrong protocol cost before it was recorded

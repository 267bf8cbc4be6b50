"""Compares `predict` on a cluster with a bare loop: `python -m tests.support.predict_speed [IMAGES [ROUNDS [WORKERS]]]`.

The bare loop is as many plain processes that read, decode, predict, draw, encode and write, and know nothing of Ray. Both write
masks and overlays of the same generated JPEG files by the same network of random weights, in turns.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import ray
import torch

from ccnet import distributed
from pipeline.benchmark.feeds import steady_rate
from pipeline.benchmark.processes import SPAWN
from pipeline.cluster import connect
from pipeline.config.config import Config
from pipeline.config.load import override
from pipeline.data import synthetic
from pipeline.data.manifest import open_data
from pipeline.evaluation import figures
from pipeline.evaluation.inference import load_network, placed, predict_image
from pipeline.evaluation.predict import predict
from pipeline.images import codec
from tests.support import untrained

SIDE = 64
"""Height and width of the images in pixels: small, so that what is not the network counts."""
DEVICE = torch.device("cpu")
Rates = tuple[float, float]
"""Images per second: at steady state, by the times at which files were written, and of all the time, with every start."""


def turns(folder: Path, num_images: int, num_workers: int) -> Iterator[tuple[Rates, Rates]]:
    """The rates of the bare loop and of `predict`, turn by turn."""
    for name in ("images", "scratch"):
        (folder / name).mkdir()
    for number in range(num_images):
        (folder / "images" / f"{number:06d}.jpg").write_bytes(codec.encode_jpeg(synthetic.sample(number, 0, SIDE)[0]))
    config = untrained.make(folder / "storage", folder / "scratch")
    config = override(config, {"predict.images": str(folder / "images"), "train.workers": num_workers})
    while True:
        yield _rates(_bare, config, num_images), _rates(_ours, config, num_images)


def _rates(run: Callable[[Config], None], config: Config, num_images: int) -> Rates:
    with tempfile.TemporaryDirectory() as output:
        began = time.time()
        run(override(config, {"predict.output": output}))
        seconds = time.time() - began
        written = sorted(path.stat().st_mtime for path in Path(output).glob("*.png"))
    assert len(written) == 2 * num_images
    return steady_rate(written) / 2, num_images / seconds


def _ours(config: Config) -> None:
    os.environ.update(RAY_worker_niceness="0")  # what else runs on the machine must not slow down one of the two alone
    connect.join(num_cpus=config.train.most_workers)
    try:
        assert not predict(config).faults
    finally:
        ray.shutdown()  # even an idle cluster takes a share of the bare loop's cores


def _bare(config: Config) -> None:
    workers = config.train.most_workers
    with ProcessPoolExecutor(workers, SPAWN) as pool:
        list(pool.map(partial(_bare_share, config), range(workers)))


def _bare_share(config: Config, rank: int) -> None:
    workers = config.train.most_workers
    torch.set_num_threads(distributed.num_threads(workers))
    manifest = open_data(config)
    net = placed(load_network(config, manifest)[0], DEVICE)
    for file in sorted(Path(str(config.predict.images)).iterdir())[rank::workers]:
        image = codec.decode_upright(file.read_bytes())
        mask = predict_image(net, image, image.shape[:2], DEVICE, config.evaluate)[0].numpy()
        for end, picture in ((".png", mask), ("_overlay.png", figures.overlay(image, mask, manifest.colors))):
            Path(str(config.predict.output), file.stem + end).write_bytes(codec.encode_png(picture))


def main(num_images: int = 2000, num_rounds: int = 3, num_workers: int = 2) -> None:
    """Prints each turn and the medians of the ratios."""
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for _, (bare, ours) in zip(range(num_rounds), turns(Path(folder), num_images, num_workers), strict=False):
            ratios.append([mine / other for mine, other in zip(ours, bare, strict=True)])
            for name, rates in (("bare loop", bare), ("predict", ours)):
                print(f"{name}: {rates[0]:.1f} images/s, with every start {rates[1]:.1f}", flush=True)
    medians = [statistics.median(ratio) for ratio in zip(*ratios, strict=True)]
    print(f"predict over bare loop: {medians[0]:.2f}, with every start {medians[1]:.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

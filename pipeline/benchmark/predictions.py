"""`predict` on a cluster compared with a bare loop over the same images: as many plain processes that know nothing of Ray."""

import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import ray
import torch

from ccnet import distributed
from pipeline.benchmark.device import own_device
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

logger = logging.getLogger(__name__)

SIDE = 64
"""Height and width of the images in pixels: small, so that what is not the network counts."""
BARE, OURS = "bare loop", "predict"


class PredictFigure(NamedTuple):
    """Figures of one way to predict, as medians of the rounds."""

    stage: str
    workers: int
    images: int
    rounds: int
    images_per_s: float
    """Rate at steady state, by the times at which the files were written."""
    lowest: float
    highest: float
    ratio: float
    """Rate divided by the bare loop's in the same round."""
    with_start: float
    """Images per second of all the time, with the start of the processes or of the cluster."""
    with_start_ratio: float


def measure_predictions(config: Config) -> Iterator[list[PredictFigure]]:
    """Figures of both ways, which take turns: masks and overlays of generated JPEG files, by the network of the configuration."""
    turns: dict[str, list[tuple[float, float]]] = {BARE: [], OURS: []}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        images.mkdir()
        for number in range(config.benchmark.images):
            (images / f"{number:06d}.jpg").write_bytes(codec.encode_jpeg(synthetic.sample(number, 0, SIDE)[0]))
        for number in range(config.benchmark.rounds):
            for stage, run in ((BARE, _bare), (OURS, _ours)):
                output = Path(folder, f"{stage} {number}")
                output.mkdir()
                began = time.time()
                run(override(config, {"predict.images": str(images), "predict.output": str(output)}))
                seconds = time.time() - began
                written = sorted(path.stat().st_mtime for path in output.glob("*.png"))
                assert len(written) == 2 * config.benchmark.images
                turns[stage].append((steady_rate(written) / 2, config.benchmark.images / seconds))
                logger.info("round %d of %d: %s %.1f images/s", number + 1, config.benchmark.rounds, stage, turns[stage][-1][0])
    yield [_figure(config, stage, turns[stage], turns[BARE]) for stage in turns]


def _ours(config: Config) -> None:
    connect.join()
    try:
        assert not predict(config).faults
    finally:
        ray.shutdown()  # even an idle cluster takes a share of the bare loop's cores


def _bare(config: Config) -> None:
    workers = config.train.most_workers
    with ProcessPoolExecutor(workers, SPAWN) as pool:
        list(pool.map(partial(_bare_share, config, workers), range(workers)))


def _bare_share(config: Config, workers: int, rank: int) -> None:
    torch.set_num_threads(distributed.num_threads(workers))
    manifest, device = open_data(config), own_device()
    net = placed(load_network(config, manifest)[0], device)
    for file in sorted(Path(str(config.predict.images)).iterdir())[rank::workers]:
        image = codec.decode_upright(file.read_bytes())
        mask = predict_image(net, image, image.shape[:2], device, config.evaluate)[0].cpu().numpy()
        for end, picture in ((".png", mask), ("_overlay.png", figures.overlay(image, mask, manifest.colors))):
            Path(str(config.predict.output), file.stem + end).write_bytes(codec.encode_png(picture))


def _figure(config: Config, stage: str, turns: list[tuple[float, float]], bare: list[tuple[float, float]]) -> PredictFigure:
    rates, with_start = zip(*turns, strict=True)
    ratios = [statistics.median(mine[i] / other[i] for mine, other in zip(turns, bare, strict=True)) for i in (0, 1)]
    return PredictFigure(
        stage, config.train.most_workers, config.benchmark.images, len(turns), statistics.median(rates), min(rates), max(rates),
        ratios[0], statistics.median(with_start), ratios[1],
    )  # fmt: skip

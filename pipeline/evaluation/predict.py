"""Predicts images and writes their masks and overlays to storage."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch

from ccnet import CCNet
from pipeline.cluster import shared
from pipeline.cluster.tasks import map_images
from pipeline.config.config import Config
from pipeline.data.manifest import Manifest, open_data
from pipeline.errors import ConfigError
from pipeline.evaluation import figures
from pipeline.evaluation.inference import known_split, load_network, predict_image
from pipeline.images import codec, resize
from pipeline.loading.batches import evaluation_samples
from pipeline.storage.probe import check
from pipeline.storage.store import Store, open_store


class Prediction(NamedTuple):
    """Addresses of one image's results."""

    mask_url: str
    """8-bit PNG at the image's size, value = class id of training."""
    overlay_url: str
    """The image with the class colours over it."""


def predict(config: Config) -> list[Prediction]:
    """Predicts `predict.images`, or `evaluate.split` if that is not set, with the inference of `config.evaluate`.

    On a cluster it runs in `train.workers` Ray tasks.

    Raises ConfigError when there is no image, CheckpointError when there is no network.
    """
    shared.refuse([*shared.of_data(config), *shared.of_predictions(config)])
    manifest = open_data(config)
    net, _ = load_network(config, manifest)
    output = open_store(config.predict.output or f"{config.storage.path}/predictions/{config.run_key}", config.storage)
    check(output)
    names = _names(config, manifest)[: config.predict.limit]
    return sorted(map_images(partial(_predict_share, net, config, manifest, output, names), len(names), config))


def _names(config: Config, manifest: Manifest) -> list[str]:
    """Keys below `predict.images`, or the positions of `evaluate.split` as text."""
    folder = config.predict.images
    if folder is None:
        known_split(config, manifest)
        return [str(index) for index in range(manifest.num_images(config.evaluate.split))]
    names = [key for key in open_store(folder, config.storage).list() if key.lower().endswith(codec.SUFFIXES)]
    if not names:
        raise ConfigError([f"predict.images = {folder!r}: no image found; {', '.join(codec.SUFFIXES)} are read"])
    return names


def _predict_share(
    net: CCNet,
    config: Config,
    manifest: Manifest,
    output: Store,
    names: list[str],
    numbers: list[int],
    device: torch.device,
) -> Iterator[Prediction]:
    net = net.to(device)
    for name, image in _images(config, manifest, [names[number] for number in numbers]):
        scaled = resize.resize_image(image, config.evaluate.scale)
        mask = predict_image(net, scaled, image.shape[:2], device, config.evaluate)[0].cpu().numpy()
        output.write(f"{name}.png", codec.encode_png(mask))
        output.write(f"{name}_overlay.png", codec.encode_png(figures.overlay(image, mask, manifest.colors)))
        yield Prediction(output.url(f"{name}.png"), output.url(f"{name}_overlay.png"))


def _images(config: Config, manifest: Manifest, names: list[str]) -> Iterator[tuple[str, codec.UInt8]]:
    """(name without suffix, image uint8[H, W, 3]) of each. Raises ValueError naming an image that does not decode."""
    if config.predict.images is None:
        for sample in evaluation_samples(config, manifest, config.evaluate.split, [int(n) for n in names], scale=1.0):
            yield sample.sample_id, sample.image
        return
    source = open_store(config.predict.images, config.storage)
    for name in names:
        try:
            yield name.rsplit(".", 1)[0], codec.decode_image(source.read(name))
        except ValueError as error:
            raise ValueError(f"{source.url(name)}: {error}") from error

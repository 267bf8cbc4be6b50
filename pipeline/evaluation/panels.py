"""The pictures of a validation: the same few images each time, with the network's predictions and its attention."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from ccnet import CCNet, attention_maps
from ccnet.inference import ScoresNotFinite
from pipeline.cluster.tasks import map_images
from pipeline.config.config import Config
from pipeline.config.evaluate import Evaluate
from pipeline.data.manifest import Manifest
from pipeline.evaluation import figures
from pipeline.evaluation.inference import as_batch, fits_into_memory, placed, predict_image
from pipeline.evaluation.protocol import WHOLE_IMAGE
from pipeline.images.codec import IGNORE, UInt8
from pipeline.images.resize import resize_to
from pipeline.loading.batches import Sample, evaluation_samples


def of_validation(
    config: Config,
    manifest: Manifest,
    net: CCNet,
    device: torch.device,
    examples: Sequence[int],
    worst: Sequence[int],
) -> dict[str, UInt8]:
    """Pictures by name: `panel` has image, truth, prediction and error; `attention` has the maps of one pixel of each image.

    They show the images numbered `examples`. `worst_images` is a panel of those numbered `worst`. Recurrence 0 has no attention.
    """
    samples = _read(config, manifest, examples)
    pictures = {
        "panel": _panel(samples, manifest, net, device),
        "worst_images": _panel(_read(config, manifest, worst), manifest, net, device),
    }
    attended = _attended(samples, net, device) if net.head.recurrence else []
    if attended:
        note = f"gamma {net.gamma:.4f}"
        pictures["attention"] = figures.attention_panel(attended, note, align_corners=net.align_corners)
    return pictures


def of_images(config: Config, manifest: Manifest, net: CCNet, numbers: Sequence[int]) -> UInt8:
    """uint8[H, W, 3]: a panel of images of `evaluate.split`, predicted with the inference of `config.evaluate`."""
    found = _predictions(config, manifest, net, numbers)
    rows = [(each.image, each.label, each.prediction) for each in found]
    return figures.panel(rows, manifest.colors, manifest.class_names, [each.sample_id for each in found])


def of_pairs(config: Config, manifest: Manifest, nets: tuple[CCNet, CCNet], numbers: Sequence[int]) -> UInt8:
    """The same images as two networks predict them."""
    first, second = (_predictions(config, manifest, net, numbers) for net in nets)
    rows = [(one.image, one.label, one.prediction, other.prediction) for one, other in zip(first, second, strict=True)]
    return figures.pairs(rows, manifest.colors, manifest.class_names, [each.sample_id for each in first])


class _Predicted(NamedTuple):
    """An image at its label's size, with what a network predicts."""

    place: int
    sample_id: str
    image: UInt8
    label: UInt8
    prediction: UInt8


def _predictions(config: Config, manifest: Manifest, net: CCNet, numbers: Sequence[int]) -> list[_Predicted]:
    """Where the evaluation predicts too: this process may have no GPU."""
    work = partial(_predict_share, net, config, manifest, list(numbers))
    return sorted(map_images(work, len(numbers), config), key=lambda each: each.place)


def _predict_share(
    net: CCNet, config: Config, manifest: Manifest, numbers: list[int], places: list[int], device: torch.device
) -> Iterator[_Predicted]:
    """The images `numbers[place]`."""
    net, options = placed(net, device), config.evaluate
    samples = evaluation_samples(config, manifest, options.split, [numbers[place] for place in places], options.scale)
    for place, sample in zip(places, samples, strict=True):
        size = (sample.label.shape[0], sample.label.shape[1])
        with fits_into_memory(_picture_of(sample), options):
            prediction = _predicted(net, sample.image, size, device, options)
        yield _Predicted(place, sample.sample_id, resize_to(sample.image, size), sample.label, prediction)


def _read(config: Config, manifest: Manifest, indices: Sequence[int]) -> list[Sample]:
    """The validation images with these numbers."""
    return list(evaluation_samples(config, manifest, "val", list(indices), config.evaluate.scale))


def _panel(samples: Sequence[Sample], manifest: Manifest, net: CCNet, device: torch.device) -> UInt8:
    """uint8[H, W, 3]: image, truth, prediction and error of each sample."""
    predicted = []
    for sample in samples:
        size = (sample.label.shape[0], sample.label.shape[1])
        with fits_into_memory(_picture_of(sample), WHOLE_IMAGE):
            prediction = _predicted(net, sample.image, size, device, WHOLE_IMAGE)
        predicted.append((resize_to(sample.image, size), sample.label, prediction))
    return figures.panel(predicted, manifest.colors, manifest.class_names, [sample.sample_id for sample in samples])


def _picture_of(sample: Sample) -> str:
    height, width = sample.label.shape
    return f"the picture of sample {sample.sample_id}, {width} x {height} pixels,"


def _predicted(net: CCNet, image: UInt8, size: tuple[int, int], device: torch.device, options: Evaluate) -> UInt8:
    """uint8[H, W] classes; black, and wrong everywhere as it is counted, if the scores are not finite."""
    try:
        prediction: UInt8 = predict_image(net, image, size, device, options)[0].cpu().numpy()
    except ScoresNotFinite:
        return np.full(size, IGNORE, np.uint8)
    return prediction


def _attended(
    samples: Sequence[Sample], net: CCNet, device: torch.device
) -> list[tuple[UInt8, figures.Pixel, list[figures.Map]]]:
    """(image, pixel, its maps) of each sample, without those whose maps are not finite.

    The pixel is of the rarest class in the first image, of a more frequent one in each further image.
    """
    found = []
    for rank, sample in enumerate(samples):
        size = (sample.label.shape[0], sample.label.shape[1])
        with fits_into_memory(_picture_of(sample), WHOLE_IMAGE):
            batch = as_batch(sample.image, device)
            pixel, maps = _attention(net, batch, figures.notable_pixel(sample.label, rank), size)
        if all(np.isfinite(one).all() for one in maps):
            found.append((sample.image, pixel, maps))
    return found


def _attention(
    net: CCNet, batch: torch.Tensor, pixel: figures.Pixel, size: tuple[int, int]
) -> tuple[figures.Pixel, list[figures.Map]]:
    """(pixel of the image, its maps) for a pixel of the label with (height, width) `size`: one map a pass, then all together."""
    pixel = pixel[0] * batch.shape[2] // size[0], pixel[1] * batch.shape[3] // size[1]
    maps = attention_maps(net, batch, pixel)
    return pixel, [one[0].float().cpu().numpy() for one in (*maps.passes, maps.composed)]

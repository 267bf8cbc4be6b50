"""The pictures of a validation: the same few images each time, with the network's predictions and its attention."""

from collections.abc import Sequence

import numpy as np
import torch

from ccnet import CCNet, attention_maps
from ccnet.inference import ScoresNotFinite
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
    config: Config, manifest: Manifest, net: CCNet, device: torch.device, worst: Sequence[int] = ()
) -> dict[str, UInt8]:
    """Pictures by name: `panel` has image, truth, prediction and error; `attention` has the maps of one pixel of each image.

    `worst_images` is a panel of the images numbered `worst`. Recurrence 0 has no attention.
    """
    num_images = manifest.num_images("val")
    shown = min(config.evaluate.panel_images, num_images)
    indices = [i * num_images // shown for i in range(shown)]
    samples = _read(config, manifest, "val", indices)
    pictures = {"panel": _panel(samples, manifest, net, device, WHOLE_IMAGE)}
    if worst:
        pictures["worst_images"] = _panel(_read(config, manifest, "val", worst), manifest, net, device, WHOLE_IMAGE)
    attended = _attended(samples, net, device) if net.head.recurrence else []
    if attended:
        note = f"gamma {net.gamma:.4f}"
        pictures["attention"] = figures.attention_panel(attended, note, align_corners=net.align_corners)
    return pictures


def of_images(config: Config, manifest: Manifest, net: CCNet, device: torch.device, numbers: Sequence[int]) -> UInt8:
    """uint8[H, W, 3]: a panel of images of `evaluate.split`, predicted with the inference of `config.evaluate`."""
    samples = _read(config, manifest, config.evaluate.split, numbers)
    return _panel(samples, manifest, placed(net, device), device, config.evaluate)


def of_pairs(
    config: Config, manifest: Manifest, nets: tuple[CCNet, CCNet], device: torch.device, numbers: Sequence[int]
) -> UInt8:
    """uint8[H, W, 3]: images of `evaluate.split` as two networks predict them, with the inference of `config.evaluate`."""
    rows, samples = [], _read(config, manifest, config.evaluate.split, numbers)
    for sample in samples:
        size = (sample.label.shape[0], sample.label.shape[1])
        with fits_into_memory(_picture_of(sample), config.evaluate):
            one, other = (_predicted(placed(net, device), sample.image, size, device, config.evaluate) for net in nets)
        rows.append((resize_to(sample.image, size), sample.label, one, other))
    return figures.pairs(rows, manifest.colors, manifest.class_names, [sample.sample_id for sample in samples])


def _read(config: Config, manifest: Manifest, split: str, indices: Sequence[int]) -> list[Sample]:
    """The images of a split with these numbers."""
    return list(evaluation_samples(config, manifest, split, list(indices), config.evaluate.scale))


def _panel(samples: Sequence[Sample], manifest: Manifest, net: CCNet, device: torch.device, options: Evaluate) -> UInt8:
    """uint8[H, W, 3]: image, truth, prediction and error of each sample."""
    predicted = []
    for sample in samples:
        size = (sample.label.shape[0], sample.label.shape[1])
        with fits_into_memory(_picture_of(sample), options):
            prediction = _predicted(net, sample.image, size, device, options)
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

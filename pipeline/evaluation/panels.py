"""The pictures of a validation: the same few images each time, with the network's predictions and its attention."""

import numpy as np
import torch

from ccnet import CCNet, attention_maps
from ccnet.inference import ScoresNotFinite, predict_classes
from pipeline.config.config import Config
from pipeline.data.manifest import Manifest
from pipeline.evaluation import figures
from pipeline.evaluation.inference import as_batch, fits_into_memory
from pipeline.evaluation.protocol import WHOLE_IMAGE
from pipeline.images.codec import IGNORE, UInt8
from pipeline.images.resize import resize_to
from pipeline.loading.batches import evaluation_samples


def of_validation(config: Config, manifest: Manifest, net: CCNet, device: torch.device) -> dict[str, UInt8]:
    """Pictures by name: `panel` has image, truth, prediction and error; `attention` has the maps of one pixel of each image.

    Recurrence 0 has no attention.
    """
    num_images = manifest.num_images("val")
    shown = min(config.evaluate.panel_images, num_images)
    indices = [i * num_images // shown for i in range(shown)]
    predicted, attended = [], []
    samples = evaluation_samples(config, manifest, "val", indices, config.evaluate.scale)
    for rank, sample in enumerate(samples):
        batch, size = as_batch(sample.image, device), (sample.label.shape[0], sample.label.shape[1])
        with fits_into_memory(f"the picture of sample {sample.sample_id}, {size[1]} x {size[0]} pixels,", WHOLE_IMAGE):
            try:
                prediction = predict_classes(net, batch, size)[0].cpu().numpy()
            except ScoresNotFinite:  # black and wrong everywhere, as it is counted
                prediction = np.full(size, IGNORE, np.uint8)
            predicted.append((resize_to(sample.image, size), sample.label, prediction))
            if net.head.recurrence and prediction[0, 0] != IGNORE:
                # The rarest class in the first image, a more frequent one in each further image.
                attended.append((sample.image, *_attention(net, batch, figures.notable_pixel(sample.label, rank), size)))
    pictures = {"panel": figures.panel(predicted, manifest.colors, manifest.class_names)}
    if attended:
        note = f"gamma {net.gamma:.4f}"
        pictures["attention"] = figures.attention_panel(attended, note, align_corners=net.align_corners)
    return pictures


def _attention(
    net: CCNet, batch: torch.Tensor, pixel: figures.Pixel, size: tuple[int, int]
) -> tuple[figures.Pixel, list[figures.Map]]:
    """(pixel of the image, its maps) for a pixel of the label with (height, width) `size`: one map a pass, then all together."""
    pixel = pixel[0] * batch.shape[2] // size[0], pixel[1] * batch.shape[3] // size[1]
    maps = attention_maps(net, batch, pixel)
    return pixel, [one[0].float().cpu().numpy() for one in (*maps.passes, maps.composed)]

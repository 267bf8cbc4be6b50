"""The pictures of a validation: the same few images each time, what the network makes of them and where it looks."""

import torch

from ccnet import CCNet, attention_maps
from ccnet.inference import predict_classes
from pipeline.config.config import Config
from pipeline.data.manifest import Manifest
from pipeline.evaluation import figures
from pipeline.evaluation.inference import as_batch
from pipeline.images.codec import UInt8
from pipeline.images.resize import resize_to
from pipeline.loading.batches import evaluation_samples


def of_validation(config: Config, manifest: Manifest, net: CCNet, device: torch.device) -> dict[str, UInt8]:
    """By name: `panel` of image, truth, prediction and error; `attention` of where one pixel looks, none for recurrence 0."""
    num_images = manifest.num_images("val")
    shown = min(config.evaluate.panel_images, num_images)
    indices = [i * num_images // shown for i in range(shown)]
    predicted, looked = [], []
    samples = evaluation_samples(config, manifest, "val", indices, config.evaluate.scale)
    for rank, sample in enumerate(samples):
        batch, size = as_batch(sample.image, device), (sample.label.shape[0], sample.label.shape[1])
        prediction = predict_classes(net, batch, size)[0].cpu().numpy()
        predicted.append((resize_to(sample.image, size), sample.label, prediction))
        if net.head.recurrence:
            # From the first image to the last a commoner class each.
            looked.append((sample.image, *_attention(net, batch, figures.notable_pixel(sample.label, rank), size)))
    pictures = {"panel": figures.panel(predicted, manifest.colors, manifest.class_names)}
    return pictures | ({"attention": figures.attention_panel(looked)} if looked else {})


def _attention(
    net: CCNet, batch: torch.Tensor, pixel: figures.Pixel, size: tuple[int, int]
) -> tuple[figures.Pixel, list[figures.Map]]:
    """A pixel of the label, whose (height, width) is `size`, as one of the image, and its maps: each pass, all together."""
    pixel = pixel[0] * batch.shape[2] // size[0], pixel[1] * batch.shape[3] // size[1]
    maps = attention_maps(net, batch, pixel)
    return pixel, [one[0].float().cpu().numpy() for one in (*maps.passes, maps.composed)]

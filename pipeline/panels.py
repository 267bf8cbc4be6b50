"""The pictures of a validation: the same few images each time, what the network makes of them and where it looks."""

import torch

from ccnet.attention_maps import attention_maps
from ccnet.inference import predict_classes
from pipeline import figures
from pipeline.datasets import evaluation_samples
from pipeline.evaluate import as_batch
from pipeline.job import Job
from pipeline.learner import Learner
from pipeline.transforms import UInt8, resize_to


def of_validation(job: Job, learner: Learner) -> dict[str, UInt8]:
    """ "panel": image, truth, prediction and error; "attention": where one pixel looks, left out for recurrence 0."""
    num_images = job.manifest.num_images("val")
    shown = min(job.config.evaluate.panel_images, num_images)
    indices = [i * num_images // shown for i in range(shown)]
    predicted, looked = [], []
    for sample in evaluation_samples(job.data, job.manifest, "val", indices, job.config.evaluate.scale):
        batch, size = as_batch(sample.image, learner.device), (sample.label.shape[0], sample.label.shape[1])
        prediction = predict_classes(learner.net, batch, size)[0].cpu().numpy()
        predicted.append((resize_to(sample.image, size), sample.label, prediction))
        if learner.net.head.recurrence:
            looked.append((sample.image, *_attention(learner, batch, sample.label)))
    pictures = {"panel": figures.panel(predicted, job.manifest.colors, job.manifest.class_names)}
    return pictures | ({"attention": figures.attention_panel(looked)} if looked else {})


def _attention(learner: Learner, batch: torch.Tensor, label: UInt8) -> tuple[figures.Pixel, list[figures.Map]]:
    """A pixel of the image that is worth a look, and its maps: of each pass and of all together."""
    row, column = figures.notable_pixel(label)
    pixel = row * batch.shape[2] // label.shape[0], column * batch.shape[3] // label.shape[1]
    maps = attention_maps(learner.net, batch, pixel)
    return pixel, [one[0].float().cpu().numpy() for one in (*maps.passes, maps.composed)]

"""Predicts images and writes their masks and overlays to storage.

What is wrong with one image is that image's fault: it is named at the end, and the others are predicted.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from ccnet import CCNet
from pipeline.cluster import shared
from pipeline.cluster.tasks import map_images
from pipeline.config.config import Config
from pipeline.config.load import storage_at
from pipeline.data.manifest import Manifest, open_data
from pipeline.delivery.predictor import Model
from pipeline.errors import SampleError, StorageError
from pipeline.evaluation import figures
from pipeline.evaluation.inference import fits_into_memory, load_network, placed, predict_image
from pipeline.evaluation.inputs import Input, Inputs, find_files, find_inputs
from pipeline.evaluation.protocol import inference_settings
from pipeline.evaluation.results import held, seal_of, write_results
from pipeline.fault_tolerance.failures import OutOfMemory
from pipeline.images import codec, resize
from pipeline.loading.samples import open_samples
from pipeline.storage.probe import check
from pipeline.storage.retry import Failed, outcome
from pipeline.storage.store import Store, open_store

REVISION = 1
"""Raise it with a change of decoding, inference or drawing that gives other results: those of before are then made again."""


class Prediction(NamedTuple):
    """Addresses of one image's results."""

    mask_url: str
    """8-bit PNG at the image's size, value = class id of training."""
    overlay_url: str
    """The image with the class colours over it."""
    before: bool = False
    """An earlier call has made the same results, of the same image with the same weights."""


class Predicted(NamedTuple):
    """What became of the images."""

    done: list[Prediction]
    faults: list[str]
    """A sentence for each image that was not predicted; it names the image."""


def predict(config: Config) -> Predicted:
    """Predicts `predict.images`, or `evaluate.split` if that is not set, with the inference of `config.evaluate`.

    A file of `predict.images` is predicted upright, as viewers show it and as training saw its images; a sample of a split as it
    is stored, like its label. Only an unchanged result of the same image is replaced, and one that the same weights made in the
    same way is kept: the same call again resumes one that was interrupted. On a cluster it runs in `train.workers` Ray tasks.

    Raises ConfigError when there is no image or results would lie among images, CheckpointError when there is no network.
    """
    shared.refuse([*shared.of_data(config), *shared.of_predictions(config)])
    manifest = open_data(config)
    output = open_store(config.predict.output or f"{config.storage.path}/predictions/{config.run_key}", config.storage)
    inputs = find_inputs(config, manifest, output)
    net, found = load_network(config, manifest)
    check(output, "predict.output" if config.predict.output else "storage.path")
    inference = {"scale": config.evaluate.scale, **inference_settings(config.evaluate), "recurrence": net.head.recurrence}
    model = _model_key(found.sha256, inference, manifest.colors)
    work = partial(_predict_share, net, config, manifest, output, inputs, model)
    results = list(map_images(work, len(inputs.images), config))
    done = sorted(result for result in results if isinstance(result, Prediction))
    return Predicted(done, sorted([*inputs.faults, *(result for result in results if isinstance(result, str))]))


def predict_files(model: Model, addresses: Sequence[str], output: str) -> Iterator[Prediction | str]:
    """Predicts files, folders and prefixes with a delivered model; gives each image's results, or what is wrong with it.

    Needs no configuration, no data set and no cluster. The rest is as in `predict`.
    """
    storage = storage_at(output)
    store = open_store(storage.path, storage)
    parts = find_files([storage_at(address).path for address in addresses], storage, store)
    check(store, "--out")
    key = _model_key(model.record.sha256, model.record.inference, model.colors)
    for part in parts:
        yield from part.faults
        for each in part.images:
            try:
                assert part.source is not None
                data = part.source.read(each.key)
                yield _result(store, each, data, codec.checked_upright, model.predict, model.colors, key)
            except Exception as error:
                yield _fault(each, error)


def _model_key(weights_sha256: str, inference: Mapping[str, Any], colors: Sequence[tuple[int, int, int]]) -> str:
    """Equal for two calls that make the same results of an image."""
    return json.dumps([REVISION, weights_sha256, inference, colors], sort_keys=True)


def _predict_share(
    net: CCNet,
    config: Config,
    manifest: Manifest,
    output: Store,
    inputs: Inputs,
    model: str,
    numbers: list[int],
    device: torch.device,
) -> Iterator[Prediction | str]:
    """For each image the addresses of its results, or what is wrong with it. Raises StorageError if a store is gone."""
    net = placed(net, device)
    images = [inputs.images[number] for number in numbers]
    decode = codec.checked_upright if inputs.source else codec.decode_image

    def mask_of(image: codec.UInt8) -> codec.UInt8:
        with fits_into_memory(f"an image of {image.shape[1]} x {image.shape[0]} pixels", config.evaluate):
            scaled = resize.resize_image(image, config.evaluate.scale)
            mask: codec.UInt8 = predict_image(net, scaled, image.shape[:2], device, config.evaluate)[0].cpu().numpy()
        return mask

    for each, data in zip(images, _read(config, manifest, inputs.source, images), strict=True):
        try:
            if isinstance(data, Exception):
                raise data
            result: Prediction | str = _result(output, each, data, decode, mask_of, manifest.colors, model)
        except Exception as error:
            if isinstance(error.__cause__, Failed) and not error.__cause__.final:  # the store is gone, for all images
                raise
            result = _fault(each, error)
        yield result


def _result(
    output: Store,
    each: Input,
    data: bytes,
    decode: Callable[[bytes], codec.UInt8],
    mask_of: Callable[[codec.UInt8], codec.UInt8],
    colors: Sequence[tuple[int, int, int]],
    model: str,
) -> Prediction:
    """Writes the results of an image, whose file is `data`, unless they are there."""
    made_of = hashlib.sha256(model.encode() + b"\0" + data).hexdigest()
    keys = each.overlay, each.mask
    urls, there = (output.url(each.mask), output.url(each.overlay)), held(output, keys)
    if all(key in there and seal_of(there[key], each.address) == made_of for key in keys):
        return Prediction(*urls, before=True)
    image = decode(data)
    mask = mask_of(image)
    overlay = figures.overlay(image, mask, colors)
    files = dict(zip(keys, map(codec.encode_png, (overlay, mask)), strict=True))
    write_results(output, files, there, each.address, made_of)
    return Prediction(*urls)


def _read(config: Config, manifest: Manifest, source: Store | None, images: Sequence[Input]) -> Iterator[bytes | Exception]:
    """The file of each image, or what is wrong with it."""
    if source:
        yield from (outcome(partial(source.read, each.key)) for each in images)
        return
    for row in open_samples(config, manifest, config.evaluate.split).ahead([each.number for each in images]):
        yield row if isinstance(row, SampleError) else row.image


def _fault(image: Input, error: Exception) -> str:
    """The sentence about an image that was not predicted."""
    text = " ".join(str(error).split())
    if isinstance(error, SampleError | StorageError):  # these name the file
        return text
    if isinstance(error, FileNotFoundError):
        text = "no such file: it is a link to nothing, or was deleted since it was listed"
    elif not isinstance(error, ValueError | FileExistsError | OutOfMemory):
        text = f"{type(error).__name__}: {text}"
    return f"{image.address}: {text}"

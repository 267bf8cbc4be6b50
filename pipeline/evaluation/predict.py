"""Predicts images and writes their masks and overlays to storage.

What is wrong with one image is that image's fault: it is named at the end, and the others are predicted.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch

from ccnet import CCNet
from pipeline.cluster import shared
from pipeline.cluster.tasks import map_images
from pipeline.config.config import Config
from pipeline.config.load import storage_at
from pipeline.data.manifest import Manifest, open_data
from pipeline.data.shards import Row
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
from pipeline.storage.retry import Failed
from pipeline.storage.store import Store, open_store

REVISION = 1
"""Raise it with a change of decoding, inference or drawing that gives other results: those of before are then made again."""
THREADS = 4
"""Threads that read, decode, draw and write beside the network. As many images wait on either side of it."""
A = TypeVar("A")
R = TypeVar("R")


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


class _Job(NamedTuple):
    """How images are predicted, and where their results go."""

    model: str
    """Equal for two calls that make the same results of an image."""
    decode: Callable[[bytes], codec.UInt8]
    colors: Sequence[tuple[int, int, int]]
    output: Store
    there: frozenset[str]
    """Keys of results that were there when the call began."""


class _File(NamedTuple):
    """An image to predict."""

    image: Input
    read: Callable[[], bytes]


class _Opened(NamedTuple):
    """An image whose file was read."""

    image: Input
    made_of: str
    """What its results are made of: a hash."""
    before: Mapping[str, bytes]
    """The files under the keys of its results."""
    pixels: codec.UInt8
    mask: codec.UInt8 | None = None


P = TypeVar("P", _File, _Opened)


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
    decode = codec.checked_upright if inputs.source else codec.decode_image
    model = _model_key(found.sha256, inference, manifest.colors)
    job = _Job(model, decode, manifest.colors, output, _there(output, inputs.images))
    work = partial(_predict_share, net, config, manifest, inputs, job)
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
    there = _there(store, [each for part in parts for each in part.images])
    job = _Job(key, codec.checked_upright, model.colors, store, there)
    for part in parts:
        yield from part.faults
        assert part.source is not None
        yield from _results(job, _from_store(part.source, part.images), model.predict)


def _model_key(weights_sha256: str, inference: Mapping[str, Any], colors: Sequence[tuple[int, int, int]]) -> str:
    return json.dumps([REVISION, weights_sha256, inference, colors], sort_keys=True)


def _there(output: Store, images: Sequence[Input]) -> frozenset[str]:
    """The keys of results that are there. One listing, because asking for each key doubles the requests to a bucket."""
    return frozenset(output.list()) & {key for each in images for key in (each.mask, each.overlay)}


def _predict_share(
    net: CCNet, config: Config, manifest: Manifest, inputs: Inputs, job: _Job, numbers: list[int], device: torch.device
) -> Iterator[Prediction | str]:
    """For each image the addresses of its results, or what is wrong with it. Raises StorageError if a store is gone."""
    net = placed(net, device)
    images = [inputs.images[number] for number in numbers]

    def mask_of(image: codec.UInt8) -> codec.UInt8:
        with fits_into_memory(f"an image of {image.shape[1]} x {image.shape[0]} pixels", config.evaluate):
            scaled = resize.resize_image(image, config.evaluate.scale)
            mask: codec.UInt8 = predict_image(net, scaled, image.shape[:2], device, config.evaluate)[0].cpu().numpy()
        return mask

    source = inputs.source
    files = _from_store(source, images) if source else _from_split(config, manifest, images)
    return _results(job, files, mask_of)


def _from_store(source: Store, images: Sequence[Input]) -> Iterator[_File]:
    return (_File(each, partial(source.read, each.key)) for each in images)


def _from_split(config: Config, manifest: Manifest, images: Sequence[Input]) -> Iterator[_File]:
    rows = open_samples(config, manifest, config.evaluate.split).ahead([each.number for each in images])
    return (_File(each, partial(_image_of, row)) for each, row in zip(images, rows, strict=True))


def _image_of(row: Row | SampleError) -> bytes:
    if isinstance(row, SampleError):
        raise row
    return row.image


def _results(job: _Job, files: Iterable[_File], mask_of: Callable[[codec.UInt8], codec.UInt8]) -> Iterator[Prediction | str]:
    """The results of each image, in the order of the images: threads read and write while `mask_of` computes in this one."""
    with ThreadPoolExecutor(THREADS) as pool:
        opened = _ahead(pool, partial(_step, partial(_open, job)), files)
        masked = (_step(lambda each: each._replace(mask=mask_of(each.pixels)), found) for found in opened)
        yield from _ahead(pool, partial(_step, partial(_write, job)), masked)


def _ahead(pool: ThreadPoolExecutor, call: Callable[[A], R], items: Iterable[A]) -> Iterator[R]:
    """The call's result for each item, in order. Threads work on the items after the one that the caller has."""
    waiting = deque[Future[R]]()
    for item in items:
        waiting.append(pool.submit(call, item))
        if len(waiting) > THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _step(call: Callable[[P], R], found: P | Prediction | str) -> R | Prediction | str:
    """The next step of an image that is not at its end. Raises StorageError if a store is gone, for all images."""
    if isinstance(found, Prediction | str):
        return found
    try:
        return call(found)
    except Exception as error:
        if isinstance(error.__cause__, Failed) and not error.__cause__.final:
            raise
        return _fault(found.image, error)


def _open(job: _Job, file: _File) -> _Opened | Prediction:
    """The image with what was made of it before; its results if they are those of this call."""
    each, data = file.image, file.read()
    made_of = hashlib.sha256(job.model.encode() + b"\0" + data).hexdigest()
    keys = each.overlay, each.mask
    before = held(job.output, [key for key in keys if key in job.there])
    if all(key in before and seal_of(before[key], each.address) == made_of for key in keys):
        return Prediction(job.output.url(each.mask), job.output.url(each.overlay), before=True)
    return _Opened(each, made_of, before, job.decode(data))


def _write(job: _Job, opened: _Opened) -> Prediction:
    each, mask = opened.image, opened.mask
    assert mask is not None
    files = {
        each.overlay: codec.encode_png(figures.overlay(opened.pixels, mask, job.colors)),
        each.mask: codec.encode_png(mask),
    }
    write_results(job.output, files, opened.before, each.address, opened.made_of)
    return Prediction(job.output.url(each.mask), job.output.url(each.overlay))


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

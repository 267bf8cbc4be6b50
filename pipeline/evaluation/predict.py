"""Predicts images and writes their masks and overlays to storage.

What is wrong with one image is that image's fault: it is named at the end, and the others are predicted.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from ccnet import CCNet
from ccnet.inference import predict_classes, predict_confidence
from pipeline.cluster import shared
from pipeline.cluster.tasks import map_images
from pipeline.config.config import Config
from pipeline.config.evaluate import Predict
from pipeline.config.load import storage_at
from pipeline.data.classes import Color
from pipeline.data.manifest import Manifest, open_data
from pipeline.delivery.predictor import Model
from pipeline.errors import SampleError, StorageError
from pipeline.evaluation.inference import fits_into_memory, load_network, placed, predict_image
from pipeline.evaluation.inputs import (
    CONFIDENCE,
    MASK,
    OVERLAY,
    File,
    Input,
    Inputs,
    files_of_split,
    files_of_store,
    find_files,
    find_inputs,
)
from pipeline.evaluation.protocol import inference_settings
from pipeline.evaluation.results import (
    Prediction,
    classes_in,
    encoded,
    ends_of,
    held,
    list_there,
    mask_values,
    seal_of,
    write_list,
    write_results,
)
from pipeline.fault_tolerance.failures import OutOfMemory
from pipeline.images import codec, resize
from pipeline.storage.probe import check
from pipeline.storage.retry import Failed
from pipeline.storage.store import Store, open_store

REVISION = 1
"""Raise it with a change of decoding, inference or drawing that gives other results: those of before are then made again."""
THREADS = 4
"""Threads that read, decode, draw and write beside the network. As many images wait on either side of it."""
A = TypeVar("A")
R = TypeVar("R")
_DEFAULT = Predict()


class Predicted(NamedTuple):
    """What became of the images."""

    done: list[Prediction]
    faults: list[str]
    """A sentence for each image that was not predicted; it names the image."""


class _Job(NamedTuple):
    """How images are predicted, and where their results go."""

    model: str
    """Equal for two calls that make the same results of an image."""
    form: Predict
    class_values: codec.UInt8
    """uint8[K], value of each class in a mask."""
    colors: Sequence[Color]
    decode: Callable[[bytes], codec.UInt8]
    output: Store
    there: frozenset[str]
    """Keys of results that were there when the call began."""


class _Opened(NamedTuple):
    """An image whose file was read."""

    image: Input
    sha256: str
    made_of: Mapping[str, str]
    """What each result is made of, a hash by key."""
    before: Mapping[str, bytes]
    """The files under these keys."""
    array: codec.UInt8
    """uint8[H, W, 3]"""
    planes: codec.UInt8 | None = None
    """uint8[1 or 2, H, W]: the classes and, if it is asked for, the confidence."""


P = TypeVar("P", File, _Opened)


def predict(config: Config) -> Predicted:
    """Predicts `predict.images`, or `evaluate.split` if that is not set, with the inference of `config.evaluate`.

    A file of `predict.images` is predicted upright, as viewers show it and as training saw its images; a sample of a split as it
    is stored, like its label. Only an unchanged result of the same image is replaced, and one that the same weights made in the
    same way is kept: the same call again resumes one that was interrupted. On a cluster it runs in `train.workers` Ray tasks.
    Last it writes `predictions.jsonl`: the model, the faults, and each image's results.

    Raises ConfigError when there is no image, results would lie among images, or `predict.masks` does not fit; CheckpointError
    when there is no network.
    """
    shared.refuse([*shared.of_data(config), *shared.of_predictions(config)])
    manifest, form = open_data(config), config.predict
    class_values = mask_values(form, manifest.class_names)
    output = open_store(form.output or f"{config.storage.path}/predictions/{config.run_key}", config.storage)
    inputs = find_inputs(config, manifest, output, ends_of(form))
    net, found = load_network(config, manifest)
    check(output, "predict.output" if form.output else "storage.path")
    list_there(output)
    inference = {"scale": config.evaluate.scale, **inference_settings(config.evaluate), "recurrence": net.head.recurrence}
    decode = codec.checked_upright if inputs.source else codec.decode_image
    model = _model_key(found.sha256, inference, manifest.colors)
    job = _Job(model, form, class_values, manifest.colors, decode, output, _there(output, inputs.images, form))
    work = partial(_predict_share, net, config, manifest, inputs, job)
    results = [*inputs.faults, *map_images(work, len(inputs.images), config)]
    origin = {"checkpoint": found.url, "sha256": found.sha256, "step": found.progress["step"],
              "mlflow_run": found.progress.get("run_id")}  # fmt: skip
    return _write_list(job, manifest.class_names, {"model": origin, "inference": inference}, results)


def predict_files(model: Model, addresses: Sequence[str], output: str, form: Predict = _DEFAULT) -> Iterator[Prediction | str]:
    """Predicts files, folders and prefixes with a delivered model; gives each image's results, or what is wrong with it.

    Needs no configuration, no data set and no cluster. Of `form`, it takes `masks`, `overlay` and `confidence`. The rest is as in
    `predict`.
    """
    record, storage = model.record, storage_at(output)
    class_values, store = mask_values(form, model.classes), open_store(storage.path, storage)
    parts = find_files([storage_at(address).path for address in addresses], storage, store, ends_of(form))
    check(store, "--out")
    list_there(store)
    there = _there(store, [each for part in parts for each in part.images], form)
    key = _model_key(record.sha256, record.inference, model.colors)
    job = _Job(key, form, class_values, model.colors, codec.checked_upright, store, there)
    results: list[Prediction | str] = []

    def planes_of(image: codec.UInt8) -> codec.UInt8:
        return np.stack(model.confidence(image)) if form.confidence else model.predict(image)[None]

    for part in parts:
        assert part.source is not None
        for result in chain(part.faults, _results(job, files_of_store(part.source, part.images), planes_of)):
            results.append(result)
            yield result
    origin = {"checkpoint": record.origin["checkpoint"], "sha256": record.origin["checkpoint_sha256"],
              "step": record.score["step"], "mlflow_run": record.origin["mlflow_run"]}  # fmt: skip
    _write_list(job, model.classes, {"model": origin, "inference": record.inference}, results)


def _model_key(weights_sha256: str, inference: Mapping[str, Any], colors: Sequence[Color]) -> str:
    return json.dumps([REVISION, weights_sha256, inference, colors], sort_keys=True)


def _there(output: Store, images: Sequence[Input], form: Predict) -> frozenset[str]:
    """The keys of results that are there. One listing, because asking for each key doubles the requests to a bucket."""
    return frozenset(output.list()) & {each.name + end for each in images for end in ends_of(form)}


def _predict_share(
    net: CCNet, config: Config, manifest: Manifest, inputs: Inputs, job: _Job, numbers: list[int], device: torch.device
) -> Iterator[Prediction | str]:
    """For each image the addresses of its results, or what is wrong with it. Raises StorageError if a store is gone."""
    net = placed(net, device)
    images = [inputs.images[number] for number in numbers]
    call = predict_confidence if job.form.confidence else predict_classes

    def planes_of(image: codec.UInt8) -> codec.UInt8:
        with fits_into_memory(f"an image of {image.shape[1]} x {image.shape[0]} pixels", config.evaluate):
            scaled = resize.resize_image(image, config.evaluate.scale)
            found = predict_image(net, scaled, image.shape[:2], device, config.evaluate, call).cpu().numpy()
        planes: codec.UInt8 = found.reshape(-1, *image.shape[:2])
        return planes

    files = files_of_store(inputs.source, images) if inputs.source else files_of_split(config, manifest, images)
    return _results(job, files, planes_of)


def _results(job: _Job, files: Iterable[File], planes_of: Callable[[codec.UInt8], codec.UInt8]) -> Iterator[Prediction | str]:
    """The results of each image, in the order of the images: threads read and write while `planes_of` computes in this one."""
    with ThreadPoolExecutor(THREADS) as pool:
        opened = _ahead(pool, partial(_step, partial(_open, job)), files)
        predicted = (_step(lambda each: each._replace(planes=planes_of(each.array)), found) for found in opened)
        yield from _ahead(pool, partial(_step, partial(_write, job)), predicted)


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


def _open(job: _Job, file: File) -> _Opened | Prediction:
    """The image with what was made of it before; its results if they are those of this call."""
    each, data = file.image, file.read()
    # A mask of ids and an overlay are made of nothing else: results of before there were other forms stay valid.
    forms = {MASK: "" if job.form.masks == "ids" else job.form.masks, OVERLAY: "", CONFIDENCE: "confidence"}
    made_of = {
        each.name + end: hashlib.sha256(f"{job.model}{forms[end]}".encode() + b"\0" + data).hexdigest()
        for end in ends_of(job.form)
    }
    before = held(job.output, [key for key in made_of if key in job.there])
    digest = hashlib.sha256(data).hexdigest()
    if all(key in before and seal_of(before[key], each.address) == made_of[key] for key in made_of):
        return _prediction(job, each, digest, classes_in(before[each.name + MASK], job.class_values), before=True)
    return _Opened(each, digest, made_of, before, job.decode(data))


def _write(job: _Job, opened: _Opened) -> Prediction:
    each, planes = opened.image, opened.planes
    assert planes is not None
    files = encoded(job.form, job.class_values, job.colors, opened.array, planes)
    write_results(job.output, {each.name + end: file for end, file in files.items()}, opened.before, each.address, opened.made_of)
    return _prediction(job, each, opened.sha256, planes[0], before=False)


def _prediction(job: _Job, image: Input, sha256: str, classes: codec.UInt8, *, before: bool) -> Prediction:
    mask, overlay, confidence = (
        job.output.url(image.name + end) if end in ends_of(job.form) else None for end in (MASK, OVERLAY, CONFIDENCE)
    )
    assert mask is not None
    pixels: list[int] = np.bincount(classes.ravel(), minlength=len(job.class_values)).tolist()
    height, width = classes.shape
    return Prediction(mask, overlay, confidence, before, image.address, sha256, height, width, pixels)


def _write_list(
    job: _Job, class_names: Sequence[str], made_with: Mapping[str, Any], results: Iterable[Prediction | str]
) -> Predicted:
    """Writes the list of what a call has predicted."""
    done, faults = list[Prediction](), list[str]()
    for result in results:
        faults.append(result) if isinstance(result, str) else done.append(result)
    found = Predicted(sorted(done), sorted(faults))
    facts = {
        **made_with,
        "masks": job.form.masks,
        "classes": class_names,
        "colors": job.colors,
        "class_values": job.class_values.tolist(),
        "num_images": len(found.done),
        "faults": found.faults,
    }
    write_list(job.output, facts, found.done)
    return found


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

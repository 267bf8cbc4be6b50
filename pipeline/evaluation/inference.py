"""Loads a checkpoint's network and predicts the classes of an image."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ccnet import CCNet, build_ccnet
from ccnet.inference import predict_classes
from ccnet.layers import use_onednn
from pipeline.checkpoints import checkpoint
from pipeline.checkpoints.files import MANIFEST
from pipeline.checkpoints.retention import ranked, survey
from pipeline.config.base import NAME
from pipeline.config.config import Config
from pipeline.config.evaluate import Evaluate
from pipeline.config.run_key import changed_settings, shaping
from pipeline.data.manifest import Manifest
from pipeline.delivery.predictor import weights_of
from pipeline.delivery.record import RECORD, WEIGHTS, ModelRecord
from pipeline.errors import CheckpointError, ConfigError
from pipeline.evaluation.protocol import WHOLE_IMAGE, window_and_stride
from pipeline.fault_tolerance.failures import OutOfMemory, is_out_of_memory
from pipeline.images.codec import UInt8
from pipeline.storage.store import open_store
from pipeline.tracking import registry
from pipeline.tracking.client import tracking_uri

logger = logging.getLogger(__name__)

RUN_KEY = f"{NAME}-[0-9a-f]{{8}}"


def predict_image(
    net: CCNet,
    image: UInt8,
    size: tuple[int, ...],
    device: torch.device,
    options: Evaluate,
    predict: Callable[..., torch.Tensor] = predict_classes,
) -> torch.Tensor:
    """Classes uint8[1, H, W] at `size` (height, width) of an image uint8[h, w, 3], or what another function of ccnet gives.

    `options` set the window, the scales and the flip. Raises ccnet's ScoresNotFinite.
    """
    window, stride = window_and_stride(options)
    height, width = size
    return predict(
        net, as_batch(image, device), (height, width), window=window, stride=stride, scales=options.scales, flip=options.flip
    )


def placed(net: CCNet, device: torch.device) -> CCNet:
    """The network on the device of a task, which has one thread where there is a task for each core."""
    if device.type == "cpu":
        use_onednn(net)
    return net.to(device)


@contextmanager
def fits_into_memory(what: str, options: Evaluate) -> Iterator[None]:
    """Wraps the prediction of an image: raises OutOfMemory, which names the image and the fix, if there is no memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or is_out_of_memory(error)):
            raise
        # Training validates whole images, whatever evaluate.window is.
        fix = "" if options is WHOLE_IMAGE else "lower evaluate.window or " if options.window else "set evaluate.window=769, or "
        raise OutOfMemory(f"{what} does not fit into memory: {fix}lower evaluate.scale ({error})") from error


def as_batch(image: UInt8, device: torch.device) -> torch.Tensor:
    """uint8[1, 3, h, w] on the device from uint8[h, w, 3]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].to(device)  # [1, 3, h, w]


def load_network(config: Config, manifest: Manifest) -> tuple[CCNet, checkpoint.Checkpoint]:
    """The network of `evaluate.checkpoint`, or of the best checkpoint of this configuration's run, on the CPU.

    It runs at `evaluate.recurrence` if that is set, otherwise at the R of its training. Raises CheckpointError when there is no
    checkpoint, when it holds other weights than MLflow recorded, or when it was trained for other classes; ModelError.
    """
    found = _find(config)
    model = found.progress["model"]
    trained, wanted = model["recurrence"], config.evaluate.recurrence
    if wanted is None and trained != config.model.recurrence:
        here = config.model.recurrence
        logger.warning("%s: runs at R = %d, as trained; evaluate.recurrence=%d runs it at %d", found.url, trained, here, here)
    classes = found.progress["class_names"]
    if tuple(classes) != manifest.class_names:
        raise CheckpointError(
            f"{found.url}: trained for the {len(classes)} classes {', '.join(classes[:3])}, ...; data set {manifest.name} has "
            f"{len(manifest.class_names)}: {', '.join(manifest.class_names[:3])}, ..."
        )
    net = build_ccnet(**model | {"recurrence": trained if wanted is None else wanted})
    checkpoint.restore(found, net)
    return net, found


def _find(config: Config) -> checkpoint.Checkpoint:
    reference = config.evaluate.checkpoint
    if reference and "/" in reference and not reference.startswith("models:/"):
        return _load(config, reference)
    if reference is None or re.fullmatch(RUN_KEY, reference):
        return _best(config, reference or config.run_key)
    recorded = registry.find_checkpoint(tracking_uri(config.tracking), reference)
    found = _load(config, recorded.url)
    if found.sha256 != recorded.sha256:
        raise CheckpointError(
            f"{found.url}: holds other weights (sha256 {found.sha256[:16]}) than those that MLflow recorded for {reference} "
            f"({recorded.sha256[:16]}): put those back, or set evaluate.checkpoint={found.url} to use what is there now"
        )
    return found


def _best(config: Config, run_key: str) -> checkpoint.Checkpoint:
    """The best checkpoint of a run."""
    store = open_store(f"{config.runs_url}/{run_key}", config.storage)
    best = checkpoint.load_best(store)
    if best is None:
        lines = _runs_named(config)
        others = ["runs of this name, for evaluate.checkpoint=KEY, each with the settings that differ:", *lines]
        text = f"{store.url('')}: no checkpoint with a score; run jobs.train first, or set evaluate.checkpoint"
        raise CheckpointError("\n".join([text, *(others if lines else [])]))
    return best


def _runs_named(config: Config) -> list[str]:
    """The run key, the best score and the settings that differ, of each run of the configuration's name that has a checkpoint."""
    folder = open_store(config.runs_url, config.storage)
    keys = {key.partition("/")[0] for key in folder.list()}
    lines = []
    for key in sorted(key for key in keys if re.fullmatch(RUN_KEY, key) and key.rpartition("-")[0] == config.name):
        records = survey(folder.join(key)).records
        for step in ranked(records)[:1]:
            recorded = records[step].get("config", {})
            changed = changed_settings(shaping(recorded), shaping(config.record())) if recorded else []
            lines.append(f"  {key}  step {step}  mIoU {checkpoint.miou(records[step]):.4f}  {'; '.join(changed)}".rstrip())
    return lines


def _load(config: Config, url: str) -> checkpoint.Checkpoint:
    """A checkpoint, or that of which a delivered model was made, from the folder of either."""
    folder = open_store(url.rstrip("/"), config.storage)
    if folder.exists(RECORD):
        record = ModelRecord.from_json(folder.read(RECORD), url)
        facts = {"step": record.score["step"], "metrics": record.score, "protocol": record.score["protocol"]}
        progress = facts | {"model": record.network, "class_names": record.class_names, **_training(record.origin)}
        weights = weights_of(record, folder.read(WEIGHTS), url)
        return checkpoint.Checkpoint(folder.root, record.origin["checkpoint_sha256"], progress, weights, {}, {})
    parent, slash, name = url.rstrip("/").rpartition("/")
    store = open_store(parent + slash, config.storage) if name else None
    if store is None or not store.exists(f"{name}/{MANIFEST}"):
        raise CheckpointError(
            f"evaluate.checkpoint = {url}: no checkpoint, which is a folder step-NUMBER with a {MANIFEST}, and no delivered "
            f"model, which has a {RECORD}: the checkpoints of this configuration's run are in {config.runs_url}/{config.run_key}"
        )
    return checkpoint.load(store, name, with_optimizer=False)


def _training(origin: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its training, as far as a delivered model knows it: of `config` what shapes the model."""
    known = {"run_id": origin["mlflow_run"], "environment": origin["environment"]}
    if settings := origin.get("settings"):
        known["config"] = settings | {"model": settings["model"] | {"weights": origin["start_weights"]}}
    return known


def known_split(config: Config, manifest: Manifest) -> str:
    """`evaluate.split`. Raises ConfigError when the data set has no such split."""
    split = config.evaluate.split
    if not manifest.num_images(split):
        raise ConfigError([f"evaluate.split = {split!r}: {config.data.name} has {', '.join(manifest.splits)}"])
    return split

"""Exports a checkpoint as an ONNX file into storage. The file is checked before delivery and has a record next to it."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from ccnet.export import SIZES, ExportError, Size, check_onnx, export_onnx
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.config.config import Config
from pipeline.data.manifest import open_data
from pipeline.errors import ConfigError, ExportFailed, StorageError
from pipeline.evaluation.inference import load_network
from pipeline.storage.probe import check
from pipeline.storage.store import Store, open_store
from pipeline.tracking.provenance import environment


class Exported(NamedTuple):
    """Addresses and properties of an exported file."""

    url: str
    record_url: str
    """JSON: checkpoint, classes, colours, opset, differences, sha256."""
    num_bytes: int
    opset: int
    differences: dict[Size, float]
    """(batch, height, width) -> largest difference between onnxruntime and torch (see ccnet.export.check_onnx)."""


def export(config: Config) -> Exported:
    """Exports the network of `evaluate.checkpoint`, or of the run's best checkpoint, to `export.output`. Joins no cluster.

    Only an earlier export and its record are replaced, and only after the new one has passed the check. Raises ConfigError for an
    address that is no .onnx file and where another file lies, CheckpointError when there is no network, ExportFailed when a
    package is missing or the file and the network disagree, StorageError when the store lost bytes.
    """
    manifest = open_data(config)
    output, name = _address(config)
    check(output, "export.output" if config.export.output else "storage.path")
    _refuse_foreign(output, name)
    net, found = load_network(config, manifest)
    crop: Size = (1, *config.data.crop_size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.onnx")
        try:
            opset = export_onnx(net, path, result=config.export.result, class_names=manifest.class_names)
            differences = check_onnx(path, net, [crop, *SIZES])
        except ExportError as error:
            raise ExportFailed(f"nothing was delivered: {error}") from error
        data = path.read_bytes()
    record = {
        "file": output.url(f"{name}.onnx"),
        "sha256": hashlib.sha256(data).hexdigest(),
        "result": config.export.result,
        "opset": opset,
        "recurrence": net.head.recurrence,
        "align_corners": net.align_corners,
        "class_names": manifest.class_names,
        "colors": manifest.colors,
        "checkpoint": _origin(found),
        "largest_difference": max(differences.values()),
        "checked": [{"batch": b, "height": h, "width": w, "difference": d} for (b, h, w), d in differences.items()],
        "made_by": environment(),
    }
    # The record first: an export that is interrupted between the two is known as such by the next one.
    _deliver(output, f"{name}.json", json.dumps(record, indent=1).encode())
    _deliver(output, f"{name}.onnx", data)
    return Exported(output.url(f"{name}.onnx"), output.url(f"{name}.json"), len(data), opset, differences)


def _address(config: Config) -> tuple[Store, str]:
    """The folder that takes the file, and the file's name without .onnx."""
    url = config.export.output or f"{config.storage.path}/exports/{config.run_key}-{config.export.result}.onnx"
    folder, slash, name = url.rpartition("/")
    if not name.endswith(".onnx") or folder[-1:] in ("", "/"):
        raise ConfigError([f"export.output = {url!r}: must be a .onnx file in a folder or bucket (try {url}/{config.name}.onnx)"])
    return open_store(folder + slash, config.storage), name.removesuffix(".onnx")


def _refuse_foreign(output: Store, name: str) -> None:
    """Raises ConfigError if a file would be replaced that is no record of an export, or not the file of the record beside it."""
    held = {key: output.read(key) for key in (f"{name}.json", f"{name}.onnx") if output.exists(key)}
    record = _record(held.get(f"{name}.json", b"{}"))
    for key, data in held.items():
        digest = record.get("sha256")
        if digest is None or (key.endswith(".onnx") and hashlib.sha256(data).hexdigest() != digest):
            fix = "move it, or choose another export.output"
            raise ConfigError([f"{output.url(key)} was not replaced: it is no export, or was changed since: {fix}"])


def _record(data: bytes) -> dict[str, Any]:
    """The record of an export; empty if the JSON file is anything else."""
    try:
        tree = json.loads(data)
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) and {"file", "sha256", "opset", "checkpoint"} <= tree.keys() else {}


def _origin(found: Checkpoint) -> dict[str, Any]:
    """The record of the checkpoint: its mIoU, what speaks against it, and its protocol and recurrence (law 8)."""
    progress = found.progress
    return {
        "url": found.url,
        "sha256": found.sha256,
        "step": found.step,
        "recurrence": progress["model"]["recurrence"],
        "miou": progress["metrics"].get("miou"),
        "caveat": progress["metrics"].get("caveat"),
        "protocol": progress["protocol"],
    }


def _deliver(store: Store, key: str, data: bytes) -> None:
    store.write(key, data)
    if held := store.difference(key, hashlib.sha256(data).hexdigest(), len(data)):
        raise StorageError(f"{store.url(key)}: {len(data)} bytes were written but the store holds {held}")

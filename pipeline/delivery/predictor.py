"""Loads a model folder and predicts with it. Needs torch, safetensors and OpenCV; no Ray, no configuration, no data set."""

import hashlib
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from ccnet.inference import predict_classes, predict_confidence, predict_logits
from ccnet.model import CCNet, build_ccnet
from pipeline.delivery.address import read_folder
from pipeline.delivery.record import RECORD, WEIGHTS, ModelRecord
from pipeline.errors import ModelError
from pipeline.images import codec, resize

UInt8 = npt.NDArray[np.uint8]
Image = str | Path | bytes | UInt8


class Model:
    """A trained network with its classes, ready to predict. `load` makes one."""

    def __init__(self, net: CCNet, record: ModelRecord, device: torch.device) -> None:
        self.net = net.eval().to(device)
        self.record = record
        self.device = device

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; a mask holds their numbers from 0."""
        return tuple(self.record.class_names)

    @property
    def colors(self) -> tuple[tuple[int, int, int], ...]:
        """(r, g, b) of each class."""
        return tuple((r, g, b) for r, g, b in self.record.colors)

    @overload
    def predict(self, images: Image) -> UInt8: ...
    @overload
    def predict(self, images: list[Image]) -> list[UInt8]: ...
    def predict(self, images: Image | list[Image]) -> UInt8 | list[UInt8]:
        """Masks uint8[H, W] at the image's size, value = number of the class; a list for a list.

        An image is a file or the bytes of one, turned upright as viewers show it, or an array uint8[H, W, 3] in RGB. It is
        predicted as jobs.predict does with the configuration of the training: scale, window, scales and flip are those of
        `record.inference`. Raises ValueError, which names the file, for an image that cannot be read or has no pixels.
        """
        return [self._classes(image) for image in images] if isinstance(images, list) else self._classes(images)

    def scores(self, image: Image) -> npt.NDArray[np.float32]:
        """Class scores float32[K, H, W] of one image at its size, without soft-max."""
        scaled, size, options = self._inputs(image)
        scores = predict_logits(self.net, scaled, size=size, **options)[0]  # type: ignore[arg-type]
        found: npt.NDArray[np.float32] = scores.float().cpu().numpy()
        return found

    def confidence(self, image: Image) -> tuple[UInt8, UInt8]:
        """The mask of one image, and uint8[H, W]: 255 times the probability of each pixel's class, rounded.

        The probability is the soft-max of `scores`.
        """
        scaled, size, options = self._inputs(image)
        mask, confidence = predict_confidence(self.net, scaled, size, **options)[0].cpu().numpy()  # type: ignore[arg-type]
        return mask, confidence

    def _classes(self, image: Image) -> UInt8:
        scaled, size, options = self._inputs(image)
        mask: UInt8 = predict_classes(self.net, scaled, size, **options)[0].cpu().numpy()  # type: ignore[arg-type]
        return mask

    def _inputs(self, image: Image) -> tuple[torch.Tensor, tuple[int, int], dict[str, object]]:
        """uint8[1, 3, h, w] as the network sees it, the size (H, W) of the result, and how it is predicted."""
        pixels = image if isinstance(image, np.ndarray) else _read(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise ValueError(f"an image is uint8[H, W, 3] in RGB, found {pixels.dtype}{list(pixels.shape)}")
        inference = self.record.inference
        scaled = np.ascontiguousarray(resize.resize_image(pixels, inference["scale"]))
        window, stride = (inference[name] and tuple(inference[name]) for name in ("window", "stride"))
        options = {"window": window, "stride": stride, "scales": tuple(inference["scales"]), "flip": inference["flip"]}
        batch = torch.from_numpy(scaled).permute(2, 0, 1)[None].to(self.device)
        return batch, (pixels.shape[0], pixels.shape[1]), options


def load(address: str | Path, device: str | torch.device | None = None) -> Model:
    """The model of a folder, an `s3://` prefix, `models:/NAME@ALIAS`, or an MLflow run id; on a GPU if there is one.

    Raises ModelError, which names the address and the fix, when there is no model or its weights are not those of its record.
    """
    files, place, checkpoint = read_folder(str(address))
    record = ModelRecord.from_json(files[RECORD], place)
    if checkpoint and record.origin["checkpoint_sha256"] != checkpoint:
        raise ModelError(
            f"{address}: {place} holds another checkpoint of this run since, of step {record.score['step']}: load that folder to "
            "use it, or run jobs.predict with evaluate.checkpoint for the one of this address"
        )
    net = build_ccnet(**record.network)
    net.load_state_dict(weights_of(record, files[WEIGHTS], place))
    return Model(net, record, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))


def weights_of(record: ModelRecord, data: bytes, place: str) -> dict[str, torch.Tensor]:
    """The weights in the bytes of their file. Raises ModelError unless it is the file that the record names."""
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise ModelError(f"{place}: {WEIGHTS} is not the file that {RECORD} names: copy the folder again, whole")
    return safetensors.torch.load(data)


def _read(image: str | Path | bytes) -> UInt8:
    if isinstance(image, bytes):
        return codec.checked_upright(image)
    try:
        return codec.checked_upright(Path(image).read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{image}: {reason}") from error

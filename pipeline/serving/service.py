"""What a replica answers: masks of images, what the model is, whether it lives, and a page to try it."""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from ray import serve
from ray.serve import metrics

from ccnet.inference import ScoresNotFinite
from pipeline.delivery.predictor import Model
from pipeline.evaluation.figures import overlay
from pipeline.fault_tolerance.failures import is_out_of_memory
from pipeline.formatting import show_own_lines
from pipeline.images import codec
from pipeline.images.files import read_header
from pipeline.serving.current import CurrentModel
from pipeline.serving.guard import LARGEST_IMAGE, Guard
from pipeline.serving.page import PAGE, POLICY

ONGOING, QUEUED = 4, 32
"""Requests that a replica holds at once, so that one is decoded while another is predicted; requests that wait for a replica."""

app = FastAPI(title="CCNet", docs_url=None, redoc_url=None)  # those pages load scripts from elsewhere
app.add_middleware(Guard)


class Refused(Exception):
    """A request that has no result."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@app.exception_handler(Refused)
async def refused(request: Request, error: Refused) -> JSONResponse:
    """The reason as `{"error": ...}`."""
    return JSONResponse({"error": str(error)}, error.status)


def _encoded(image: codec.UInt8, mask: codec.UInt8, colors: Sequence[tuple[int, int, int]] | None) -> bytes:
    """PNG of the mask, or with colours of the image under them.

    It stands above the class because `serve.ingress` pickles the methods with what is defined by then.
    """
    return codec.encode_png(mask if colors is None else overlay(image, mask, colors))


@serve.deployment(name="segmentation", max_ongoing_requests=ONGOING, max_queued_requests=QUEUED)
@serve.ingress(app)
class Segmentation:
    """One copy of the model. Images pass it one after another, so no mask depends on what else is asked for meanwhile."""

    def __init__(self, model: str, max_pixels: int = LARGEST_IMAGE, tracking_uri: str | None = None) -> None:
        if tracking_uri:
            os.environ.setdefault("MLFLOW_TRACKING_URI", tracking_uri)
        show_own_lines()
        logging.getLogger("pipeline").addHandler(logging.StreamHandler(sys.__stderr__))  # Serve sends sys.stderr to its log files
        self._address, self._max_pixels = model, max_pixels
        self._current = CurrentModel(model)
        self._current.model.predict(np.zeros((64, 64, 3), np.uint8))  # the first image takes seconds longer than the others
        self._network = ThreadPoolExecutor(1, "network")
        self._pixels = metrics.Counter("ccnet_serve_pixels", "Pixels of predicted images")
        self._seconds = metrics.Histogram("ccnet_serve_network_seconds", "Seconds of an image in the network",
                                          [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30])  # fmt: skip

    def check_health(self) -> None:
        """Called by Serve, which replaces a replica whose device has failed."""
        torch.zeros(1, device=self._current.model.device).item()

    @app.get("/", response_class=HTMLResponse)
    def page(self) -> HTMLResponse:
        """The page to drop an image on."""
        return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY})

    @app.get("/healthz")
    def health(self) -> dict[str, str]:
        """200 while a replica can answer."""
        return {"status": "ok"}

    @app.get("/model")
    def model(self) -> dict[str, Any]:
        """What predicts: address, hash of the weights, score, classes and colours."""
        record = self._current.model.record
        score = {key: record.score[key] for key in ("miou", "class_iou", "split", "num_images", "step")}
        return {
            "address": self._address,
            "weights_sha256": record.sha256,
            "checkpoint_sha256": record.origin["checkpoint_sha256"],
            "mlflow_run": record.origin["mlflow_run"],
            "since": self._current.since,
            "max_pixels": self._max_pixels,
            "score": score,
            "classes": record.class_names,
            "colors": record.colors,
        }

    @app.post("/predict", response_class=Response)
    async def predict(self, request: Request, result: Literal["mask", "overlay"] = "mask") -> Response:
        """PNG of the image in the body: uint8[H, W] numbers of the classes from 0, or the image with their colours over it.

        400 for what is no image, 413 for one that is too large, each with the reason.
        """
        data = await request.body()
        model = self._current.model  # the same for the whole request
        image = await asyncio.to_thread(self._decoded, data)
        mask = await asyncio.get_running_loop().run_in_executor(self._network, self._mask, model, image)
        colors = model.colors if result == "overlay" else None
        png = await asyncio.to_thread(_encoded, image, mask, colors)
        return Response(png, media_type="image/png", headers={"X-Weights-SHA256": model.record.sha256})

    def _decoded(self, data: bytes) -> codec.UInt8:
        """uint8[H, W, 3] upright. Raises Refused."""
        try:
            header = read_header(data)  # before it is decoded: a small file can hold a picture that fills the memory
            if header.width * header.height > self._max_pixels:
                size = f"{header.width} x {header.height} pixels"
                raise Refused(413, f"{size}: at most {self._max_pixels} are predicted: cut the image into tiles")
            return codec.checked_upright(data)
        except ValueError as error:
            raise Refused(400, str(error)) from error

    def _mask(self, model: Model, image: codec.UInt8) -> codec.UInt8:
        """uint8[H, W] classes. Raises Refused for an image that does not fit into memory, or has no finite scores."""
        started = time.monotonic()
        try:
            mask = model.predict(image)
        except ScoresNotFinite as error:
            raise Refused(500, str(error)) from error
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, MemoryError) or is_out_of_memory(error)):
                raise
            size = f"{image.shape[1]} x {image.shape[0]} pixels"
            raise Refused(413, f"{size} do not fit into memory: cut the image into tiles") from error
        self._seconds.observe(time.monotonic() - started)
        self._pixels.inc(mask.size)
        return mask


def application(options: dict[str, Any]) -> serve.Application:
    """For `serve deploy` and KubeRay's RayService: `import_path: pipeline.serving.service:application`, `args: {model: ...}`.

    `options` are those of `Segmentation`. The limits of `guard` are environment variables there.
    """
    return Segmentation.bind(**options)  # type: ignore[attr-defined, no-any-return]

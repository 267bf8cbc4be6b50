"""The protocol of a score: how its images were predicted and counted, recorded with every number (law 8)."""

from typing import Any

from ccnet.scheme import published_stride
from pipeline.config.config import Config
from pipeline.config.evaluate import Evaluate
from pipeline.data.manifest import Manifest
from pipeline.evaluation.metrics import BOUNDARY_RATIO

WHOLE_IMAGE = Evaluate()
"""Inference of training's validation, whatever `config.evaluate` says: whole image, one scale, not mirrored."""
INTERVAL: dict[str, Any] = {"level": 0.95, "num_resamples": 1000, "seed": 0}


def window_and_stride(options: Evaluate) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """Window and stride, both as (height, width); None for whole images."""
    if options.window is None:
        return None, None
    return options.window, published_stride(options.window)


def validation_protocol(config: Config, manifest: Manifest, split: str = "val") -> dict[str, Any]:
    """The protocol of a score of training's validation (law 8). Callers that know the checkpoint add its hash."""
    return {
        "data": config.data.name,
        "data_fingerprint": manifest.fingerprint,
        "split_fingerprint": manifest.split_fingerprint(split),
        "split": split,
        "resolution": "labels at native resolution",
        "image_scale": config.evaluate.scale,
        **inference_settings(WHOLE_IMAGE),
        # Not the number: networks of different R must have the same protocol to be compared by their validation.
        "recurrence": "as trained",
        "classes_averaged": "those that occur in label or prediction",
        "boundary_dilation_ratio": BOUNDARY_RATIO,
        "num_images": manifest.num_images(split),
    }


def inference_settings(options: Evaluate) -> dict[str, Any]:
    window, stride = window_and_stride(options)
    return {
        "inference": "sliding window" if window else "whole image",
        "window": window and list(window),
        "stride": stride and list(stride),
        "scales": list(options.scales),
        "flip": options.flip,
    }

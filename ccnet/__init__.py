"""CCNet: criss-cross attention for semantic segmentation, in plain torch.

    net = ccnet.build_ccnet(backbone="resnet101", num_classes=19, recurrence=2)
    output = net(image)                                              # image uint8[B, 3, H, W] RGB -> .logits, .aux_logits
    total, count = ccnet.losses.cross_entropy(output.logits, label)  # label uint8[B, H, W], 255 = ignored
    loss = ccnet.losses.mean(total, count)                           # total and count summed over all workers
    classes = ccnet.inference.predict_classes(net, image)            # uint8[B, H, W]
    ccnet.ConfusionMatrix(19).update(classes, label)

train_step runs one training step, alone or as one of several workers. weights reads published checkpoints, export writes ONNX
files, attention_maps shows what a pixel attends to.

    model = ccnet.load("outputs/models/NAME-0123abcd")               # what jobs.train delivered
    mask = model.predict("image.jpg")                                # uint8[H, W], at the image's size
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ccnet import export, inference, losses, weights
from ccnet.attention import CrissCrossAttention, CrissCrossAttention3d
from ccnet.bootstrap import bootstrap_interval
from ccnet.boundary_iou import BoundaryIoU
from ccnet.ema import Average
from ccnet.layers import FrozenBatchNorm2d, SampleDropout2d, SyncedBatchNorm2d, freeze_batch_norm, synchronise_batch_norm
from ccnet.maps import attention_maps
from ccnet.metrics import ConfusionMatrix
from ccnet.model import CCNet, Output, RCCAHead, build_ccnet
from ccnet.optim import build_optimizer, poly_learning_rate
from ccnet.step import StepResult, evaluate_step, train_step

if TYPE_CHECKING:
    from pipeline.delivery.predictor import Model

__all__ = [
    "Average",
    "BoundaryIoU",
    "CCNet",
    "ConfusionMatrix",
    "CrissCrossAttention",
    "CrissCrossAttention3d",
    "FrozenBatchNorm2d",
    "Output",
    "RCCAHead",
    "SampleDropout2d",
    "StepResult",
    "SyncedBatchNorm2d",
    "attention_maps",
    "bootstrap_interval",
    "build_ccnet",
    "build_optimizer",
    "evaluate_step",
    "export",
    "freeze_batch_norm",
    "inference",
    "load",
    "losses",
    "poly_learning_rate",
    "synchronise_batch_norm",
    "train_step",
    "weights",
]


def load(address: str | Path, device: str | None = None) -> "Model":
    """A trained model with `.predict(image)`, `.scores(image)` and `.classes`: see `pipeline.delivery.predictor.load`.

    `address` is a folder that jobs.train delivered, an `s3://` prefix, `models:/NAME@ALIAS` or an MLflow run id. Raises
    pipeline.errors.ModelError, which names the address and the fix. This is the one place where the library uses the pipeline,
    whose work it is to read files, buckets and registries.
    """
    from pipeline.delivery.predictor import load

    return load(address, device)

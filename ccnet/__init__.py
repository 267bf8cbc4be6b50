"""CCNet: criss-cross attention for semantic segmentation, in plain torch."""

from ccnet import export, inference, losses, weights
from ccnet.attention import CrissCrossAttention, CrissCrossAttention3d
from ccnet.bootstrap import bootstrap_interval
from ccnet.boundary import BoundaryIoU
from ccnet.layers import SampleDropout2d, SyncedBatchNorm2d, synchronise_batch_norm
from ccnet.maps import attention_maps
from ccnet.metrics import ConfusionMatrix
from ccnet.model import CCNet, Output, RCCAHead, build_ccnet
from ccnet.optim import build_optimizer, poly_learning_rate
from ccnet.step import evaluate_step, train_step

__all__ = [
    "BoundaryIoU",
    "CCNet",
    "ConfusionMatrix",
    "CrissCrossAttention",
    "CrissCrossAttention3d",
    "Output",
    "RCCAHead",
    "SampleDropout2d",
    "SyncedBatchNorm2d",
    "attention_maps",
    "bootstrap_interval",
    "build_ccnet",
    "build_optimizer",
    "evaluate_step",
    "export",
    "inference",
    "losses",
    "poly_learning_rate",
    "synchronise_batch_norm",
    "train_step",
    "weights",
]

"""CCNet: criss-cross attention for semantic segmentation, in plain torch."""

from ccnet import inference, losses
from ccnet.attention import CrissCrossAttention
from ccnet.layers import SampleDropout2d, SyncedBatchNorm2d, synchronise_batch_norm
from ccnet.metrics import ConfusionMatrix
from ccnet.model import CCNet, Output, RCCAHead, build_ccnet
from ccnet.optim import build_optimizer, poly_learning_rate
from ccnet.step import evaluate_step, train_step

__all__ = [
    "CCNet",
    "ConfusionMatrix",
    "CrissCrossAttention",
    "Output",
    "RCCAHead",
    "SampleDropout2d",
    "SyncedBatchNorm2d",
    "build_ccnet",
    "build_optimizer",
    "evaluate_step",
    "inference",
    "losses",
    "poly_learning_rate",
    "synchronise_batch_norm",
    "train_step",
]

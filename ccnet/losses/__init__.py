"""Segmentation losses as (sum, count), so that workers add both up and divide once."""

from ccnet.losses.consistency import category_consistent
from ccnet.losses.cross_entropy import cross_entropy
from ccnet.losses.objective import PUBLISHED, Objective, Term, mean
from ccnet.losses.ohem import Ohem, ohem_cross_entropy
from ccnet.losses.overlap import dice, lovasz_softmax
from ccnet.resizing import resize_label, resize_logits

__all__ = [
    "PUBLISHED",
    "Objective",
    "Ohem",
    "Term",
    "category_consistent",
    "cross_entropy",
    "dice",
    "lovasz_softmax",
    "mean",
    "ohem_cross_entropy",
    "resize_label",
    "resize_logits",
]

"""Writes the best checkpoint of a run as a model folder."""

import hashlib
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch

from pipeline.delivery.card import model_card
from pipeline.delivery.record import CARD, RECORD, WEIGHTS, ModelRecord
from pipeline.storage.store import Store

LICENCE = (
    "The weights learned from {data}{start}: check whether their licences allow what you plan before you pass the model on. The "
    "program is under the MIT licence."
)


def deliver(store: Store, weights: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> str:
    """Writes weights, record and card to the store, the record last, and returns the folder's address.

    `facts` are the fields of `ModelRecord` without `licence` and `sha256`. A folder that holds this model already is not touched.
    """
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in weights.items()})
    start = facts["origin"].get("start_weights")
    licence = LICENCE.format(data=f"the data set {facts['origin']['data']}", start=f" and from {start}" if start else "")
    record = ModelRecord(**facts, licence=licence, sha256=hashlib.sha256(data).hexdigest())
    text, address = record.to_json().encode(), store.url("").rstrip("/")
    if not (store.exists(RECORD) and store.read(RECORD) == text):
        store.write(WEIGHTS, data)
        store.write(CARD, model_card(record, address).encode())
        store.write(RECORD, text)
    return address

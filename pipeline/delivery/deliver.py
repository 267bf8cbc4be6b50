"""Writes the best checkpoint of a run as a model folder."""

import hashlib
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import safetensors.torch
import torch

from pipeline.delivery.card import model_card
from pipeline.delivery.record import CARD, RECORD, WEIGHTS, ModelRecord
from pipeline.errors import ModelError
from pipeline.storage.store import Store

logger = logging.getLogger(__name__)

LICENCE = (
    "The weights learned from {data}{start}: check whether their licences allow what you plan before you pass the model on. The "
    "program is under the MIT licence."
)


class ModelFolder(NamedTuple):
    """A model as it was delivered."""

    address: str
    files: Mapping[str, bytes]
    """Name -> content, without what others have put there or edited."""

    @property
    def card(self) -> str:
        return self.files[CARD].decode()


def deliver(store: Store, weights: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> ModelFolder:
    """Writes weights, record and card to the store, the record last.

    `facts` are the fields of `ModelRecord` without `licence` and `sha256`. A folder that holds this model already is not touched,
    and a card that somebody has edited is kept.
    """
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in weights.items()})
    start = facts["origin"].get("start_weights")
    licence = LICENCE.format(data=f"the data set {facts['origin']['data']}", start=f" and from {start}" if start else "")
    record = ModelRecord(**facts, licence=licence, sha256=hashlib.sha256(data).hexdigest())
    text, address = record.to_json().encode(), store.url("").rstrip("/")
    card = model_card(record, address)
    if not (store.exists(RECORD) and store.read(RECORD) == text):
        kept = _is_edited(store, address, card)
        store.write(WEIGHTS, data)
        if kept:
            logger.warning("%s: was edited and is kept: its score is that of an earlier checkpoint", store.url(CARD))
        else:
            store.write(CARD, card.encode())
        store.write(RECORD, text)
    return ModelFolder(address, {WEIGHTS: data, CARD: card.encode(), RECORD: text})


def _is_edited(store: Store, address: str, card: str) -> bool:
    """Whether the folder has a card that is neither that of its record nor `card`, which a torn delivery may have left."""
    if not store.exists(CARD) or not store.exists(RECORD):
        return False
    try:
        written = model_card(ModelRecord.from_json(store.read(RECORD), address), address)
    except ModelError:  # of another version, or damaged
        return True
    return store.read(CARD).decode(errors="replace") not in (written, card)

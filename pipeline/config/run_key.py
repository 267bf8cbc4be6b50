"""Which settings shape the trained model: what a run key stands for, and what a resumed run may not change."""

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_jsonable_python

from pipeline.config.base import Section
from pipeline.config.data import Data
from pipeline.config.model import Loss, Model
from pipeline.config.train import Train

NOT_SHAPING = {
    "data": ("block_bytes", "cpus_per_task", "source", "lists", "packed", "shard_rows", "max_skipped", "stall_s"),
    "train": ("workers", "cpus_per_worker", "log_every", "keep_checkpoints", "max_failures", "resume", "validate_every"),
}
"""Settings that leave the trained model as it is, bit for bit or up to the order of floating-point sums. What earlier versions
recorded stays here: their checkpoints are compared as well (`max_failures`)."""
UNKNOWN = object()
FREE_KEYS = {"data.oversample"}
"""Settings that are dictionaries of the user's own keys: one more key is another value, not a setting of a later version."""


def shaping(record: dict[str, Any]) -> dict[str, Any]:
    """Of all settings, as a run records them, those that shape the trained model."""
    kept = {name: record[name] for name in ("seed", "data", "model", "train", "loss")}
    for name, settings in NOT_SHAPING.items():
        kept[name] = {key: value for key, value in kept[name].items() if key not in settings}
    side = kept["data"]["crop_size"]
    kept["data"]["crop_size"] = [side, side] if isinstance(side, int) else side
    return kept


def _default(section: str, name: str) -> Any:
    """The default of a section's setting as records have it; UNKNOWN of settings within settings, and of those without one."""
    sections: dict[str, type[Section]] = {"data": Data, "model": Model, "train": Train, "loss": Loss}
    field = sections[section].model_fields.get(name) if section in sections else None
    if field is None or field.is_required():
        return UNKNOWN
    return to_jsonable_python(field.get_default(call_default_factory=True))


def changed_settings(recorded: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`train.global_batch was 8 and is 16` for each setting that differs between two nested records.

    A setting that was not recorded has been added since, with a default that leaves earlier runs as they are, and counts as such.
    """
    found = []
    for name in current.keys() - recorded.keys():
        default = _default(prefix.rstrip("."), name)
        if default is not UNKNOWN and current[name] != default:
            found.append(f"{prefix}{name} was {default!r} and is {current[name]!r}")
    for name, was in recorded.items():
        key = f"{prefix}{name}"
        if name not in current:
            found.append(f"{key} was {was!r} and is no setting any more")
        elif isinstance(was, Mapping) and isinstance(current[name], Mapping) and key not in FREE_KEYS:
            found += changed_settings(was, current[name], f"{key}.")
        elif was != current[name]:
            found.append(f"{key} was {was!r} and is {current[name]!r}")
    return found

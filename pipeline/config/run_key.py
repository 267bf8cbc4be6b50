"""The settings that shape the trained model: the run key is a hash of them, and a resumed run may not change them."""

from collections.abc import Mapping
from typing import Any

NOT_SHAPING = {
    "data": (
        "block_bytes",
        "cpus_per_task",
        "source",
        "lists",
        "label_suffix",
        "val_fraction",
        "packed",
        "shard_rows",
        "max_skipped",
        "stall_s",
    ),
    "train": (
        "workers",
        "cpus_per_worker",
        "threads",
        "log_every",
        "keep_checkpoints",
        "resume",
        "validate_every",
        "checkpoint_every",
    ),
}
"""Settings that do not change the trained model: it stays equal bit for bit, or up to the order of floating-point sums."""
ADDED: dict[str, dict[str, Any]] = {
    "data": {"classes": None, "augment": None},
    "model": {"gamma_init": 0.0, "align_corners": None},
    "train": {"min_lr": 0.0},
}
"""Settings that shape the model and came after the first release: at the value that stands for what was done before them, they
are left out, so that older runs keep their key and can be resumed."""
FREE_KEYS = {"data.oversample"}
"""Settings that are dictionaries with keys that the user chooses; they are compared as a whole."""


SECTIONS = ("data", "model", "train", "loss")
"""Sections whose settings shape the model; the seed does too."""


def shapes(key: str) -> bool:
    """Whether a dotted setting shapes the trained model."""
    section, _, setting = key.partition(".")
    return key == "seed" or (section in SECTIONS and setting.partition(".")[0] not in NOT_SHAPING.get(section, ()))


def shaping(record: dict[str, Any]) -> dict[str, Any]:
    """The settings that shape the trained model, out of all settings that a run records."""
    kept = {name: record[name] for name in ("seed", *SECTIONS)}
    for name, settings in NOT_SHAPING.items():
        kept[name] = {key: value for key, value in kept[name].items() if key not in settings}
    for name, added in ADDED.items():
        kept[name] = {key: value for key, value in kept[name].items() if key not in added or value != added[key]}
    side = kept["data"]["crop_size"]
    kept["data"]["crop_size"] = [side, side] if isinstance(side, int) else side  # older records may hold one number
    return kept


def changed_settings(recorded: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`train.global_batch was 8 and is 16` for each setting that differs between two nested records."""
    found = []
    for name in [*recorded, *(name for name in current if name not in recorded)]:
        key, was, now = f"{prefix}{name}", recorded.get(name), current.get(name)
        if isinstance(was, Mapping) and isinstance(now, Mapping) and key not in FREE_KEYS:
            found += changed_settings(was, now, f"{key}.")
        elif was != now:
            found.append(f"{key} was {was!r} and is {now!r}")
    return found

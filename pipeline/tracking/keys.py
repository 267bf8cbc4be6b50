"""Names in MLflow: legal on every server and distinct, for names in any script."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

LONGEST = 250
"""MLflow's limit for a key, in characters."""
CLASS_LONGEST = 200
"""Longest key of a class, to which `val/iou/` or the like is added."""


def legal_key(name: str, longest: int = LONGEST) -> str:
    """The name itself where every MLflow server takes it as a key; else a cleaned one that ends in a hash of the name.

    MLflow takes letters and digits of any script, `_ - . /` and blanks (a colon on some platforms only), and no key that changes
    when it is read as a path. The hash keeps names distinct that are equal once they are cleaned.
    """
    clean = re.sub(r"[^\w\-. /]", "_", unicodedata.normalize("NFC", name)).strip()
    clean = "/".join("_" if part in ("", ".", "..") else part for part in clean.split("/"))
    return name if clean == name and len(name) <= longest else _with_hash(clean, name, longest)


def class_keys(names: Sequence[str]) -> list[str]:
    """One key for each class name, all distinct, also in a database that ignores case and accents.

    The first of such similar names keeps its key, each later one gets a hash.
    """
    seen: set[str] = set()
    keys = []
    for name in names:
        key = legal_key(name, CLASS_LONGEST)
        keys.append(_with_hash(key, name, CLASS_LONGEST) if _folded(key) in seen else key)
        seen.add(_folded(key))
    return keys


def _folded(key: str) -> str:
    letters = unicodedata.normalize("NFKD", key)
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).casefold()


def _with_hash(key: str, name: str, longest: int) -> str:
    digest = hashlib.sha256(name.encode(errors="backslashreplace")).hexdigest()[:8]
    return f"{key[: longest - 9]}-{digest}"

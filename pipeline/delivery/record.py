"""What a model folder holds beside the weights: model.json."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import ModelError

RECORD = "model.json"
"""Written last: a folder without it is no model."""
WEIGHTS = "model.safetensors"
CARD = "README.md"
FORMAT, VERSION = "ccnet-model", 1


@dataclass(frozen=True)
class ModelRecord:
    """Everything that prediction needs besides the weights, and where the model comes from."""

    name: str
    """Run key of the training."""
    network: dict[str, Any]
    """Arguments of `ccnet.build_ccnet`."""
    class_names: list[str]
    colors: list[list[int]]
    """(r, g, b) of each class."""
    inference: dict[str, Any]
    """How images are predicted: `scale` before the network, `window` and `stride` (height, width) or null, `scales`,
    `flip`.

    The score was measured on whole images at `scale`: its `protocol` says so.
    """
    score: dict[str, Any]
    """`miou`, `class_iou`, `step`, `split`, `num_images`, `protocol`, and `caveat`, which belongs beside the mIoU or is empty."""
    origin: dict[str, Any]
    """Data set and its fingerprint, MLflow run, checkpoint, start weights, commit and versions, and `settings`: those that shape
    the model, but for `model.weights`, which is the start weights. A model that an earlier version delivered lacks them."""
    licence: str
    sha256: str
    """Of the weights' file."""
    version: int = VERSION

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, address: str) -> "ModelRecord":
        """Raises ModelError, which names the address, for anything but a record of this version."""
        try:
            tree = json.loads(text)
            if not isinstance(tree, dict) or tree.pop("format", None) != FORMAT:
                raise ValueError("it is not the record of a model")
            if tree["version"] > VERSION:
                raise ModelError(f"{address}: written by a later version of this package: install that one (pip install -U)")
            return cls(**tree)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{address}: {RECORD} cannot be read ({error}): copy the folder again, whole") from None

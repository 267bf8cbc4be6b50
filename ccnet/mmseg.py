"""What a checkpoint of mmsegmentation tells about its training, besides its weights."""

import re
from pathlib import Path

import torch

PUBLISHED_NAME = re.compile(r"ccnet_r\d+-d8_(\d+x\d+)_\d+k_(cityscapes|ade20k|voc12aug)_\d{8}_\d{6}-[0-9a-f]{8}\.pth")
SETTING = re.compile(r"""align_corners['"]?\s*[=:]\s*(True|False)""")


def trained_align_corners(path: Path | str) -> bool | None:
    """`align_corners` of the training of a CCNet of mmsegmentation, from the file's own config or its published name.

    A file written by mmsegmentation holds its config as text, as meta.config (0.x) or meta.cfg (1.x). Of the 16 published CCNets
    those for crops of 769 x 769 have True and the 12 others False (configs/ccnet of mmsegmentation 1.2.2). None if neither tells.
    The file is one that `read_state` has read.
    """
    content = {} if Path(path).suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    meta = content.get("meta") if isinstance(content, dict) else None
    texts = [str(meta.get(key, "")) for key in ("config", "cfg")] if isinstance(meta, dict) else []
    said = {value == "True" for text in texts for value in SETTING.findall(text)}
    if not said and (name := PUBLISHED_NAME.fullmatch(Path(path).name)):
        said = {name[1] == "769x769"}
    return said.pop() if len(said) == 1 else None

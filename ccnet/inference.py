"""From images to class maps, within bounded memory."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# Rows of full-resolution scores alive at once: 150 classes at 2048 pixels make 79 MB of float32, where a whole image is 1.3 GB.
ROWS_PER_TILE = 64


def predict_classes(net: nn.Module, image: Shaped[Tensor, "B 3 h w"], size: tuple[int, int]) -> UInt8[Tensor, "B H W"]:
    """Class of every pixel at `size` (height, width): arg max of the logits resized as in training.

    `image` is uint8[B, 3, h, w] RGB, of any size; the net is put into evaluation mode. ValueError for a net wrapped in
    DistributedDataParallel, whose forward is a collective even in evaluation: workers with unequal shares would hang.
    """
    if isinstance(net, DistributedDataParallel):
        raise ValueError("net is wrapped in DistributedDataParallel: pass net.module, its forward would wait for all workers")
    net.eval()
    with torch.no_grad():
        logits = net(image).logits
        return torch.stack([_resized_argmax(one, size) for one in logits])  # [B, H, W]


def _resized_argmax(logits: Float[Tensor, "K h w"], size: tuple[int, int]) -> UInt8[Tensor, "H W"]:
    """`resize_logits` and arg max in one, a tile of rows at a time: bilinear resizing works along each axis separately."""
    height, (new_height, new_width) = logits.shape[1], size
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    wide = F.interpolate(logits[None], size=(height, new_width), mode="bilinear", align_corners=True)[0]  # [K, h, W]
    step = (height - 1) / (new_height - 1) if new_height > 1 else 0.0
    tiles = []
    for rows in torch.split(torch.arange(new_height, device=logits.device), ROWS_PER_TILE):
        position = rows.to(wide.dtype) * step
        above = position.long().clamp(max=height - 1)
        below = (above + 1).clamp(max=height - 1)
        weight = (position - above)[None, :, None]  # [1, rows, 1]
        tiles.append(torch.lerp(wide[:, above], wide[:, below], weight).argmax(0).to(torch.uint8))  # [rows, W]
    return torch.cat(tiles)  # [H, W]

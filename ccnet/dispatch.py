"""Decides what computes the criss-cross operator: the Triton kernels of `ccnet.kernels`, or batched matrix products."""

import importlib
import importlib.util
import logging
import os
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

SWITCH = "CCNET_KERNELS"
LEAST_CAPABILITY = (8, 0)
"""Below it Triton has no tensor cores: the kernels compile, but each thread keeps 4 to 9 KB of registers in memory."""
SHARED_MEMORY = 96 * 1024
"""Bytes of shared memory in a block that the largest launch needs; a test compiles the kernels and compares."""
TYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def kernels(x: Tensor) -> ModuleType | None:
    """`ccnet.kernels` if they compute the operator for arrays of x's device and dtype, else None: batched products do.

    The answer holds for the process: CCNET_KERNELS is read once for each device and dtype. Raises ValueError if it is set to
    anything but `off`.
    """
    return _kernels(x.device, x.dtype) if x.device.type == "cuda" else None


def reason_against(
    capability: tuple[int, int], shared_memory: int, dtype: torch.dtype, *, triton: bool = True, switch: str | None = None
) -> str | None:
    """Why the kernels cannot compute the operator, or None if they can.

    `capability` and `shared_memory` are the GPU's compute capability and the most bytes of shared memory that a block may ask
    for; `triton` tells whether Triton is installed, `switch` is the value of CCNET_KERNELS. Raises ValueError for a wrong value.
    """
    if switch not in (None, "", "off"):
        raise ValueError(f"{SWITCH}={switch}: must be `off`, or not set")
    if switch == "off":
        return f"{SWITCH}=off"
    if not triton:
        return "Triton is not installed"
    if capability < LEAST_CAPABILITY:
        return f"the kernels need compute capability {_dotted(LEAST_CAPABILITY)}, this GPU has {_dotted(capability)}"
    if dtype not in TYPES:
        return f"the kernels do not know {dtype}"
    if shared_memory < SHARED_MEMORY:
        return f"the kernels need {SHARED_MEMORY} bytes of shared memory in a block, this GPU has {shared_memory}"
    return None


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


@cache
def _kernels(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """The answer for a GPU; logged once. Imported by name, because the import needs Triton."""
    gpu = torch.cuda.get_device_properties(device)
    shared_memory = getattr(gpu, "shared_memory_per_block_optin", gpu.shared_memory_per_block)  # AMD's have no opt-in
    triton, switch = importlib.util.find_spec("triton") is not None, os.environ.get(SWITCH)
    reason = reason_against((gpu.major, gpu.minor), shared_memory, dtype, triton=triton, switch=switch)
    chosen = "Triton kernels" if reason is None else f"batched matrix products, because {reason}"
    logger.info("criss-cross attention on %s in %s: %s", gpu.name, str(dtype).removeprefix("torch."), chosen)
    return importlib.import_module("ccnet.kernels") if reason is None else None

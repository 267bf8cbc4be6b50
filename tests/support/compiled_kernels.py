"""Compiles the kernels of `ccnet.kernels` for GPUs that need not be there; prints what each uses as a table.

    python -m tests.support.compiled_kernels [CAPABILITY ...] [--dtype DTYPE ...] [--size H W] [--only PART-OF-A-NAME]

The launches of a forward and a backward pass are intercepted and only compiled, by Triton and its own ptxas.
"""

import argparse
import importlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

SHARED_MEMORY = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 120: 99}
"""Compute capability -> KiB of shared memory that a block may ask for (CUDA C programming guide, compute capabilities)."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SIZES = {"bfloat16": ((97, 97), (129, 129)), "float16": ((97, 97), (129, 129)), "float32": ((97, 97),)}
"""Maps whose lines fit one tile, and maps of longer lines. The published crop of 769 pixels gives 97 x 97, 1024 give 129."""


class Compiled(NamedTuple):
    """One kernel, compiled for one GPU, one type and one direction."""

    capability: int
    dtype: str
    map: str
    kernel: str
    direction: str
    stages: int
    registers: int
    """Registers of a thread."""
    spilled: int
    """Bytes of a thread's registers that are kept in memory."""
    shared: int
    """Bytes of shared memory of a block."""
    waits: str
    """For each loop and its end: the number of loads that may still be on their way when it waits."""


def compiled(capability: int, dtype: str, size: tuple[int, int], only: str = "") -> Iterator[Compiled]:
    """Figures of each launch of a forward and a backward pass with 64 and 512 channels."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction, create_function_from_signature

    kernels = importlib.import_module("ccnet.kernels")
    target = GPUTarget("cuda", capability, 32)
    backend = triton.compiler.make_backend(target)
    launches: list[tuple[Any, Any, dict[str, Any]]] = []

    def catch(self: Any, *args: Any, grid: object, warmup: bool, **kwargs: Any) -> None:
        kwargs |= {"debug": False, "instrumentation_mode": ""}
        bound, specialization, options = create_function_from_signature(self.signature, self.params, backend)(*args, **kwargs)
        options, signature, constants, attributes = self._pack_args(backend, kwargs, bound, specialization, options)
        launches.append((triton.compiler.ASTSource(self, signature, constants, attributes), options, kwargs))

    JITFunction.run = catch
    query, key, value, grad = (torch.empty(1, *size, width, dtype=DTYPES[dtype]) for width in (64, 64, 512, 512))
    _, norms = kernels.forward(query, key, value)
    kernels.backward(grad, query, key, value, norms)
    for source, options, flags in launches:
        if only not in source.fn.__name__:
            continue
        built = triton.compile(source, target=target, options=options.__dict__)
        name = source.fn.__name__ + (" transposed" if flags.get("TRANSPOSED") else "")
        waits = re.findall(r"cp\.async\.wait_group\s+(\d+)", built.asm["ptx"])
        registers, spilled = _resources(built.asm["cubin"])
        yield Compiled(
            capability, dtype, f"{size[0]} x {size[1]}", name, "row" if flags["ROW"] else "column", options.num_stages, registers,
            spilled, built.metadata.shared, " ".join(waits),
        )  # fmt: skip


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of the stack, of a thread."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [Path(knobs.nvidia.cuobjdump.path), "-res-usage", file.name]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", found).groups()
    return int(registers), int(stack)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capabilities", nargs="*", type=int, default=[80, 86, 89, 90, 120])
    parser.add_argument("--dtype", nargs="*", choices=DTYPES, default=["bfloat16", "float32"])
    parser.add_argument("--only", default="", help="a part of a kernel's name")
    parser.add_argument("--size", nargs=2, type=int, help="height and width of the map")
    given = parser.parse_args()
    os.environ["TRITON_INTERPRET"] = "0"  # triton reads it at its first import
    print("| " + " | ".join(Compiled._fields) + " |\n|" + " --- |" * len(Compiled._fields))
    for capability in given.capabilities:
        for dtype in given.dtype:
            for size in [given.size] if given.size else SIZES[dtype]:
                for figure in compiled(capability, dtype, tuple(size), given.only):
                    print("| " + " | ".join(map(str, figure)) + " |", flush=True)


if __name__ == "__main__":
    main()

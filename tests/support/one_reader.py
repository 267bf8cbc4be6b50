"""Three CPU workers load a checkpoint that only the first one can reach.

python -m tests.support.one_reader STORE STEP FOLDER; each worker writes what it got, or its error, to FOLDER/RANK.
"""

import multiprocessing
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.errors import StorageError
from pipeline.storage.store import Store
from pipeline.training.shared_load import load_once

NUM_WORKERS = 3


def text(found: Checkpoint) -> str:
    """Everything in a checkpoint, bit for bit; safetensors gives the tensors in any order."""
    parts = [found.model, found.optimizer, found.average]
    shown = [
        (name, str(t.dtype), t.device.type, t.numpy().tobytes().hex(), list(t.shape))
        for part in parts
        for name, t in sorted(part.items())
    ]
    return repr([found.url, found.sha256, found.progress, shown])


def work(rank: int, store: str, step: int, folder: str) -> None:
    """The process of one worker."""
    patience = timedelta(minutes=2)  # in case another worker ends early
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=NUM_WORKERS, timeout=patience)
    mine = Store(store if rank == 0 else f"{store}-out-of-reach")
    try:
        written = text(load_once(mine, step, torch.device("cpu")))
    except StorageError as error:
        written = f"StorageError: {error}"
    Path(folder, str(rank)).write_text(written)
    dist.destroy_process_group()


if __name__ == "__main__":
    # Forked, so that torch is imported once. That is safe because no thread has started yet.
    forks = multiprocessing.get_context("fork")
    given = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    processes = [forks.Process(target=work, args=(rank, *given)) for rank in range(NUM_WORKERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in processes))

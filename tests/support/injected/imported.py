"""Writes down what a process imports: a line `title of the process: module` for each watched module.

Into the file with the process's id in the folder that CCNET_TEST_IMPORTS names. Ray names a process after what it does.
"""

import os
import sys
from pathlib import Path
from typing import Any

WATCHED = {"ccnet", "cv2", "matplotlib", "mlflow", "pipeline.training.loop", "pydantic", "ray.train", "ray.tune", "s3fs",
           "sqlalchemy", "torch", "torch._dynamo", "triton"}  # fmt: skip


def install() -> None:
    """Begins, where the folder is there."""
    folder = os.environ.get("CCNET_TEST_IMPORTS")
    if not folder or not Path(folder).is_dir():
        return
    file = Path(folder, str(os.getpid()))

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "import" and arguments[0] in WATCHED:
            title = Path("/proc/self/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            with file.open("a") as lines:
                lines.write(f"{title}\t{arguments[0]}\n")

    sys.addaudithook(note)

"""Records the imports of a process: a line with the process's title, a tab and the module, for each watched module.

The file's name is the process id, in the folder that CCNET_TEST_IMPORTS names. Ray titles a process after its task or actor.
"""

import os
import sys
from pathlib import Path
from typing import Any

WATCHED = {"ccnet", "cv2", "matplotlib", "mlflow", "pipeline.training.loop", "pydantic", "ray.train", "ray.tune", "s3fs",
           "sqlalchemy", "torch", "torch._dynamo", "triton"}  # fmt: skip


def install() -> None:
    """Starts recording if the folder exists."""
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

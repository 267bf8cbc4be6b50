"""`python -m jobs.export CONFIG.yaml [export.result=classes]`: writes an ONNX file and checks it against torch."""

import sys
from typing import TYPE_CHECKING

from jobs.cli import main

if TYPE_CHECKING:
    from pipeline.config.config import Config


def command(argv: list[str] | None = None) -> int:
    """Runs the command line."""
    return main(run, argv)


def run(config: "Config") -> int:
    """Prints the largest difference between onnxruntime and torch at each size, and the file's address."""
    from pipeline.evaluation.export import export
    from pipeline.formatting import table

    done = export(config)
    sizes = [(" x ".join(map(str, size)), f"{difference:.1e}") for size, difference in done.differences.items()]
    print(table(("batch x height x width", "largest difference to torch"), sizes))
    print(f"\nfile    {done.url}  {done.num_bytes / 1e6:.1f} MB  opset {done.opset}")
    print(f"record  {done.record_url}")
    return 0


if __name__ == "__main__":
    sys.exit(command())

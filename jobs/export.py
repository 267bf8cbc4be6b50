"""`python -m jobs.export CONFIG.yaml [export.result=classes]`: a checkpoint as an ONNX file, checked against torch."""

import sys

from jobs.cli import main
from pipeline.config.config import Config
from pipeline.evaluation.export import ExportError, export


def run(config: Config) -> int:
    """Prints where the file went and how far onnxruntime is from torch at each size; 1 when nothing was delivered."""
    try:
        done = export(config)
    except ExportError as error:
        print(f"nothing was delivered: {error}", file=sys.stderr)
        return 1
    print(f"{'batch x height x width':<24}largest difference to torch")
    for size, difference in done.differences.items():
        print(f"{' x '.join(map(str, size)):<24}{difference:.1e}")
    print(f"\nfile    {done.url}  {done.num_bytes / 1e6:.1f} MB  opset {done.opset}")
    print(f"record  {done.record_url}")
    return 0


if __name__ == "__main__":
    sys.exit(main(run))

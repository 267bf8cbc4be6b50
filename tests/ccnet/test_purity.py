"""`import ccnet` needs torch and nothing of the pipeline."""

import os
import subprocess
import sys
from pathlib import Path

FORBIDDEN = {"ray", "mlflow", "cv2", "pydantic", "fsspec", "s3fs", "onnx", "onnxscript", "onnxruntime", "matplotlib", "pipeline"}


def test_importing_ccnet_loads_neither_the_pipeline_nor_what_it_depends_on():
    code = f"import sys, ccnet; print(*{FORBIDDEN!r} & sys.modules.keys())"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    loaded = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []

"""What `import ccnet` offers and what it must not pull in."""

import os
import subprocess
import sys
from pathlib import Path

import ccnet

ROOT = Path(__file__).parents[2]


def test_public_names():
    assert ccnet.__all__ == [
        "CCNet",
        "ConfusionMatrix",
        "CrissCrossAttention",
        "Output",
        "RCCAHead",
        "SampleDropout2d",
        "SyncedBatchNorm2d",
        "build_ccnet",
        "build_optimizer",
        "evaluate_step",
        "inference",
        "losses",
        "poly_learning_rate",
        "synchronise_batch_norm",
        "train_step",
    ]
    assert all(hasattr(ccnet, name) for name in ccnet.__all__)


def test_importing_ccnet_needs_nothing_of_the_pipeline():
    code = "import sys, ccnet; print(*{'ray', 'mlflow', 'cv2', 'pydantic', 'fsspec', 'pipeline'} & sys.modules.keys())"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    loaded = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""

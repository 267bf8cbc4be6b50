"""A tiny training as users run it: its command, its configuration, its run in MLflow."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.config.config import Config
from pipeline.config.load import load

ROOT = Path(__file__).parents[2]
CONFIG = "jobs/configs/demo.yaml"
STEPS = 20
TINY = [
    "train.learning_rate=0.01",
    "train.warmup_steps=200",
    "model.zero_init_residual=true",
    "data.name=tiny", "data.crop_size=49", "data.generated={num_train: 32, num_val: 10, size: 49}", "train.global_batch=4",
    f"train.steps={STEPS}", "train.validate_every=5", "train.log_every=1", "tracking.experiment=tests",
    "tracking.register_as=tiny",
]  # fmt: skip

Command = Callable[..., subprocess.CompletedProcess[str]]


def words(verb: str, *overrides: str) -> list[str]:
    """The command line of a verb on the tiny demo."""
    module, *options = verb.split()
    return [sys.executable, "-m", f"jobs.{module}", *options, CONFIG, *TINY, *overrides]


def tiny(*overrides: str) -> Config:
    return load(ROOT / CONFIG, [*TINY, *overrides])


def only_run(client: MlflowClient, config: Config) -> Run:
    """The one MLflow run of a configuration."""
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`ccnet.run_key` = '{config.run_key}'")
    return run


def history(client: MlflowClient, run: Run, key: str) -> dict[int, float]:
    """Step -> value. Raises AssertionError if a step is repeated."""
    points = client.get_metric_history(run.info.run_id, key)
    assert len({point.step for point in points}) == len(points), f"{key}: a repeated point"
    return {point.step: point.value for point in points}

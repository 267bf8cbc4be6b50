"""A run as users see it: MLflow's pages in a real Chromium."""

import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation import figures
from pipeline.tracking import runs
from pipeline.tracking.client import connect
from pipeline.tracking.metric_log import MetricLog
from tests.pipeline.tracking.test_runs import ENVIRONMENT, settings
from tests.support import browser
from tests.support.mlflow_server import MlflowServer

NAMES, COLORS = ("field", "disc"), ((90, 140, 80), (220, 170, 60))


@pytest.mark.slow
@pytest.mark.skipif(
    not Path(browser.CHROMIUM).exists(), reason="no Chromium here (apt-get install chromium): MLflow's pages are not checked"
)
def test_pages_of_a_run_show_charts_and_panel(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    y, x = np.mgrid[:65, :65]
    truth = ((x - 30) ** 2 + (y - 35) ** 2 < 400).astype(np.uint8)
    image = figures.colorize(truth, COLORS)
    uri = mlflow_server.uri
    run_id = runs.open_mlflow_run(settings(uri, **{"tracking.experiment": "browser"}), environment=ENVIRONMENT)
    log = MetricLog(uri, run_id, tmp_path / "spool")
    for step in range(10, 301, 10):
        log.metrics({"train/loss": math.exp(-step / 100), "train/learning_rate": 0.01 * (1 - step / 301)}, step)
    for step in (100, 200, 300):
        log.metrics({"val/miou": step / 400}, step)
        log.picture("panel", step, figures.panel([(image, truth, np.roll(truth, 1200 // step, 1))] * 2, COLORS, NAMES))
    assert log.close() == 0
    experiment_id = connect(uri).get_run(run_id).info.experiment_id
    shots = browser.screenshot(uri, run_id, experiment_id, tmp_path / "shots", ("train/loss", "val/miou"))
    assert [shot.name for shot in shots] == ["charts.png", "picture.png", "runs.png"]
    assert all(shot.stat().st_size > 20_000 for shot in shots)

"""The checks before a run starts workers."""

import logging
from pathlib import Path

import pytest

from pipeline.config.load import override
from pipeline.data.prepare import prepare
from pipeline.errors import ConfigError
from pipeline.training.run import open_run
from tests.pipeline.preflight.test_run_checks import config


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.", r"ignore::FutureWarning:ray\.")
def test_a_run_starts_with_the_checks(tmp_path: Path, local_ray: None, caplog: pytest.LogCaptureFixture) -> None:
    clean = override(
        config(),
        {
            "storage.path": str(tmp_path),
            "tracking.uri": f"sqlite:///{tmp_path}/mlflow.db",
            "data.generated": {"num_train": 4, "num_val": 2, "size": 65},
        },
    )
    wrong = {"loss.class_weights": [1, 2], "train.cpus_per_worker": 1.0, "model.weights": f"{tmp_path}/no.pth"}
    prepare(clean)
    refused = override(clean, wrong | {"loss.ohem": {}})
    warnings = caplog.at_level(logging.WARNING, "pipeline.preflight.findings")
    with pytest.raises(ConfigError) as raised, warnings, open_run(refused):
        pass
    assert raised.value.mistakes == [
        "loss.class_weights has 2 values: g has 6 classes (give one for each class)",
        "train.workers = 2: 3 CPUs are needed (workers x 1 + 2 data tasks x 0.5), but the cluster has 2 "
        "(train.cpus_per_worker=0.5)",
        f"model.weights = {tmp_path}/no.pth: no such file",
    ]
    assert any(message.startswith("warning: loss.ohem.min_kept = 400000: at least all pixels") for message in caplog.messages)

"""`jobs.train`: the error names what is missing, before a worker starts."""

from pathlib import Path

import pytest

from jobs.cli import main
from jobs.train import run
from pipeline.config.load import load
from pipeline.data.prepare import prepare

CONFIG = "jobs/configs/demo.yaml"


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The command's arguments for a small data set, prepared in a folder."""
    words = [f"storage.path={tmp_path}", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", "train.steps=2"]
    words += ["data.name=tiny", "data.crop_size=33", "data.generated={num_train: 4, num_val: 2, size: 33}"]
    prepare(load(CONFIG, words))
    return words


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("storage.path=s3://bucket", "storage.endpoint=http://127.0.0.1:9"), "cannot be reached"),
        (("storage.path=s3://no-such-bucket", "storage.endpoint={endpoint}"), "bucket `no-such-bucket` does not exist"),
        (("tracking.uri=http://127.0.0.1:9",), "no MLflow server answers there"),
        (("data.name=never-made",), "run python -m jobs.prepare CONFIG first"),
    ],
)
def test_a_service_or_data_set_that_is_missing_is_named_before_a_cluster_starts(
    words: list[str],
    endpoint: str,
    credentials: None,
    overrides: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(run, [CONFIG, *words, *(override.format(endpoint=endpoint) for override in overrides)]) == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.", r"ignore::FutureWarning:ray\.")
def test_too_few_cpus_are_named_before_a_worker_starts(
    words: list[str], local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(run, [CONFIG, *words, "train.workers=20", "train.global_batch=20"]) == 1
    assert "CPUs are needed" in capsys.readouterr().err

"""`jobs.train`: the error names what is missing, before a worker starts."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.train import run
from pipeline.config.config import Config
from pipeline.config.load import load
from pipeline.data.prepare import prepare
from tests.support.disks import small_disk

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


def test_a_full_temporary_folder_is_named_before_a_cluster_starts(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "full") as full:
        monkeypatch.setattr(tempfile, "tempdir", str(full))
        assert main(run, [CONFIG, *words]) == 1
    shown = capsys.readouterr().err
    assert re.search(rf"{full}: the disk is full \(8.29 MiB needed, .* free\): free some space there, or set TMPDIR to", shown)


def test_a_disk_that_is_full_in_any_command_is_one_sentence(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def verb(config: Config) -> int:
        with Path("/dev/full").open("wb", buffering=0) as device:
            return device.write(b"a") or 0

    assert main(verb, [CONFIG, *words]) == 1
    assert re.fullmatch(
        r"\S+: the disk is full \(.* free\): free some space there, or set TMPDIR to .*\n", capsys.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.", r"ignore::FutureWarning:ray\.")
def test_too_few_cpus_are_named_before_a_worker_starts(
    words: list[str], local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(run, [CONFIG, *words, "train.workers=20", "train.global_batch=20"]) == 1
    assert "CPUs are needed" in capsys.readouterr().err


@pytest.mark.slow
def test_the_reason_of_a_failed_run_is_the_last_thing_on_the_screen_and_stands_there_once(
    words: list[str], tmp_path: Path
) -> None:
    (shard,) = tmp_path.glob("data/tiny/*/train-*.parquet")
    whole = shard.read_bytes()
    middle = len(whole) // 2
    shard.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    own = ("train.workers=1", "train.global_batch=2", "train.validate_every=2", "tracking.register_as=null")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "jobs.train", CONFIG, *words, *own]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1, done.stderr
    what, did = done.stderr.splitlines()[-2:]
    assert re.match(rf"worker 0: SampleError: {shard}: corrupt: ", what), done.stderr
    assert did == "not retried: it would repeat"
    assert done.stderr.count("corrupt: ") == done.stderr.count(did) == 1, done.stderr

"""Addresses: which are refused, and what stays as it is written."""

import pytest

from pipeline.config.base import JOB_MARK
from pipeline.config.load import load, override
from pipeline.errors import ConfigError
from tests.pipeline.config.test_load import CONFIGS, mistakes, tree


def test_a_relative_folder_in_a_submitted_job_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOB_MARK, "{}")
    (line,) = mistakes(tree(storage={"path": "outputs"}))
    assert line.startswith("storage.path = 'outputs': a relative folder of a submitted job is lost")


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ("storage.path=s3://", "has no bucket (try s3://BUCKET/PREFIX)"),
        ("storage.path=s3://b//c/", "has an empty part (try s3://b/c)"),
        ("data.source=s3://b/../c", "has a part `.` or `..`, which a bucket does not resolve (try the address without it)"),
        ("predict.output=s3:///c", "has no bucket (try s3://BUCKET/PREFIX)"),
        ("storage.path=file:///data/a", "must be s3://BUCKET/PREFIX or a folder (try /data/a)"),
        ("predict.output=S3://b/c", "must be s3://BUCKET/PREFIX or a folder (try s3://b/c)"),
        ("export.output=s3:/b/c.onnx", "must be s3://BUCKET/PREFIX or a folder (try s3://b/c.onnx)"),
        ("model.weights=https://b.s3.amazonaws.com/c", "must be s3://BUCKET/PREFIX or a folder (try s3://BUCKET/PREFIX)"),
        ("data.source=gs://b/c", "must be s3://BUCKET/PREFIX or a folder (try s3://BUCKET/PREFIX)"),
        ("predict.images=  ", "is empty (try a folder or s3://bucket/prefix, or null where the setting has a default)"),
        ("predict.images=/a\0b", "has a null character, which no address can have (try it without)"),
    ],
)
def test_an_address_that_no_bucket_has_is_refused(setting: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(CONFIGS / "demo.yaml", [setting])
    key, _, value = setting.partition("=")
    assert caught.value.mistakes == [f"{key} = {value!r}: {fault}"]


def test_an_address_is_the_same_after_every_override() -> None:
    addresses = [
        "storage.path=s3://b/c/",
        "data.source=s3://b//set//",
        "predict.images=s3://b/a[1]/",
        "predict.output=/out/a://b",
    ]
    config = load(CONFIGS / "demo.yaml", addresses)
    assert (config.storage.path, config.data.source, config.predict.images) == ("s3://b/c", "s3://b//set//", "s3://b/a[1]/")
    assert override(override(config, {"seed": 3}), {"seed": 0}) == config

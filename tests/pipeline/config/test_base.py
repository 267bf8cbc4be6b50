"""Addresses and names in MLflow: which are refused, and what stays as it is written."""

import pytest
from mlflow.utils.validation import _validate_model_name

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


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ("tracking.experiment= ", "has no visible character (write a name)"),
        ("tracking.experiment=a\nb", "contains '\\n': must be one line of text without control characters (remove it)"),
        ("tracking.experiment=\ud800", "contains '\\ud800': must be one line of text without control characters (remove it)"),
        (f"tracking.register_as={'a' * 257}", "has 257 characters: must be at most 256 (shorten it)"),
        *((f"tracking.register_as={name}", None) for name in ("a/b", "a:b", "/", ".", "..", "../a", "..a")),
    ],
)
def test_a_name_that_mlflow_refuses_is_refused_before_a_run(setting: str, fault: str | None) -> None:
    fault = (
        fault or "must have no `/` and no `:` and not begin with `..`, which MLflow refuses in a model's name (try a-b for a/b)"
    )
    with pytest.raises(ConfigError) as caught:
        load(CONFIGS / "demo.yaml", [setting])
    key, _, value = setting.partition("=")
    (mistake,) = caught.value.mistakes
    assert mistake.startswith(f"{key} = {value!r:.50}")  # long values are shown short
    assert mistake.endswith(f": {fault}")


@pytest.mark.parametrize("name", ["道路 🚗", 'it\'s "q"', "a@b", "latest", "v1", "None", "%s", "a.b", "x" * 256])
def test_any_other_name_is_taken(name: str) -> None:
    _validate_model_name(name)
    config = load(CONFIGS / "demo.yaml", [f"tracking.register_as={name}", f"tracking.experiment={name}"])
    assert (config.tracking.register_as, config.tracking.experiment) == (name, name)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("name=My run", "name = 'My run': becomes a folder and a part of run keys: use a-z, 0-9, - and _ only (try my-run)"),
        ("data.name=../x", "becomes a folder and a part of run keys: use a-z, 0-9, - and _ only (try x)"),
        ("data.name=道", "use a-z, 0-9, - and _ only (try mine)"),
        ("name=a\n", "use a-z, 0-9, - and _ only (try a)"),
        ("train.resume=../../data/tiny", "use a-z, 0-9, - and _ only (try data-tiny)"),
        ("train.resume=it's-12345678", "use a-z, 0-9, - and _ only (try it-s-12345678)"),
        ("storage.path=/data/a\nb", r"has a character that listings of buckets cannot hold, '\n'"),
        ("storage.path=s3://bucket/a\x01", r"has a character that listings of buckets cannot hold, '\x01'"),
        ("storage.path=/data/\udcff", r"has a character that listings of buckets cannot hold, '\udcff'"),
    ],
)
def test_a_name_that_could_not_be_a_key_is_refused_with_one_that_can(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(CONFIGS / "demo.yaml", [word])
    (line,) = caught.value.mistakes
    assert message in line


def test_any_printable_name_of_storage_and_experiment_is_taken_as_it_is() -> None:
    odd = "ex[1]*? {a,b}#%41+&'\"!道 "
    config = load(CONFIGS / "demo.yaml", [f"storage.path=s3://bucket/{odd}", f"tracking.experiment={odd}"])
    assert (config.runs_url, config.tracking.experiment) == (f"s3://bucket/{odd}/runs", odd)

"""Runs, checkpoints by reference and the registry, against a real MLflow server."""

import socket
import time
from pathlib import Path

import pytest
import yaml

from pipeline import errors
from pipeline.config import load
from pipeline.config.base import Tracking
from pipeline.config.config import Config
from pipeline.tracking import registry, runs
from pipeline.tracking.client import check_server, connect, tracking_uri
from pipeline.tracking.delivery import Point, send_points
from pipeline.tracking.keys import class_keys
from pipeline.tracking.provenance import environment
from tests.support.mlflow_server import MlflowServer

TREE = {
    "name": "tiny",
    "storage": {"path": "s3://ccnet"},
    "data": {"name": "toy", "layout": "generated", "crop_size": 65},
    "model": {"recurrence": 2},
    "tune": {"space": {"train.learning_rate": {"log": [0.001, 0.1]}}},
}
PROTOCOL = {"data": "toy", "split": "val", "scales": [1.0], "flip": False, "images": 48}
ENVIRONMENT = {"commit": "abc", "devices": "cpu"}


def settings(uri: str | None, **overrides: object) -> Config:
    return load.override(load.parse(TREE), {"tracking.uri": uri, **overrides})


def test_address_is_the_setting_then_the_environment_then_a_file_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(Tracking(uri="http://other:1")) == "http://other:1"
    assert tracking_uri(Tracking()) == "http://127.0.0.1:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(Tracking()) == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize("uri", ["file:/data/mlruns", "file:///data/mlruns", "/data/mlruns"])
def test_file_store_is_refused_with_the_fix(uri: str) -> None:
    with pytest.raises(errors.TrackingError, match=r"try sqlite:////data/mlruns/mlflow\.db"):
        tracking_uri(Tracking(uri=uri))


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(errors.TrackingError, match=r"ftp://x.*must start with http://"):
        tracking_uri(Tracking(uri="ftp://x"))


def test_refused_connection_is_an_error_with_address_and_fix() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(errors.TrackingError, match=rf"{uri}: no MLflow server answers.*infra\.stack up"):
            check_server(uri)


def test_hanging_server_is_an_error_within_ten_seconds() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        with pytest.raises(errors.TrackingError, match="timed out"):
            check_server(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - start < 10


@pytest.mark.parametrize("user", ["ada:secret", "ada"])
def test_user_and_password_in_the_address_of_a_server_are_refused_and_not_printed(user: str) -> None:
    with pytest.raises(errors.TrackingError, match=r"'https://mlflow:5000'.*set MLFLOW_TRACKING_USERNAME") as caught:
        tracking_uri(Tracking(uri=f"https://{user}@mlflow:5000"))
    assert "secret" not in str(caught.value)
    assert "ada" not in str(caught.value)


def test_password_of_a_database_is_not_printed() -> None:
    with pytest.raises(errors.TrackingError) as caught:
        check_server("postgresql://me:secret@127.0.0.1:1/mlflow")
    assert "secret" not in str(caught.value)
    assert "127.0.0.1:1" in str(caught.value)


def test_missing_folder_of_a_database_file_is_an_error() -> None:
    with pytest.raises(errors.TrackingError, match="folder /nowhere does not exist"):
        check_server("sqlite:////nowhere/mlflow.db")


def test_environment_names_commit_versions_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCNET_COMMIT", "0123abc")
    found = environment()
    assert found["commit"] == "0123abc"
    assert found["mlflow"].startswith("3.")
    assert set(found) == {"commit", "python", "torch", "ray", "mlflow", "opencv", "numpy", "devices", "cpus"}


def test_settings_become_dotted_text() -> None:
    assert runs.flatten({"a": {"b": 1, "c": {}}, "d": None, "e": [1, 2], "f": "x"}) == {
        "a.b": "1",
        "a.c": "{}",
        "d": "null",
        "e": "[1, 2]",
        "f": "x",
    }


@pytest.mark.slow
def test_run_is_found_again_and_keeps_its_first_parameters(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    check_server(mlflow_server.uri)
    first = settings(mlflow_server.uri)
    run_id = runs.open_mlflow_run(first, environment=ENVIRONMENT)
    runs.finish_run(mlflow_server.uri, run_id, "FAILED")
    client = connect(mlflow_server.uri)
    assert client.get_run(run_id).info.status == "FAILED"

    second = settings(mlflow_server.uri, **{"train.workers": 1})  # does not change the trained model, so the run is the same
    assert runs.open_mlflow_run(second, environment=ENVIRONMENT | {"devices": "1 x H100"}) == run_id
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.data.tags["ccnet.run_key"] == first.run_key
    assert run.data.tags["ccnet.devices"] == "1 x H100"
    assert run.data.tags["ccnet.commit"] == "abc"
    assert run.data.params["train.workers"] == "2"
    # config.yaml keeps the settings that neither shape nor describe the run.
    assert {key.partition(".")[0] for key in run.data.params} == set(runs.SECTIONS)
    latest = Path(client.download_artifacts(run_id, "config.yaml", str(tmp_path)))
    assert load.parse(yaml.safe_load(latest.read_text())) == second


@pytest.mark.slow
def test_a_run_resumed_with_other_code_keeps_its_first_commit_and_lists_the_later_ones(mlflow_server: MlflowServer) -> None:
    made = settings(mlflow_server.uri, name="longer")
    changes = ("", "step 40: commit was abc and is def", "step 80: commit was def and is abc")
    for commit, change in zip(("abc", "def", "abc"), changes, strict=True):
        run_id = runs.open_mlflow_run(made, environment=ENVIRONMENT | {"commit": commit}, other_code=change)
    tags = connect(mlflow_server.uri).get_run(run_id).data.tags
    assert tags["ccnet.commit"] == "abc"
    assert tags[runs.OTHER_CODE].splitlines() == list(changes[1:])


def test_class_names_that_mlflow_does_not_take_stay_readable_in_tags(mlflow_server: MlflowServer) -> None:
    names = ("道路", "a:b", "Road", "road", "\ud800")
    run_id = runs.open_mlflow_run(settings(mlflow_server.uri), environment={}, run_key="classes", class_names=names)
    tags = connect(mlflow_server.uri).get_run(run_id).data.tags
    named = {key.removeprefix("ccnet.class/"): name for key, name in tags.items() if key.startswith("ccnet.class/")}
    keys = class_keys(names)
    assert named == {keys[1]: "a:b", keys[3]: "road", keys[4]: "\\ud800"}
    assert keys[0] == "道路"


@pytest.mark.slow
def test_settings_that_mlflow_refuses_do_not_end_a_run(mlflow_server: MlflowServer, caplog: pytest.LogCaptureFixture) -> None:
    environment = {"devices": "x" * 9000, "bad?": "1"}
    changed = {"data.generated": {"num_train": 5}, "data.source": f"s3://bucket/{'x' * 7000}"}
    run_id = runs.open_mlflow_run(settings(mlflow_server.uri, **changed), environment=environment, run_key="long")
    run = connect(mlflow_server.uri).get_run(run_id)
    assert len(run.data.params["data.source"]) == runs.LONGEST_PARAM
    assert len(run.data.tags["ccnet.devices"]) == runs.LONGEST_TAG
    assert f"MLflow refuses ccnet.bad? among the tags of run {run_id}" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("how", ["deleted", "deleted for good"])
def test_the_run_that_follows_a_deleted_one_takes_its_points_over(
    mlflow_server: MlflowServer, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    uri, client = mlflow_server.uri, connect(mlflow_server.uri)
    earlier = runs.open_mlflow_run(settings(uri), environment={}, run_key=how)
    points = [Point("loss", float(step), 1_700_000_000_000 + step, step) for step in range(1500)]
    send_points(client, earlier, points[:1000])
    send_points(client, earlier, points[1000:])
    client.delete_run(earlier)
    run_id = runs.open_mlflow_run(settings(uri), environment={}, run_key=how)
    assert run_id != earlier
    source = earlier if how == "deleted" else "0" * 32
    for _ in range(2):
        runs.take_over(uri, source, run_id, 1200)
    history = client.get_metric_history(run_id, "loss")
    if how == "deleted":
        assert sorted((point.step, point.timestamp) for point in history) == [(p.step, p.timestamp) for p in points[:1201]]
        assert client.get_run(run_id).data.tags["ccnet.earlier_run"] == earlier
        assert f"run {run_id} has a copy of its 1201 metric points; its pictures stay there" in caplog.text
    else:
        assert not history
        assert f"MLflow has no run {source} any more, which recorded the first 1200 steps: run {run_id} gets" in caplog.text


@pytest.mark.slow
def test_trial_is_a_child_found_by_its_own_key(mlflow_server: MlflowServer) -> None:
    trial = settings(mlflow_server.uri)
    parent = runs.open_mlflow_run(trial, environment=ENVIRONMENT, run_key="search")
    children = [
        runs.open_mlflow_run(trial, environment=ENVIRONMENT, run_key=f"search/{i}", parent_run_id=parent, run_name=f"trial {i}")
        for i in (0, 1, 0)
    ]
    assert children[0] == children[2] != children[1]
    client = connect(mlflow_server.uri)
    experiment = client.get_experiment_by_name("ccnet")
    found = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {run.info.run_id for run in found} == set(children)


@pytest.mark.slow
def test_deleted_experiment_is_an_error_with_the_fix(mlflow_server: MlflowServer) -> None:
    client = connect(mlflow_server.uri)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(errors.TrackingError, match="'gone': was deleted; restore it"):
        runs.open_mlflow_run(settings(mlflow_server.uri, **{"tracking.experiment": "gone"}), environment=ENVIRONMENT)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["s3://ccnet/runs/tiny/{}", "/data/runs/tiny/{}"])
def test_best_checkpoint_is_registered_by_reference_and_found(mlflow_server: MlflowServer, checkpoint: str) -> None:
    uri = mlflow_server.uri
    name = "ccnet-s3" if checkpoint.startswith("s3") else "ccnet-local"
    run_id = runs.open_mlflow_run(settings(uri), environment=ENVIRONMENT, run_key=name)
    with pytest.raises(errors.TrackingError, match="names no checkpoint"):
        registry.find_checkpoint(uri, run_id)
    versions = []
    for step, miou in ((100, 0.5), (200, 0.7), (300, 0.6), (200, 0.7)):
        url, sha256 = checkpoint.format(step), f"{step:064d}"
        protocol = PROTOCOL | {"checkpoint": sha256}
        registry.log_best(uri, run_id, checkpoint_url=url, sha256=sha256, step=step, miou=miou, protocol=protocol)
        assert registry.find_checkpoint(uri, run_id) == (url, sha256)
        registered = {"checkpoint_url": url, "sha256": sha256, "miou": miou, "protocol": protocol}
        versions.append(registry.register(uri, run_id, name, **registered))
    assert versions == ["1", "2", "3", "2"]
    assert registry.find_checkpoint(uri, f"models:/{name}@champion").url == checkpoint.format(200)
    assert registry.find_checkpoint(uri, f"models:/{name}/3").url == checkpoint.format(300)

    half = {"checkpoint_url": checkpoint.format("half"), "sha256": "0", "miou": 0.99, "protocol": PROTOCOL | {"images": 2}}
    assert registry.register(uri, run_id, name, **half) == "4"  # another protocol: not comparable, the alias stays
    assert registry.find_checkpoint(uri, f"models:/{name}@champion").url == checkpoint.format(200)


@pytest.mark.slow
def test_no_alias_moves_to_a_score_that_recommends_nothing(mlflow_server: MlflowServer, caplog: pytest.LogCaptureFixture) -> None:
    uri, flaw = mlflow_server.uri, "its score covers 1 of 2 classes"
    run_id = runs.open_mlflow_run(settings(uri), environment=ENVIRONMENT, run_key="flaws")
    for sha256, miou, found in (("1", 1.0, flaw), ("2", float("nan"), None), ("3", 0.5, None), ("4", 1.0, flaw)):
        facts = {"checkpoint_url": f"s3://ccnet/{sha256}", "sha256": sha256, "miou": miou, "protocol": PROTOCOL}
        registry.register(uri, run_id, "flaws", **facts, flaw=found)
    assert registry.find_checkpoint(uri, "models:/flaws@champion") == ("s3://ccnet/3", "3")
    assert connect(uri).get_model_version("flaws", "1").tags["ccnet.flaw"] == flaw
    assert caplog.messages == [
        f"models:/flaws@champion is not version 1: {flaw}",
        "models:/flaws@champion is not version 2: its mIoU is not a number",
        f"models:/flaws@champion is not version 4: {flaw}",
    ]
    verdicts = [connect(uri).get_model_version("flaws", number).tags["ccnet.verdict"] for number in "134"]
    assert verdicts == [flaw, registry.PROMOTED, flaw]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../../up", "/root", "a?b#c", "道" * 256])
def test_artifacts_without_a_server_stay_beside_the_database(tmp_path: Path, name: str) -> None:
    uri = f"sqlite:///{tmp_path}/in/mlflow.db"
    (tmp_path / "in").mkdir()
    runs.open_mlflow_run(settings(uri, **{"tracking.experiment": name}), environment=ENVIRONMENT)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert len([*(tmp_path / "in" / "mlartifacts").rglob("config.yaml")]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["models:/nobody@best", "0" * 32, "models:/x"])
def test_unknown_reference_is_an_error(mlflow_server: MlflowServer, reference: str) -> None:
    with pytest.raises(errors.TrackingError, match=f"checkpoint '{reference}'"):
        registry.find_checkpoint(mlflow_server.uri, reference)


@pytest.mark.slow
def test_database_file_without_a_server_keeps_its_artifacts_next_to_it(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    check_server(uri)
    run_id = runs.open_mlflow_run(settings(uri), environment=ENVIRONMENT)
    assert (tmp_path / "mlartifacts" / "ccnet" / run_id / "artifacts" / "config.yaml").is_file()


@pytest.mark.slow
def test_a_description_is_replaced_until_somebody_edits_it(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run_id = runs.open_mlflow_run(settings(uri), environment={})

    def shown() -> str:
        return str(connect(uri).get_run(run_id).data.tags["mlflow.note.content"])

    runs.describe(uri, run_id, "mIoU 0.5")
    runs.describe(uri, run_id, "mIoU 0.6", {"search/trials": 2, "search/best_miou": float("nan")})
    assert shown() == "mIoU 0.6"
    assert connect(uri).get_run(run_id).data.metrics == {"search/trials": 2}
    connect(uri).set_tag(run_id, "mlflow.note.content", "our best so far")
    runs.describe(uri, run_id, "mIoU 0.7")
    assert shown() == "our best so far"

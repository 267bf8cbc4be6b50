"""The registry under names of any kind, and flaws of a score, against a real MLflow server."""

import pytest

from pipeline.tracking import registry, runs
from pipeline.tracking.client import connect
from tests.pipeline.tracking.test_runs import ENVIRONMENT, PROTOCOL, settings
from tests.support.mlflow_server import MlflowServer

pytestmark = pytest.mark.slow


def test_a_best_checkpoint_takes_flaw_and_model_of_the_one_before_away(mlflow_server: MlflowServer) -> None:
    uri = mlflow_server.uri
    run_id = runs.open_mlflow_run(settings(uri), environment=ENVIRONMENT, run_key="flawed")
    facts = {"checkpoint_url": "s3://ccnet/1", "sha256": "1", "step": 1, "miou": 1.0, "protocol": PROTOCOL}
    registry.log_best(uri, run_id, **facts, flaw="its score covers 1 of 2 classes", model_id="m-1")
    assert connect(uri).get_run(run_id).data.tags["ccnet.flaw"] == "its score covers 1 of 2 classes"
    registry.log_best(uri, run_id, **facts)
    assert not {"ccnet.flaw", "ccnet.model_id"} & connect(uri).get_run(run_id).data.tags.keys()


@pytest.mark.parametrize("name", ['it\'s "q"', "道路 🚗", "a@b", "latest"])
def test_a_model_of_any_name_is_registered_and_found(mlflow_server: MlflowServer, name: str) -> None:
    uri = mlflow_server.uri
    run_id = runs.open_mlflow_run(settings(uri), environment=ENVIRONMENT, run_key="names")
    facts = {"checkpoint_url": "s3://ccnet/1", "miou": 0.5, "protocol": PROTOCOL}
    assert [registry.register(uri, run_id, name, sha256=sha256, **facts) for sha256 in "112"] == ["1", "1", "2"]
    assert registry.find_checkpoint(uri, f"models:/{name}@champion").sha256 == "1"
    assert registry.find_checkpoint(uri, f"models:/{name}/2").sha256 == "2"
    connect(uri).delete_model_version(name, "1")  # and the alias with it
    registry.register(uri, run_id, name, sha256="3", **facts)
    assert registry.find_checkpoint(uri, f"models:/{name}@champion").sha256 == "2", "the first one of the same mIoU"


def test_the_same_checkpoint_with_files_takes_the_place_of_the_one_without(mlflow_server: MlflowServer) -> None:
    models = Registry(mlflow_server.uri, "files")
    assert models.add(0.5) == "1"
    experiment = models.client.get_run(models.run_id).info.experiment_id
    model = models.client.create_logged_model(experiment, name="files", source_run_id=models.run_id)
    models.client.finalize_logged_model(model.model_id, "READY")
    facts = {"checkpoint_url": "s3://ccnet/0.5", "sha256": "0.5{}", "miou": 0.5, "protocol": PROTOCOL, "model_id": model.model_id}
    assert [registry.register(models.uri, models.run_id, "files", **facts) for _ in range(2)] == ["2", "2"]
    assert models.holder() == "2"
    assert models.add(0.5) == "2", "without files, what is there is enough"


class Registry:
    """A registered model, to which versions are added by score."""

    def __init__(self, uri: str, name: str) -> None:
        self.uri, self.name, self.client = uri, name, connect(uri)
        self.run_id = runs.open_mlflow_run(settings(uri), environment=ENVIRONMENT, run_key=name)

    def add(self, miou: float, **protocol: str) -> str:
        number = f"{miou}{protocol}"
        facts = {"checkpoint_url": f"s3://ccnet/{miou}", "sha256": number, "miou": miou, "protocol": PROTOCOL | protocol}
        return registry.register(self.uri, self.run_id, self.name, **facts)

    def holder(self, alias: str = "champion") -> str:
        return str(self.client.get_model_version_by_alias(self.name, alias).version)

    def verdict(self, number: str) -> str:
        return self.client.get_model_version(self.name, number).tags["ccnet.verdict"]


def test_the_former_champion_is_the_previous_one_and_who_is_not_promoted_is_told(mlflow_server: MlflowServer) -> None:
    models = Registry(mlflow_server.uri, "former")
    assert [models.add(miou) for miou in (0.5, 0.4, 0.7)] == ["1", "2", "3"]
    assert (models.holder(), models.holder("previous")) == ("3", "1")
    assert models.verdict("2") == "its mIoU 0.4000 is not above the 0.5000 of version 1"
    models.client.set_registered_model_alias(models.name, "champion", "1")  # by hand: a deliberate step back
    assert models.add(0.7) == "3", "the same command again"
    assert models.holder() == "1"
    models.add(0.6)
    assert (models.holder(), models.holder("previous")) == ("4", "1")


def test_the_best_version_follows_a_deleted_champion(mlflow_server: MlflowServer) -> None:
    models = Registry(mlflow_server.uri, "deleted")
    for miou in (0.8, 0.9):
        models.add(miou)
    models.client.delete_model_version(models.name, "2")
    models.add(0.3)
    assert models.holder() == "1"


def test_a_champion_without_a_score_is_replaced(mlflow_server: MlflowServer) -> None:
    models = Registry(mlflow_server.uri, "by-hand")
    models.add(0.5)
    models.client.create_model_version(models.name, "s3://elsewhere/model", models.run_id)
    models.client.set_registered_model_alias(models.name, "champion", "2")
    models.add(0.4)
    assert (models.holder(), models.holder("previous")) == ("3", "2")


def test_only_the_scored_split_decides_whether_scores_can_be_compared(mlflow_server: MlflowServer) -> None:
    models = Registry(mlflow_server.uri, "split")
    models.add(0.5, data_fingerprint="a", split_fingerprint="v")
    models.add(0.6, data_fingerprint="b", split_fingerprint="v")  # other training images
    assert models.holder() == "2"
    models.add(0.9, data_fingerprint="b", split_fingerprint="w")
    assert models.holder() == "2"
    assert models.verdict("3") == "its mIoU has another protocol than that of version 2, which has the alias"


def test_a_version_that_another_driver_has_not_judged_yet_competes(mlflow_server: MlflowServer) -> None:
    """That driver was killed, or decides at the same time: the best of both gets the alias, whoever is last."""
    models = Registry(mlflow_server.uri, "race")
    models.add(0.5)
    tags = models.client.get_model_version(models.name, "1").tags | {"ccnet.miou": "0.9", "ccnet.verdict": registry.PENDING}
    models.client.create_model_version(models.name, "s3://ccnet/other", models.run_id, tags=tags)
    models.add(0.7)
    assert (models.holder(), models.holder("previous")) == ("2", "1")
    assert models.verdict("3") == "its mIoU 0.7000 is not above the 0.9000 of version 2"


def test_the_alias_of_earlier_releases_moves_too_where_it_is_used(mlflow_server: MlflowServer) -> None:
    models = Registry(mlflow_server.uri, "old")
    models.add(0.5)
    models.client.delete_registered_model_alias(models.name, "champion")
    models.client.set_registered_model_alias(models.name, "best", "1")
    models.add(0.4)
    assert models.holder("best") == "1"
    models.add(0.6)
    assert (models.holder(), models.holder("best")) == ("3", "3")

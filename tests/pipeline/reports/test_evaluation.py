"""The report of an evaluation: its page, its record, its table, and its run in MLflow."""

import csv
import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.config import Config
from pipeline.config.load import override
from pipeline.evaluation.evaluate import Evaluation, evaluate
from pipeline.evaluation.metrics import Counts, ImageScore
from pipeline.reports.evaluation import write_report
from pipeline.tracking import registry, runs
from pipeline.tracking.client import connect
from tests.support import untrained
from tests.support.mlflow_server import MlflowServer
from tests.support.untrained import IDS

NOWHERE = {"tracking.uri": "http://127.0.0.1:1"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    made = untrained.make(tmp_path_factory.mktemp("storage"), tmp_path_factory.mktemp("checkpoint"))
    return override(made, {"train.workers": 0})


@pytest.fixture(scope="module")
def evaluation(config: Config) -> Evaluation:
    return evaluate(config)


def test_each_image_has_its_counts() -> None:
    label = torch.tensor([[0, 0, 1], [1, 255, 255]], dtype=torch.uint8)[None]
    prediction = torch.tensor([[0, 1, 1], [1, 2, 0]], dtype=torch.uint8)[None]
    image = ImageScore.of("a", Counts.none(3).add(prediction, label))
    assert (image.labelled, image.wrong) == (4, 0.25)
    assert image.class_iou[:2] == pytest.approx((1 / 2, 2 / 3))
    assert np.isnan(image.class_iou[2])
    assert image.miou == pytest.approx(7 / 12)
    unlabelled = ImageScore.of("b", Counts.none(3).add(prediction, torch.full_like(label, 255)))
    assert (unlabelled.labelled, unlabelled.wrong, np.isnan(unlabelled.miou)) == (0, 0.0, True)


def test_the_images_add_up_to_the_score(evaluation: Evaluation) -> None:
    assert [image.sample_id for image in evaluation.images] == list(IDS)
    labelled = sum(image.labelled for image in evaluation.images)
    wrong = sum(image.labelled * image.wrong for image in evaluation.images)
    assert labelled == np.sum(evaluation.score.counts)
    assert wrong == pytest.approx(labelled * (1 - evaluation.score.matrix.pixel_accuracy()))


@pytest.mark.slow  # it asks a server that is not there
def test_a_report_is_written_once_and_without_mlflow_too(
    config: Config, evaluation: Evaluation, caplog: pytest.LogCaptureFixture
) -> None:
    report = write_report(override(config, NOWHERE), evaluation)
    assert report.in_mlflow is None
    assert "the evaluation could not be recorded" in caplog.text
    folder = Path(report.url).parent
    assert folder.parent == Path(config.storage.path, "evaluations")
    assert sorted(each.name for each in folder.iterdir()) == ["evaluation.json", "images.csv", "report.html"]
    record = json.loads((folder / "evaluation.json").read_text())
    assert record["miou"] == evaluation.score.miou
    assert record["score"]["counts"] == evaluation.score.counts
    rows = list(csv.DictReader(io.StringIO((folder / "images.csv").read_text())))
    assert [row["image"] for row in rows] == [image.sample_id for image in evaluation.images]
    assert [float(row["wrong"]) for row in rows] == pytest.approx([image.wrong for image in evaluation.images], abs=1e-6)
    page = (folder / "report.html").read_text()
    assert f"mIoU {evaluation.score.miou:.4f} on 10 images of val of" in page
    assert page.count("data:image/png;base64,") == 4
    assert evaluation.score.class_intervals is not None
    best = int(evaluation.score.matrix.iou().nan_to_num(-1.0).argmax())
    low, high = evaluation.score.class_intervals[best] or (0.0, 0.0)
    assert "95 % interval of the IoU" in page
    assert f"<td>{low:.4f} to {high:.4f}</td>" in page
    assert evaluation.score.calibration is not None
    assert "<td>calibration error</td><td" in page
    assert f">{evaluation.score.calibration.error():.4f}</td>" in page
    assert "http" not in page.replace(str(config.storage.path), ""), "the page needs nothing else"
    assert f"evaluate.checkpoint={evaluation.checkpoint.url} evaluate.split=val</pre>" in page
    worst = max(evaluation.images, key=lambda image: image.wrong)
    assert page.index("The worst images") < page.index(f"<td>{worst.sample_id}</td>")
    (folder / "report.html").write_text("mine")
    assert write_report(override(config, NOWHERE), evaluation).url == report.url
    assert (folder / "report.html").read_text() == "mine", "the same evaluation writes nothing"


def test_the_page_has_names_of_any_kind(config: Config, evaluation: Evaluation, tmp_path: Path) -> None:
    names = ("<script>", "道路", "a & b", *evaluation.score.class_names[3:])
    odd = evaluation._replace(score=evaluation.score._replace(class_names=names))
    made = override(config, {"storage.path": str(tmp_path), "tracking.uri": f"sqlite:///{tmp_path}/no/such.db"})
    # The data stay where they were prepared.
    (tmp_path / "data").symlink_to(Path(config.storage.path, "data"))
    page = Path(write_report(made, odd).url).read_text()
    assert "<script>" not in page
    assert all(text in page for text in ("&lt;script&gt;", "道路", "a &amp; b"))


@pytest.mark.slow
def test_mlflow_has_the_evaluation_below_its_training_once(
    config: Config, evaluation: Evaluation, mlflow_server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    made, client = override(config, {"tracking.uri": mlflow_server.uri}), connect(mlflow_server.uri)
    training = runs.open_mlflow_run(made, environment={}, run_key="trained-for-a-report")
    found = evaluation.checkpoint
    model = client.create_logged_model(client.get_run(training).info.experiment_id, name="m", source_run_id=training)
    facts = {"checkpoint_url": found.url, "sha256": found.sha256, "miou": 0.5, "protocol": {}, "model_id": model.model_id}
    registry.log_best(mlflow_server.uri, training, step=1, **facts)
    known = evaluation._replace(checkpoint=found._replace(progress=found.progress | {"run_id": training}))
    with caplog.at_level(logging.WARNING):
        first, second = write_report(made, known), write_report(made, known)
    assert (first, caplog.text) == (second, "")
    experiment = client.get_run(training).info.experiment_id
    (found_run,) = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{training}'")
    run = client.get_run(found_run.info.run_id)
    assert first.in_mlflow is not None
    assert run.info.run_id in first.in_mlflow
    assert (run.info.status, run.data.tags["ccnet.kind"]) == ("FINISHED", "evaluation")
    assert run.data.metrics["val/miou"] == evaluation.score.miou
    assert run.data.metrics["val/miou_low"] <= evaluation.score.miou <= run.data.metrics["val/miou_high"]
    assert len(client.get_metric_history(run.info.run_id, "val/miou")) == 1
    assert run.data.params["evaluate.split"] == "val"
    assert run.data.tags["mlflow.note.content"].startswith("mIoU ")
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.tags[0].value) == (config.data.name, "evaluation")
    assert [each.model_id for each in run.inputs.model_inputs] == [model.model_id]
    assert {metric.key for metric in client.get_logged_model(model.model_id).metrics} >= {"val/miou", "val/boundary_miou"}
    flipped = evaluate(override(config, {"evaluate.flip": True}))
    write_report(override(made, {"evaluate.flip": True}), flipped._replace(checkpoint=known.checkpoint))
    scores = [metric.value for metric in client.get_logged_model(model.model_id).metrics if metric.key == "val/miou"]
    assert scores == [evaluation.score.miou], "models are compared by the inference of the validation"
    assert len(client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{training}'")) == 2
    files = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert files == {"evaluation.json", "images.csv", "report.html"}


@pytest.mark.slow
def test_a_training_run_that_is_gone_leaves_the_evaluation_by_itself(
    config: Config, evaluation: Evaluation, mlflow_server: MlflowServer
) -> None:
    made, client = override(config, {"tracking.uri": mlflow_server.uri, "name": "orphan"}), connect(mlflow_server.uri)
    for run_id in ("0" * 32, runs.open_mlflow_run(made, environment={}, run_key="deleted-after-training")):
        if run_id != "0" * 32:
            client.delete_run(run_id)
        found = evaluation.checkpoint
        alone = evaluation._replace(checkpoint=found._replace(sha256=run_id * 2, progress=found.progress | {"run_id": run_id}))
        report = write_report(made, alone)
        assert report.in_mlflow is not None
        key = Path(report.url).parent.name
        experiment = client.get_experiment_by_name(made.tracking.experiment)
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id], f"tags.`ccnet.run_key` = '{key}'")
        assert "mlflow.parentRunId" not in run.data.tags

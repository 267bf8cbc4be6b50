"""What a complete training leaves: its best checkpoint as a model folder, and all of it in MLflow."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.checkpoints import checkpoint
from pipeline.config.run_key import shaping
from pipeline.delivery import pyfunc
from pipeline.delivery.deliver import ModelFolder, deliver
from pipeline.errors import CheckpointError, TrackingError
from pipeline.evaluation.charts import learning_curve
from pipeline.evaluation.metrics import Score, counted
from pipeline.evaluation.protocol import inference_settings
from pipeline.fault_tolerance import goodput
from pipeline.formatting import or_none, table
from pipeline.reports.training import log_page, write_page
from pipeline.storage.store import open_store
from pipeline.tracking import models, registry, runs
from pipeline.tracking.client import reached
from pipeline.training.checkpointing import RunRecord
from pipeline.training.metric_logs import PICTURES, confirm, open_log, send_kept
from pipeline.training.run import Run

logger = logging.getLogger(__name__)


class End(NamedTuple):
    """What a complete training leaves."""

    best: checkpoint.Checkpoint
    score: Score
    model_url: str
    spent: dict[str, float]
    """Where its time went: the metric points of its `Goodput`."""


def record_end(run: Run, reason: str | None) -> End:
    """Delivers and records the best checkpoint of a complete training, and ends its MLflow run once MLflow holds all of it.

    `reason`: why it ended before its last step, if it did. Raises TrackingError.
    """
    best, score = best_of(run)
    newest = checkpoint.newest_progress(run.checkpoints)
    spent = RunRecord.of(newest).goodput.points(run.config, run.flops) if newest else {}
    folder = deliver_best(run, best, score)
    with reached(run.tracking_uri):
        left = send_kept(run, {best.step: score.metrics()}).left  # the model's scores are among them
        recorded = record_best(run, best, score, folder)
        runs.describe(run.tracking_uri, run.run_id, description(run, best, score, recorded, spent))
        if left:
            raise TrackingError(
                f"the training is complete, but MLflow has not taken {left} of its metric points and pictures: run the same "
                "command again to send them, or python -m jobs.sync with the same configuration"
            )
        draw_curve(run)
        page = write_page(run.config, run.checkpoints, PICTURES, score, recorded, run.run_id, spent)
        log_page(run.tracking_uri, run.run_id, page)
        confirm(run)
        runs.finish_run(run.tracking_uri, run.run_id, "FINISHED", reason)
    return End(best, score, folder.address, spent)


def draw_curve(run: Run) -> None:
    """Adds the picture of loss and mIoU over the steps, as MLflow has them, to the run."""
    loss, miou = (runs.history(run.tracking_uri, run.run_id, key) for key in ("train/loss", "val/miou"))
    log = open_log(run)
    if miou:
        log.picture("learning_curve", miou[-1][0], learning_curve(loss, miou))
    log.close()


def best_of(run: Run) -> tuple[checkpoint.Checkpoint, Score]:
    """The run's best checkpoint and its score. Raises CheckpointError if none is validated by this version."""
    best = checkpoint.load_best(run.checkpoints)
    if best is None:
        raise CheckpointError(
            f"{run.checkpoints.url('')}: the run ended without a validated checkpoint: submit it again to validate it"
        )
    try:
        return best, Score(**best.progress["score"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{best.url}: its score is of another version of this program ({error}); use that version, or give the run another "
            "name (name=...)"
        ) from error


def deliver_best(run: Run, best: checkpoint.Checkpoint, score: Score, name: str | None = None) -> ModelFolder:
    """Writes the checkpoint as a model folder, `<storage.path>/models/<name>`; `name`: the run key."""
    config, name = run.config, name or run.config.run_key
    store = open_store(f"{config.models_url}/{name}", config.storage)
    facts = {
        "name": name,
        "network": best.progress["model"],
        "class_names": list(score.class_names),
        "colors": [list(color) for color in run.manifest.colors],
        "inference": {"scale": config.evaluate.scale, **inference_settings(config.evaluate)},
        "score": {
            "miou": score.miou,
            "class_iou": [or_none(iou) for iou in score.matrix.iou().tolist()],
            "step": best.step,
            "split": score.protocol["split"],
            "num_images": score.num_images,
            "caveat": score.caveat,
            "protocol": score.protocol,
        },
        "origin": {
            "data": config.data.name,
            "data_fingerprint": run.manifest.fingerprint,
            "mlflow_run": run.run_id,
            "checkpoint": best.url,
            "checkpoint_sha256": best.sha256,
            "start_weights": config.model.weights,
            "environment": best.progress.get("environment", {}),
            "settings": _without_addresses(shaping(best.progress["config"])),
        },
    }
    return deliver(store, best.weights, facts)


def _without_addresses(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that shape a model, without the only address among them, which `start_weights` is."""
    return settings | {"model": {key: value for key, value in settings["model"].items() if key != "weights"}}


def record_best(run: Run, best: checkpoint.Checkpoint, score: Score, folder: ModelFolder | None = None) -> dict[str, Any]:
    """Records the best checkpoint in the MLflow run and registers it if `tracking.register_as` is set; returns what it recorded.

    MLflow gets the checkpoint by reference, and a copy of the delivered model unless `tracking.log_model` is false.
    """
    facts = checkpoint_summary(best, score)
    if folder:
        facts |= {"model_url": folder.address, "model_id": log_model(run, best, score, folder)}
    # Before MLflow refers to it: a later attempt with a better score must not delete it.
    checkpoint.mark_kept(run.checkpoints, checkpoint.folder_name(best.step), f"the best checkpoint of MLflow run {run.run_id}")
    registry.log_best(run.tracking_uri, run.run_id, **facts)
    if run.config.tracking.register_as:
        version = {key: value for key, value in facts.items() if key != "step"} | {"card": folder.card if folder else ""}
        registry.register(run.tracking_uri, run.run_id, run.config.tracking.register_as, **version)
    return facts


def log_model(run: Run, best: checkpoint.Checkpoint, score: Score, folder: ModelFolder) -> str | None:
    """Stores a copy of the delivered model in MLflow; returns its id, None if it is not to have one or does not take it."""
    if not run.config.tracking.log_model:
        return None
    network, scores = best.progress["model"], [key for key in score.metrics() if not key.startswith("val/iou/")]
    params = {"backbone": network["backbone"], "recurrence": str(network["recurrence"]), "classes": str(len(score.class_names))}
    entry = models.Entry(Path(folder.address).name, folder.card, best.sha256, best.step, params, scores)
    try:
        return models.log_model(run.tracking_uri, run.run_id, entry, partial(pyfunc.save, files=folder.files, run_id=run.run_id))
    except TrackingError as error:
        logger.warning(
            "%s: it refers to %s, and mlflow.pyfunc cannot load it; run the same command to try again, or set "
            "tracking.log_model=false",
            error,
            folder.address,
        )
        return None


def description(
    run: Run, best: checkpoint.Checkpoint, score: Score, recorded: Mapping[str, Any], spent: Mapping[str, float]
) -> str:
    """What the page of a run says about it, in Markdown: how good its best checkpoint is, and how to use it.

    `recorded`: what `record_best` returned. `spent`: the metric points of `Goodput`.
    """
    config, caveat = run.config, f" ({score.caveat})" if score.caveat else ""
    with_mlflow = (
        f"""
# or, where this project is not installed; the masks are PNG files
from pathlib import Path
import mlflow.pyfunc
masks = mlflow.pyfunc.load_model("models:/{recorded["model_id"]}").predict({{"image": Path("image.jpg").read_bytes()}})["mask"]
"""
        if recorded["model_id"]
        else ""
    )
    # Tables as text: MLflow's page sets the cells of Markdown's without space between them.
    parts = table(goodput.HEADINGS, goodput.rows(spent))
    time = f"Goodput {goodput.summary(spent)}.\n\n```\n{parts}\n```\n\n" if spent else ""
    images = f"{counted(score.num_images)} of {score.protocol['split']} of `{config.data.name}`"
    return f"""**mIoU {score.miou:.4f}**{caveat} on {images}, step {best.step} of {config.train.steps}.
CCNet, {config.model.backbone}, R = {config.model.recurrence}.

```python
import ccnet
mask = ccnet.load({recorded["model_url"]!r}).predict("image.jpg")
{with_mlflow}```

```
{score.table()}
```

{time}Checkpoint `{best.url}`; pictures among the artifacts; `config.yaml` repeats the run.
"""


def checkpoint_summary(best: checkpoint.Checkpoint, score: Score) -> dict[str, Any]:
    """The facts about a checkpoint that MLflow records."""
    protocol = score.protocol | {"checkpoint_sha256": best.sha256}
    facts: dict[str, Any] = {"checkpoint_url": best.url, "sha256": best.sha256, "step": best.step, "miou": score.miou}
    return facts | {"protocol": protocol, "flaw": score.flaw}

"""The report of an evaluation: a page, a record, a table of its images. In the storage, and as a run in MLflow."""

import csv
import hashlib
import io
import json
import logging
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.config.config import Config
from pipeline.config.evaluate import Evaluate
from pipeline.data.manifest import data_set
from pipeline.errors import TrackingError
from pipeline.evaluation import charts, panels
from pipeline.evaluation.evaluate import Evaluation
from pipeline.evaluation.metrics import figure
from pipeline.formatting import or_none
from pipeline.images.codec import encode_png
from pipeline.reports.page import code, document, figures, headline, paragraph, picture, section, table
from pipeline.storage.store import open_store
from pipeline.tracking import evaluations
from pipeline.tracking.client import tracking_uri
from pipeline.tracking.provenance import environment
from pipeline.tracking.runs import flatten, page

logger = logging.getLogger(__name__)

FORMAT, VERSION = "ccnet-evaluation", 1
RECORD, IMAGES, PAGE = "evaluation.json", "images.csv", "report.html"
WORST = 10
"""Images that the page names."""
PARAMS = ("split", "checkpoint", "recurrence", "scale", "window", "scales", "flip")
"""Settings of `evaluate` that shape the score."""


class Report(NamedTuple):
    """Where a report lies."""

    url: str
    """Its page in the storage; the record and the table lie beside it."""
    in_mlflow: str | None
    """None if MLflow did not take it."""


def write_report(config: Config, evaluation: Evaluation) -> Report:
    """Writes the report to `<storage.path>/evaluations/<name>-<hash of its content>`, and records it in MLflow if it answers.

    The same evaluation again writes nothing.
    """
    content = _content(config, evaluation)
    # Without the confidences: they are rounded, and with another number of threads a few are rounded to the other side.
    came_out = content | {"score": content["score"] | {"confidences": None}}
    key = f"{config.name}-evaluation-{hashlib.sha256(json.dumps(came_out, sort_keys=True).encode()).hexdigest()[:8]}"
    store = open_store(f"{config.storage.path}/evaluations/{key}", config.storage)
    if store.exists(RECORD):  # the last that is written
        files = {name: store.read(name) for name in (IMAGES, PAGE, RECORD)}
    else:
        record = {"format": FORMAT, "version": VERSION, "key": key, **content, "made_by": environment()}
        files = {
            IMAGES: _table(evaluation),
            PAGE: _page(key, config, evaluation),
            RECORD: (json.dumps(record, indent=1) + "\n").encode(),
        }
        for name, data in files.items():
            store.write(name, data)
    return Report(store.url(PAGE), _recorded(config, evaluation, key, files))


def _content(config: Config, evaluation: Evaluation) -> dict[str, Any]:
    """What was evaluated and what came out: the same at each repetition."""
    score, checkpoint = evaluation.score, evaluation.checkpoint
    low, high = score.interval or (None, None)
    return {
        "checkpoint": {"url": checkpoint.url, "sha256": checkpoint.sha256, "step": checkpoint.step},
        "data": {"name": config.data.name, "fingerprint": evaluation.manifest.fingerprint, "split": score.protocol["split"]},
        "miou": score.miou,
        "interval": [low, high],
        "caveat": score.caveat,
        "class_iou": dict(zip(score.class_names, [or_none(iou) for iou in score.matrix.iou().tolist()], strict=True)),
        "score": score._asdict(),
    }


def _table(evaluation: Evaluation) -> bytes:
    """CSV: a row for each image, with the IoU of each class; empty where the class occurs neither in label nor prediction."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image", "labelled pixels", "wrong", "mIoU", *evaluation.score.class_names])
    for image in evaluation.images:
        figures = (image.wrong, image.miou, *image.class_iou)
        writer.writerow([image.sample_id, image.labelled, *("" if value != value else f"{value:.6f}" for value in figures)])
    return text.getvalue().encode(errors="backslashreplace")


def _pictures(config: Config, evaluation: Evaluation, worst: Sequence[int]) -> dict[str, bytes]:
    score = evaluation.score
    shown = panels.of_images(config, evaluation.manifest, evaluation.net, worst)
    confusion = charts.confusion_picture(score.matrix.counts.numpy(), score.class_names)
    pictures = {"The images with the largest share of wrong pixels": shown, "Which classes are taken for which": confusion}
    if score.class_intervals:
        pictures["How sure the IoU of each class is"] = charts.class_scores(
            score.matrix.iou().tolist(), score.class_intervals, score.class_names, score.level
        )
    if score.calibration:
        pictures["Whether it is right as often as it says"] = charts.reliability(
            score.calibration.bins().numpy(), score.calibration.error()
        )
    return {title: encode_png(each) for title, each in pictures.items()}


def _recorded(config: Config, evaluation: Evaluation, key: str, files: dict[str, bytes]) -> str | None:
    """The page of the evaluation's run in MLflow; None if MLflow does not take it, which a warning says."""
    score, checkpoint, split = evaluation.score, evaluation.checkpoint, evaluation.score.protocol["split"]
    metrics = {f"{split}/{name.removeprefix('val/')}": value for name, value in score.metrics().items()}
    low, high = score.interval or (float("nan"), float("nan"))
    more = {"miou_low": low, "miou_high": high, "miou_attention_off": score.attention_off_miou}
    metrics |= {f"{split}/{name}": value for name, value in more.items() if value is not None and value == value}
    params = flatten({"evaluate": {name: value for name, value in config.record()["evaluate"].items() if name in PARAMS}})
    note = f"{headline(score, config.data.name)}\n\nOf checkpoint `{checkpoint.url}`.\n\n```\n{score.table()}\n```\n"
    entry = evaluations.Entry(
        key,
        checkpoint.url,
        checkpoint.sha256,
        checkpoint.step,
        checkpoint.progress.get("run_id"),
        params,
        metrics,
        data_set(config, evaluation.manifest),
        note,
        files,
        is_of_model=_as_validated(evaluation),
    )
    try:
        return page(tracking_uri(config.tracking), evaluations.log_evaluation(config.tracking, entry))
    except TrackingError as error:
        logger.warning("%s", error)
        return None


def _as_validated(evaluation: Evaluation) -> bool:
    """Whether the images were predicted as in the validation of the training, by whose scores models are compared."""
    ours, theirs = evaluation.score.protocol, evaluation.checkpoint.progress.get("protocol", {})
    same = all(ours.get(name) == theirs.get(name) for name in ("image_scale", "window", "stride", "scales", "flip"))
    return same and ours["recurrence"] == ours["trained_recurrence"]


def _again(config: Config, evaluation: Evaluation) -> str:
    """The command that gives these figures again."""
    given, usual = config.record()["evaluate"], Evaluate().model_dump(mode="json")
    settings = {"checkpoint": evaluation.checkpoint.url, "split": given["split"]}
    settings |= {name: json.dumps(given[name]) for name in PARAMS if name not in settings and given[name] != usual[name]}
    words = [shlex.quote(f"evaluate.{name}={text}") for name, text in settings.items()]
    return " ".join(["python -m jobs.evaluate CONFIG.yaml", *words])


def _page(key: str, config: Config, evaluation: Evaluation) -> bytes:
    score, checkpoint, images = evaluation.score, evaluation.checkpoint, evaluation.images
    worst = sorted(range(len(images)), key=lambda number: -images[number].wrong)[:WORST]
    pictures = _pictures(config, evaluation, worst[: config.evaluate.panel_images])
    rows = [(each.sample_id, f"{each.wrong:.2%}", figure(each.miou)) for each in (images[number] for number in worst)]
    parts = [
        paragraph(f"Checkpoint {checkpoint.url}, step {checkpoint.step}, sha256 {checkpoint.sha256[:16]}"),
        figures(score),
        *(picture(title, png) for title, png in pictures.items()),
        section("The worst images", table(("image", "wrong", "mIoU"), rows),
                paragraph(f"All {len(images)} are in {IMAGES}, with the IoU of each class.")),
        section("Protocol", code(json.dumps(score.protocol, indent=1))),
        section("Again", code(_again(config, evaluation))),
    ]  # fmt: skip
    return document(key, headline(score, config.data.name), parts)

"""The page of a training: score, pictures, settings and the next commands, in the run's folder and in MLflow."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from pipeline.config.config import Config, without_password
from pipeline.config.settings_yaml import dump_yaml
from pipeline.evaluation.metrics import Score
from pipeline.fault_tolerance import goodput
from pipeline.reports.page import code, document, figures, headline, paragraph, picture, section, table
from pipeline.storage.store import Store
from pipeline.tracking import runs
from pipeline.tracking.delivery import refusal

logger = logging.getLogger(__name__)

PAGE = "report.html"
TITLES = {
    "learning_curve": "Loss and mIoU over the steps",
    "panel": "Images of the validation",
    "worst_images": "The images with the largest share of wrong pixels",
    "confusion_matrix": "Which classes are taken for which",
    "attention": "What a pixel attends to",
    "class_histogram": "Pixels of each class in the data",
    "training_batch": "The first training batch, as it was augmented",
}
"""Name of a picture -> its title, in the order of the page."""


def write_page(
    config: Config,
    folder: Store,
    pictures: str,
    score: Score,
    recorded: Mapping[str, Any],
    run_id: str,
    spent: Mapping[str, float],
) -> bytes:
    """Writes the page of a run into its folder, in which `pictures` is the folder of pictures. Returns the page.

    `recorded`: what MLflow has of the best checkpoint. `spent`: the metric points of its `Goodput`.

    A page of an earlier attempt is replaced. Raises StorageError.
    """
    step = f"step {recorded['step']} of {config.train.steps}"
    parts = [
        paragraph(f"CCNet with {config.model.backbone}, R = {config.model.recurrence}: the best checkpoint, of {step}."),
        figures(score),
        paragraph("The pictures below are of the newest validation, whichever step is the best."),
        *drawn(folder, pictures, TITLES),
        *([section("Where the time went", *_times(spent))] if spent else []),
        section("Where it is", table(("", ""), [
            ("model", recorded["model_url"]), ("checkpoint", recorded["checkpoint_url"]), ("MLflow run", run_id),
        ])),
        section("Use it", code("\n".join(commands(recorded)))),
        section("Settings other than the default", code(changed(config))),
        section("Protocol of the score", code(json.dumps(recorded["protocol"], indent=1))),
    ]  # fmt: skip
    page = document(config.run_key, headline(score, config.data.name), parts)
    folder.write(PAGE, page)
    return page


def log_page(uri: str, run_id: str, page: bytes) -> None:
    """Stores the page in the MLflow run. A server or proxy that does not take it, as too large, is a warning."""
    try:
        runs.log_text(uri, run_id, PAGE, page.decode())
    except Exception as error:
        if (reason := refusal(error)) is None:
            raise
        logger.warning("MLflow refuses the page of the run, which is in the run's folder: %s", reason)


def _times(spent: Mapping[str, float]) -> tuple[str, str]:
    return paragraph(f"Goodput {goodput.summary(spent)}."), table(goodput.HEADINGS, goodput.rows(spent))


def drawn(folder: Store, pictures: str, titles: Mapping[str, str]) -> list[str]:
    """The pictures that were drawn, as HTML. `pictures`: their folder in `folder`; `titles`: name -> title, in their order."""
    found = []
    for name, title in titles.items():
        try:
            found.append(picture(title, folder.read(f"{pictures}/{name}.png")))
        except FileNotFoundError:
            continue
    return found


def commands(recorded: Mapping[str, Any]) -> list[str]:
    """The lines that use the model of a page."""
    model = recorded["model_url"]
    return [
        f"mask = ccnet.load({model!r}).predict('image.jpg')",
        f"python -m jobs.predict {model} IMAGES... --out FOLDER",
        f"python -m jobs.evaluate CONFIG.yaml evaluate.checkpoint={model} evaluate.flip=true",
    ]


def changed(config: Config) -> str:
    """YAML of what the user set; a configuration with these lines is the same one, but for the password of a database."""
    tree = config.model_dump(mode="json", exclude_defaults=True)
    if config.tracking.uri:
        tree["tracking"]["uri"] = without_password(config.tracking.uri)
    return dump_yaml(tree)

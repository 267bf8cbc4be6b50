"""What a search shows: the page of its MLflow run, renewed after each stage, and the HTML page with which it ends."""

import json
from collections.abc import Mapping
from typing import Any

from pipeline.config.config import Config
from pipeline.config.load import override
from pipeline.config.settings_yaml import dump_yaml
from pipeline.config.tune import Dimension
from pipeline.evaluation.charts import search_curves, search_settings
from pipeline.evaluation.figures import Image
from pipeline.evaluation.metrics import Score
from pipeline.formatting import markdown_table, percent
from pipeline.reports.page import code, document, figures, headline, paragraph, section, table
from pipeline.reports.training import PAGE, changed, commands, drawn
from pipeline.tracking import runs
from pipeline.training.metric_logs import PICTURES, open_log
from pipeline.training.run import Run
from pipeline.tuning.journal import Trial
from pipeline.tuning.points import importances
from pipeline.tuning.progress import Progress
from pipeline.tuning.result import (
    REPRODUCE,
    Cost,
    SearchResult,
    ranked,
    reproduced,
    summary,
    trial_rows,
    trials_table,
    value_text,
)
from pipeline.tuning.trials import trial_config

TITLES = {"search": "mIoU of each trial over the steps", "search_settings": "mIoU over each setting"}
"""Name of a picture -> its title, in the order of the page."""
AGAIN = """# with the configuration of the search
python -m jobs.train CONFIG.yaml {overrides}
# or with the file among the artifacts of its MLflow run
python -m jobs.train winner.yaml"""


def first_rung_importances(progress: Progress) -> dict[str, float]:
    """`points.importances` at the first rung."""
    rung = min((*progress.plan.rungs, progress.plan.steps))
    return importances(progress.parent.config, progress.journal.points(), rung)


def show(progress: Progress) -> None:
    """Puts table, curves and figures of the search so far, and the best configuration, on the page of its MLflow run."""
    parent, plan = progress.parent, progress.plan
    uri, config, trials = parent.tracking_uri, parent.config, ranked(list(progress.journal.trials.values()))
    if not trials:
        return
    ended = [trial for trial in trials if trial.state in ("complete", "stopped", "failed", "refused")]
    best = trials[0]
    cost = Cost.of(trials, plan.steps)
    figures: dict[str, float] = {
        "search/trials": len(ended),
        "search/trained_steps": cost.steps,
        "search/saved_steps": cost.saved,
    }
    pending = sum(trial.state == "paused" for trial in trials)
    note = f"{len(ended)} of {max(plan.trials, len(trials))} trials have ended, {pending} are pending at a rung."
    if expected := progress.expected():
        note += f" {expected[0].upper()}{expected[1:]}."
    if best.miou is not None:
        figures["search/best_miou"] = best.miou
        note = f"Best mIoU **{best.miou:.4f}** {best.caveat} (trial {best.name}). {note}"
        winner = override(trial_config(config, best.overrides), {"tune.space": {}})
        runs.log_text(uri, parent.run_id, "winner.yaml", dump_yaml(winner.record()))
        note += "\n`winner.yaml` among the artifacts trains the best: `ccnet train winner.yaml`"
    # Lines that a page can wrap: wide ones push what is beside them out of it.
    note += "".join(f"\n- {line}" for line in summary(trials, plan.steps, first_rung_importances(progress)).splitlines())
    note += f"\n\n{REPRODUCE}: `{reproduced(best, config.train.threads)}`\n"
    # The table last: MLflow limits the length of a description, and trials.txt has it whole.
    note += f"\n{markdown_table(*trial_rows(trials))}\n"
    facts = {f"best.{key}": json.dumps(value) for key, value in best.overrides.items()} if best.miou is not None else {}
    runs.describe(uri, parent.run_id, note, figures, step=len(ended), facts=facts)
    runs.log_text(uri, parent.run_id, "trials.txt", trials_table(trials))
    curves = {trial.name: [(report.step, report.miou or 0.0) for report in trial.reports] for trial in trials if trial.reports}
    if curves:
        log = open_log(parent)
        log.picture("search", len(ended), search_curves(curves, plan.rungs, best.name))
        log.picture("search_settings", len(ended), _settings_picture(progress))
        log.close()


def _settings_picture(progress: Progress) -> Image:
    """What each setting did to the mIoU at the first rung, where all trials can be compared."""
    rung, space = min((*progress.plan.rungs, progress.plan.steps)), progress.parent.config.tune.space
    scored = [trial for trial in progress.journal.points() if trial.reports]
    mious = [trial.at(rung) or trial.reports[-1].miou or 0.0 for trial in scored]
    points = {
        key: [(trial.overrides[key], miou) for trial, miou in zip(scored, mious, strict=True) if key in trial.overrides]
        for key in space
    }
    points = {key: pairs for key, pairs in points.items() if pairs}
    if len({trial.gflop for trial in scored}) > 1 and all(trial.gflop for trial in scored):
        points["GFLOP of one training image"] = [*zip((trial.gflop for trial in scored), mious, strict=True)]
    notes = {key: f"  ({percent(share)})" for key, share in first_rung_importances(progress).items()}
    return search_settings(points, [key for key, dimension in space.items() if dimension.log], notes, rung)


def write_page(parent: Run, key: str, result: SearchResult, recorded: Mapping[str, Any]) -> bytes:
    """Writes the page of a search that ended into its folder, where a page of an earlier end is replaced. Returns the page.

    `recorded`: what MLflow has of the winner's checkpoint. Raises StorageError.
    """
    config, folder, winner = parent.config, parent.checkpoints, result.trials[0]
    headings, *rows = _miou_second(*trial_rows(result.trials))
    best = trial_config(config, winner.overrides)
    score = Score(**winner.score) if winner.score else result.score
    parts = [
        paragraph(
            f"CCNet with {best.model.backbone}, R = {best.model.recurrence}: the best checkpoint of trial {winner.name}, of step "
            f"{recorded['step']} of {result.steps}. Its score is that "
            f"{'of jobs.evaluate (tune.evaluate)' if winner.score else 'of its validation'}; the table has those of validations."
        ),
        *([paragraph(f"The search ended early: {result.stopped}.")] if result.stopped else []),
        section("Trials", table(headings, rows)),
        *drawn(folder, PICTURES, TITLES),
        section("Cost, and what decided", *map(paragraph, summary(result.trials, result.steps, result.importances).splitlines())),
        section("Scores of the winner", figures(score)),
        section("Space", table(("setting", "values", "winner"), _space(config, winner))),
        section("Train the winner again", code(AGAIN.format(overrides=reproduced(winner, result.threads)))),
        section("Use it", code("\n".join(commands(recorded)))),
        section("Where it is", table(("", ""), [
            ("model", recorded["model_url"]), ("checkpoint", recorded["checkpoint_url"]), ("search", folder.url("")),
            ("MLflow run", result.run_id),
        ])),
        section("Settings of the search other than the default", code(changed(config))),
        section("Protocol of the score", code(json.dumps(score.protocol, indent=1))),
    ]  # fmt: skip
    text = f"{headline(score, config.data.name)}: trial {winner.name}, the best of {len(result.trials)}"
    page = document(key, text, parts)
    folder.write(PAGE, page)
    return page


def _miou_second(headings: list[str], rows: list[list[str]]) -> list[list[str]]:
    """The table with the mIoU in the second column, whose figures a page draws as bars."""
    place = headings.index("mIoU")
    return [[row[0], row[place], *row[1:place], *row[place + 1 :]] for row in (headings, *rows)]


def _space(config: Config, winner: Trial) -> list[tuple[str, str, str]]:
    """A row for each searched setting: its name, its values, and that of the winner."""
    return [(key, _values(dimension), value_text(winner.overrides.get(key, "-"))) for key, dimension in config.tune.space.items()]


def _values(dimension: Dimension) -> str:
    """`log: 0.01 to 0.1`, `choice: 1, 2, 3`."""
    (kind,) = (name for name in ("log", "uniform", "integer", "choice", "grid") if getattr(dimension, name) is not None)
    values = (" to " if dimension.range else ", ").join(map(value_text, dimension.ends()))
    conditions = [f"{name} is {' or '.join(map(value_text, legal))}" for name, legal in dimension.when.items()]
    return f"{kind}: {values}" + (f", where {' and '.join(conditions)}" if conditions else "")

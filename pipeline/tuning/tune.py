"""Searches settings such as learning rate, crop size and R; each trial runs the same training function as `jobs.train`."""

import json
import logging
import signal
from pathlib import Path
from typing import Any, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.checkpoints import checkpoint
from pipeline.config.config import Config
from pipeline.config.load import override
from pipeline.config.settings_yaml import dump_yaml
from pipeline.errors import CheckpointError, ConfigError, RunFailed
from pipeline.evaluation.charts import search_curves, search_settings
from pipeline.evaluation.figures import Image
from pipeline.evaluation.metrics import Score
from pipeline.fault_tolerance.interruptions import StopFlag
from pipeline.formatting import markdown_table, percent
from pipeline.storage.store import open_store
from pipeline.tracking import registry, runs
from pipeline.training.best import best_of, deliver_best, record_best
from pipeline.training.metric_logs import open_log
from pipeline.training.run import Run, open_run
from pipeline.training.train import STOPPED, end_run
from pipeline.tuning.engine import Need, concurrent_trials, run_stages, shared_by
from pipeline.tuning.forecast import Forecast, measured
from pipeline.tuning.journal import Journal, Trial
from pipeline.tuning.points import export_study, importances, num_points
from pipeline.tuning.progress import Progress, open_journal, plan_of
from pipeline.tuning.result import Cost, SearchResult, ranked, reproduced, summary, trial_rows, trials_table
from pipeline.tuning.trials import trial_config, trial_store

logger = logging.getLogger(__name__)


def search(config: Config) -> SearchResult:
    """Runs `tune.trials` trials, or resumes the search of the same configuration and space; a larger number extends it.

    MLflow holds one parent run and a child for each trial. Raises ConfigError for an empty space, and LeaseError if another
    process runs this search.
    """
    if not config.tune.space:
        raise ConfigError(["tune.space: missing; name at least one setting, such as train.learning_rate: {log: [0.003, 0.1]}"])
    key = config.search_key
    with open_run(config, run_key=key) as parent:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        flag = cast(Any, StopFlag).options(scheduling_strategy=here).remote()
        try:
            result = _search(parent._replace(stop_flag=flag), key)
        except BaseException as error:
            end_run(parent, error)
            raise
        runs.finish_run(parent.tracking_uri, parent.run_id, "KILLED" if result.signal else "FINISHED", result.stopped)
    return result


def export(config: Config, path: Path) -> int:
    """Writes the trials of a search as an Optuna study into a new file; returns their number.

    Raises ConfigError if there is no such search, or if the file exists.
    """
    journal = Journal(open_store(f"{config.runs_url}/{config.search_key}", config.storage))
    if not journal.trials:
        raise ConfigError([f"{journal.store.url('')}: has no search with these settings; start it without --export"])
    export_study(config, list(journal.trials.values()), path, config.search_key)
    return len(journal.points())


def _search(parent: Run, key: str) -> SearchResult:
    progress = _opened(parent, key)
    parent = progress.parent
    signals = run_stages(progress, parent.checkpoints)
    trials = ranked(list(progress.journal.trials.values()))
    reason = STOPPED if signals else (progress.exhausted() or "" if progress.next_stage(()) else "")
    if trials and all(trial.state in ("failed", "refused") for trial in trials):
        raise RunFailed(f"all {len(trials)} trials failed; the first: {min(trials).reason}")
    # A search that was interrupted is resumed later, and has no time for a copy now.
    recording = override(parent.config, {"tracking.log_model": parent.config.tracking.log_model and not signals})
    found = _register_best(parent._replace(config=recording), key, trials)
    if found is None:
        if signals:
            raise KeyboardInterrupt if signals == [signal.SIGINT] else SystemExit(143)  # 128 + SIGTERM
        raise CheckpointError(f"{parent.config.runs_url}/{key}: no trial stored a checkpoint{f'; {reason}' if reason else ''}")
    winner, score, model_url = found
    trials.sort(key=lambda trial: trial.name != winner.name)  # the first one that stored a checkpoint
    progress.show()
    return SearchResult(
        parent.run_id,
        parent.tracking_uri,
        trials,
        parent.config.train.steps,
        score,
        model_url,
        reason,
        next(iter(signals), 0),
        _importances(progress),
        parent.config.train.threads,
    )


def _opened(parent: Run, key: str) -> Progress:
    """The search as its folder has it, or a new one."""
    journal, config, need = open_journal(parent), parent.config, Need.of(parent.config, parent.on_gpus)
    places = concurrent_trials(config, need, ray.cluster_resources())
    on_node, threads = shared_by(places, need, ray.nodes())
    # A search keeps the rule and the threads with which it began, also on a cluster of another size.
    waits = bool(journal.facts.get("rungs_wait", 2 * places <= num_points(config)))
    threads = config.train.threads or int(journal.facts.get("threads", threads))
    journal.describe(key=key, seed=config.seed, settings=config.record()["tune"], rungs_wait=waits, threads=threads)
    parent = parent._replace(config=override(config, {"train.threads": threads}))
    plan = plan_of(config, waits)
    progress = Progress(parent, key, journal, plan, _show)
    progress.show()
    done = sum(trial.state in ("complete", "stopped") for trial in journal.trials.values())
    logger.info(
        "search %s  MLflow run %s\n%d of %d trials have ended, %d at a time (each takes %s, torch threads: %d)\n"
        "compared at step%s %s",
        key, parent.run_id, done, plan.trials, places, need, threads,
        "s" if len(plan.rungs) > 1 else "", ", ".join(map(str, (*plan.rungs, plan.steps))),
    )  # fmt: skip
    if progress.next_stage(()):
        progress.forecast = _forecast(progress, need, places, on_node)
        if expected := progress.expected():
            logger.info("%s", expected)
    return progress


def _forecast(progress: Progress, need: Need, places: int, on_node: int) -> Forecast | None:
    """The forecast from what is measured now: a search may resume on another cluster."""
    speed = measured(progress.parent, need.cpus, need.in_process, on_node)
    return Forecast(progress.parent, speed, need.in_process, places) if speed else None


def _importances(progress: Progress) -> dict[str, float]:
    rung = min((*progress.plan.rungs, progress.plan.steps))
    return importances(progress.parent.config, progress.journal.points(), rung)


def _show(progress: Progress) -> None:
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
    note += "".join(f"\n- {line}" for line in summary(trials, plan.steps, _importances(progress)).splitlines())
    what, settings = reproduced(best, config.train.threads).split("\n", 1)
    note += f"\n\n{what}: `{settings}`\n"
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
    notes = {key: f"  ({percent(share)})" for key, share in _importances(progress).items()}
    return search_settings(points, [key for key, dimension in space.items() if dimension.log], notes, rung)


def _register_best(parent: Run, key: str, trials: list[Trial]) -> tuple[Trial, Score, str] | None:
    """Delivers the best checkpoint of the best trial that has one, records it in the parent's run, and registers it.

    The registered version belongs to the trial's run, whose settings trained it. Returns the trial, its score and the address of
    the model; None if no trial has a checkpoint.
    """
    for trial in trials:
        config = trial_config(parent.config, trial.overrides)
        run = parent._replace(config=config, checkpoints=trial_store(config, key, trial.name), run_id=trial.run_id)
        if trial.run_id and checkpoint.best(run.checkpoints):
            best, score = best_of(run)
            folder = deliver_best(run, best, score, key)
            registry.log_best(parent.tracking_uri, parent.run_id, **record_best(run, best, score, folder))
            return trial, score, folder.address
        logger.warning("trial %s has no checkpoint with a score that can be read", trial.name)
    return None

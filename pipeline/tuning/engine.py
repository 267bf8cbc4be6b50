"""Runs the stages of a search as trials of Ray Tune.

Tune starts the processes, and knows nothing that a search needs: each start of a search makes a new Tuner, since one that is
restored has lost its rungs (ray#30838). What to train next is asked of rungs.py, and the journal remembers.
"""

import json
import logging
import math
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import ray
from ray import tune
from ray.tune import Stopper
from ray.tune.search import Searcher

from pipeline.cluster.holders import holders
from pipeline.config.config import Config
from pipeline.fault_tolerance.interruptions import first_signal
from pipeline.formatting import resources
from pipeline.preflight.resources import cpus_needed
from pipeline.storage.store import Store
from pipeline.training.train import STOPPED
from pipeline.tuning.progress import Progress
from pipeline.tuning.rungs import Stage
from pipeline.tuning.trials import ENDED, StageProcess, trains_in_process, trial_config

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""Seconds between two looks for free CPUs and GPUs."""
SETTLE_S = 30.0
"""Longest time after the start of a stage in which its workers may not have taken their CPUs and GPUs yet."""
SAY_S = 60.0
"""Seconds between two lines about what a search waits for."""
LONGEST_WAIT_S = 60.0
"""Longest wait before a stage is tried again."""
STOP_S = 35.0
"""Seconds that a search waits for its trials after a stop was requested. A submitted job is killed after 60 s."""

QUIET = {"TUNE_DISABLE_SIGINT_HANDLER": "1", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
"""Tune's handler of Ctrl-C would kill the trials; its loggers write files that nobody reads, its table hides our lines."""


class Need(NamedTuple):
    """What one trial takes, its data included."""

    workers: int
    cpus: float
    gpus: float
    held: float
    """Of the CPUs, those that it holds from its start to its end; the tasks of the data take theirs as they need them."""
    in_process: bool
    """Its own process trains; see `trials.trains_in_process`."""

    def __str__(self) -> str:
        return resources(self.cpus, self.gpus)

    @classmethod
    def of(cls, config: Config, on_gpus: bool) -> "Need":
        config = trial_config(config, {})
        train = config.train
        if trains_in_process(config, on_gpus):  # it computes all the time, and makes its data itself
            cpus = max(1.0, train.cpus_per_worker)
            return cls(1, cpus, 0.0, cpus, in_process=True)
        workers = train.fewest_workers
        held = workers * train.cpus_per_worker
        return cls(workers, cpus_needed(config, workers), float(workers if on_gpus else 0), held, in_process=False)

    def places(self, has: dict[str, float]) -> int:
        """Number of trials for which these resources are enough."""
        by_gpu = math.floor(has.get("GPU", 0) / self.gpus + 1e-9) if self.gpus else math.inf
        return int(min(math.floor(has.get("CPU", 0) / self.cpus + 1e-9), by_gpu))


def concurrent_trials(config: Config, need: Need, has: dict[str, float]) -> int:
    """Number of trials at the same time: as many as a cluster that has this can run, at most `tune.concurrent`, at least one."""
    return int(max(1, min(config.tune.concurrent or math.inf, need.places(has))))


def shared_by(places: int, need: Need, nodes: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Number of trials that share a node if `places` run at a time, and torch threads of each worker.

    `nodes`: those of `ray.nodes()`.
    """
    cpus = [node["Resources"]["CPU"] for node in nodes if node["Alive"] and node["Resources"].get("CPU")] or [1.0]
    workers_on_node = -(-places * need.workers // len(cpus))
    return -(-places // len(cpus)), max(1, int(min(cpus) // workers_on_node))


class Stages(Searcher):
    """Gives Tune one stage after another, when there is room for it, and tells the progress how each one ends."""

    def __init__(self, progress: Progress, need: Need) -> None:
        super().__init__()
        self.progress, self.need, self.config = progress, need, progress.parent.config
        self.live: dict[str, str] = {}
        """Tune's id of a stage -> name of the trial."""
        self.after: dict[str, float] = {}
        """Name of a trial -> when it may be tried again."""
        self.stopped_at: float | None = None
        """When a stop was requested."""
        self.looked = self.said = self.began = -math.inf
        self.free_before = 0.0
        """CPUs that were free before the newest stage began."""
        self.kept = False
        """Tune keeps the process of a stage that ended, with its CPUs, for the next one."""

    def suggest(self, trial_id: str) -> Any:
        now = time.monotonic()
        if self.stopped_at is None and (reason := self.progress.exhausted()):
            logger.warning("%s", reason)
            self.stop()
        if self.stopped_at is not None:
            return None if self.live else Searcher.FINISHED
        if now - self.looked < LOOK_S:
            if not self.live:
                time.sleep(0.1)  # Tune asks again at once
            return None
        self.looked = now
        stage = self.progress.next_stage(set(self.live.values()))
        if stage is None:
            return None if self.live else Searcher.FINISHED
        if self.after.get(stage.name, now) > now or not self._room(now):
            return None
        return self._begin(trial_id, stage, now)

    def _begin(self, trial_id: str, stage: Stage, now: float) -> dict[str, Any] | None:
        trial = self.progress.begin(stage)
        if trial is None:
            return None
        self.live[trial_id], self.began, self.kept = trial.name, now, False
        return {"name": trial.name, "until": trial.until, "overrides": trial.overrides}

    def _room(self, now: float) -> bool:
        """Whether another trial can start; says once a minute what is missing if none can."""
        whole = ray.cluster_resources()
        if len(self.live) >= concurrent_trials(self.config, self.need, whole):
            return False
        if self.kept:
            return True
        free = ray.available_resources()
        starting = self.live and free.get("CPU", 0) > self.free_before - self.need.held + 1e-6 and now - self.began < SETTLE_S
        if starting:
            return False
        if self.need.places(free) >= 1:
            self.free_before = free["CPU"]
            return True
        if not self.live and now - self.said >= SAY_S:
            self.said = now
            parts = [f"{free.get(kind, 0):g} of {whole[kind]:g} {kind}s" for kind in ("CPU", "GPU") if kind in whole]
            held = "".join(f"\n  held by {holder}" for holder in holders())
            logger.info("waiting: a trial needs %s, free are %s%s", self.need, " and ".join(parts), held)
        return False

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id in self.live and not result.get(ENDED):
            self.progress.report(self.live[trial_id], int(result["step"]), float(result["miou"]), result.get("caveat", ""))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A stage ended, or its process died, which is a fault like any other."""
        name = self.live.pop(trial_id, None)
        if name is None:
            return
        if error or not result or not result.get(ENDED):
            if self.stopped_at is not None:  # Tune ended it
                return self.progress.leave(name)
            outcome = {"fault": "the process of the trial died", "again": True}
        else:
            outcome = json.loads(result[ENDED])
            self.kept = self.need.in_process
        if faults := self.progress.end(name, outcome):
            self.after[name] = time.monotonic() + min(LONGEST_WAIT_S, 5.0 * 2**faults)

    def stop(self) -> None:
        """Starts no further stage, and asks the running ones to save a checkpoint and end."""
        self.progress.parent.stop_flag.request.remote(STOPPED)
        self.stopped_at = time.monotonic()

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """The journal has it all."""


class AtRequest(Stopper):
    """Ends Tune's loop some time after a stop was requested, whether or not the trials have ended."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        since = self.stages.stopped_at
        return since is not None and (not self.stages.live or time.monotonic() - since > STOP_S)


def run_stages(progress: Progress, folder: Store) -> list[int]:
    """Trains until nothing is left or a stop is requested; returns the signals received. `folder`: for Tune's own files."""
    parent, key = progress.parent, progress.key
    need = Need.of(parent.config, parent.on_gpus)
    stages = Stages(progress, need)

    def request_stop(number: int) -> None:
        logger.warning("stop requested: the running trials save checkpoints; a second request ends at once")
        stages.stop()

    folder.delete("tune")  # of an earlier driver
    file_system, path = folder.arrow()
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(StageProcess, parent=parent, key=key), {"CPU": need.cpus if need.in_process else 0.01}
        ),
        tune_config=tune.TuneConfig(num_samples=-1, search_alg=stages, reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=path,
            storage_filesystem=file_system,
            stop=AtRequest(stages),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a trial stores its own
            verbose=0,
        ),
    )
    # The first two tell failures with their remote tracebacks, which have a sentence each here; the third one misses the files of
    # the loggers.
    for name in ("ray.tune.execution.tune_controller", "ray.tune.tune", "ray.tune.analysis.experiment_analysis"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.update(QUIET)
    with first_signal(request_stop) as received:
        tuner.fit()
    folder.delete("tune")
    return received

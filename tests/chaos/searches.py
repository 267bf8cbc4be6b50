"""Searches that are struck, that find the cluster busy, and that share it: each must end like one that nothing disturbed."""

import json
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from pipeline.config.config import Config
from pipeline.storage.store import open_store
from tests.chaos.run import Run
from tests.chaos.scene import Scene, kill, wait_until

DIMENSIONS = (
    "train.learning_rate: {log: [0.001, 0.1]}",
    "data.crop_size: {choice: [41, 49]}",
    "model.recurrence: {choice: [1, 2, 3]}",
)
SEARCH = (
    f"tune.space={{{', '.join(DIMENSIONS)}}}", "tune.grace_steps=5", "tune.reduction=2",
    "train.validate_every=5",
)  # fmt: skip
IN_PROCESS = (*SEARCH, "train.steps=15", "tune.trials=6", "train.workers=1", "train.cpus_per_worker=3")
"""Six trials, two at a time, each in a process of its own, which has a node's CPUs."""
WITH_WORKERS = (*SEARCH, "train.steps=10", "tune.trials=2", "train.workers=2")
"""Two trials, one after another, each with a controller and two workers."""
LONGEST_S = 1200.0
"""Longest time of a search."""
AWAY_S = 60.0
"""Seconds for which MLflow is away."""
BUSY_S = 600.0
"""Seconds for which another job holds the CPUs."""


class Blow(NamedTuple):
    """A fault: what `strike` does to the search's processes; it returns the driver that continues."""

    name: str
    strike: Callable[["Struck"], Run]


class Struck(NamedTuple):
    """A search under way."""

    scene: Scene
    run: Run
    again: Callable[[], Run]
    random: random.Random


class Found(NamedTuple):
    """A search that ended."""

    name: str
    blows: tuple[str, ...]
    """What struck it, with the moment of each."""
    minutes: float
    broken: tuple[str, ...]
    """What is not as it must be."""


def start(scene: Scene, *overrides: str) -> Run:
    return scene.run(scene.words("tune", *overrides))


def kill_driver(search: Struck) -> Run:
    search.run.kill()
    return search.again()


def stop_driver(search: Struck) -> Run:
    """As Ctrl-C or `ray job stop` does."""
    search.run.process.send_signal(signal.SIGTERM)
    assert search.run.finish() == 143, search.run.log[-3000:]
    return search.again()


def kill_one(title: str) -> Callable[[Struck], Run]:
    """Kills one of the cluster's processes whose title has this text, as soon as there is one."""

    def strike(search: Struck) -> Run:
        def there() -> list[int]:
            return [pid for pid, command in search.scene.processes().items() if title in command]

        kill(search.random.choice(wait_until(there, 120)))
        return search.run

    return strike


def lose_mlflow(search: Struck) -> Run:
    search.scene.mlflow.stop()
    time.sleep(AWAY_S)
    search.scene.mlflow.start()
    # A driver that was starting has ended with the answer that MLflow is away.
    return search.run if search.run.process.poll() is None else search.again()


DRIVER, STOP, MLFLOW = (
    Blow("the driver killed, the same command", kill_driver),
    Blow("SIGTERM, the same command", stop_driver),
    Blow("MLflow killed, back after 60 s", lose_mlflow),
)
TRIAL = Blow("the process of a trial killed", kill_one("ray::ResourceTrainable"))
CONTROLLER = Blow("Ray Train's controller killed", kill_one("TrainController"))
WORKER = Blow("a worker killed", kill_one("RayTrainWorker"))


def struck(scene: Scene, calm: str, name: str, overrides: Sequence[str], blows: Sequence[Blow], seed: int) -> Found:
    """Starts a search, strikes it at seeded moments, and compares its end with that of the search `calm`.

    A moment is a number of validations, drawn among those that the undisturbed search had, and up to five seconds after it.
    """
    drawn, began = random.Random(seed), time.monotonic()
    total = sum(len(trial["reports"]) for trial in records(scene, scene.config(*overrides, f"name={calm}")).values())
    moments = sorted(drawn.choices(range(total), k=len(blows)))
    config, again = scene.config(*overrides, f"name={name}"), partial(start, scene, *overrides, f"name={name}")
    run, said = again(), []
    for blow, moment in zip(blows, moments, strict=True):
        try:
            wait_until(partial(reached, scene, config, run, moment), LONGEST_S)
        except AssertionError as error:
            raise AssertionError(f"{error}, after {said}:\n{run.log[-6000:]}") from None
        time.sleep(5 * drawn.random())
        said.append(f"{blow.name} (after {moment} of {total} validations)")
        run = blow.strike(Struck(scene, run, again, drawn))
    succeed(run)
    broken = differences(scene, scene.config(*overrides, f"name={calm}"), config)
    return Found(name, tuple(said), (time.monotonic() - began) / 60, tuple(broken))


def busy(scene: Scene, calm: str, name: str, overrides: Sequence[str], seconds: float) -> Found:
    """A search that starts while another job holds all CPUs but 0.2 of each node."""
    began = time.monotonic()
    code = (
        "import time, ray; ray.init(log_to_driver=False)\n"
        "held = [{'CPU': node['Resources']['CPU'] - 0.2} for node in ray.nodes() if node['Alive']]\n"
        "ray.get(ray.util.placement_group(held, strategy='STRICT_SPREAD').ready())\n"
        f"print('held', flush=True); time.sleep({seconds})"
    )
    holder = scene.run([sys.executable, "-W", "ignore", "-c", code])
    holder.wait_for("held")
    run = start(scene, *overrides, f"name={name}")
    run.wait_for("waiting: a trial needs ", timeout_s=seconds)
    assert holder.finish(seconds + 60) == 0, holder.log
    succeed(run)
    waited = sum("waiting: a trial needs " in line.text for line in run.lines)
    broken = differences(scene, scene.config(*overrides, f"name={calm}"), scene.config(*overrides, f"name={name}"))
    said = f"another job holds all CPUs but 0.2 of each node for {seconds:g} s ({waited} lines say so)"
    return Found(name, (said,), (time.monotonic() - began) / 60, tuple(broken))


def together(scene: Scene, calm: str, names: Sequence[str], overrides: Sequence[str]) -> Found:
    """Searches that start at the same time and share the cluster."""
    began, broken = time.monotonic(), []
    runs = [start(scene, *overrides, f"name={name}") for name in names]
    for name, run in zip(names, runs, strict=True):
        succeed(run)
        broken += differences(scene, scene.config(*overrides, f"name={calm}"), scene.config(*overrides, f"name={name}"))
    return Found(" ".join(names), (f"{len(names)} searches start at once",), (time.monotonic() - began) / 60, tuple(broken))


def reached(scene: Scene, config: Config, run: Run, validations: int) -> bool:
    """Whether the search has that many validations. Raises AssertionError if its driver has ended."""
    assert run.process.poll() is None, run.log[-3000:]
    return sum(len(trial["reports"]) for trial in records(scene, config).values()) >= validations


def records(scene: Scene, config: Config) -> dict[str, dict[str, Any]]:
    """The records of a search's trials by name."""
    store = open_store(f"{config.runs_url}/{config.search_key}", config.storage)
    return {key: json.loads(store.read(key)) for key in store.list("trials")}


def differences(scene: Scene, calm: Config, config: Config) -> list[str]:
    """What a search has, in its records and in MLflow, that the undisturbed one has not."""
    expected, found = records(scene, calm), records(scene, config)
    broken = [] if expected.keys() == found.keys() else [f"trials {[*found]} instead of {[*expected]}"]
    for key in expected.keys() & found.keys():
        for part in ("overrides", "state", "reason", "miou", "until"):
            if expected[key][part] != found[key][part]:
                broken.append(f"{key}: {part} {found[key][part]} instead of {expected[key][part]}")
        scores = [[report[:2] for report in trial["reports"]] for trial in (expected[key], found[key])]
        broken += [] if scores[0] == scores[1] else [f"{key}: validations {scores[1]} instead of {scores[0]}"]
    return broken + in_mlflow(scene, config, found)


def in_mlflow(scene: Scene, config: Config, trials: dict[str, dict[str, Any]]) -> list[str]:
    """What MLflow has wrong: a run too many or too few, one that is not FINISHED, a point that is missing or doubled."""
    client = MlflowClient(scene.mlflow.uri)
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    runs: list[MlflowRun] = client.search_runs(
        [experiment.experiment_id], f"tags.`ccnet.run_key` LIKE '{config.search_key}%'", max_results=1000
    )
    keys = sorted(run.data.tags["ccnet.run_key"] for run in runs)
    expected = sorted([config.search_key, *(f"{config.search_key}-{trial['name']}" for trial in trials.values())])
    broken = [] if keys == expected else [f"MLflow runs {keys} instead of {expected}"]
    broken += [f"{run.data.tags['ccnet.run_key']} is {run.info.status}" for run in runs if run.info.status != "FINISHED"]
    of_trial = {f"{config.search_key}-{trial['name']}": trial for trial in trials.values()}
    for run in runs:
        if trial := of_trial.get(run.data.tags["ccnet.run_key"]):
            for key, steps in {
                "val/miou": [report[0] for report in trial["reports"]],
                "train/loss": list(range(1, trial["until"] + 1)),
            }.items():
                had = sorted(point.step for point in client.get_metric_history(run.info.run_id, key))
                broken += [] if had == steps else [f"trial {trial['name']}: {key} at steps {had} instead of {steps}"]
    return broken


def succeed(run: Run) -> None:
    """Waits for the end of a search. Raises AssertionError unless its exit code is 0."""
    assert run.finish(LONGEST_S) == 0, run.log[-6000:]


CASES: dict[str, Callable[[Scene], Found]] = {
    "struck": lambda scene: struck(scene, "calm", "struck", IN_PROCESS, [DRIVER, TRIAL, MLFLOW, STOP, DRIVER, TRIAL], seed=0),
    "struck-workers": lambda scene: struck(
        scene, "calm-workers", "struck-workers", WITH_WORKERS, [WORKER, CONTROLLER, DRIVER, MLFLOW], seed=1
    ),
    "busy": lambda scene: busy(scene, "calm", "busy", IN_PROCESS, BUSY_S),
    "two-at-once": lambda scene: together(scene, "calm", ("first", "second"), IN_PROCESS),
}


def cases(scene: Scene, names: Sequence[str]) -> Iterator[Found]:
    """These cases, one after another, after the searches that nothing disturbs."""
    if any(name != "struck-workers" for name in names):
        succeed(start(scene, *IN_PROCESS, "name=calm"))
    if "struck-workers" in names:
        succeed(start(scene, *WITH_WORKERS, "name=calm-workers"))
    for name in names:
        yield CASES[name](scene)._replace(name=name)

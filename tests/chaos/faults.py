"""Faults that strike a running training, each as users would meet it, and the comparison with the undisturbed run."""

import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2

from pipeline.config.config import Config
from tests.chaos.run import Recovery, Run, recovery
from tests.chaos.scene import Scene, Weights, kill

SICK_S = 8.0
"""Seconds for which a store or server fails."""
NOISE = 0.05
"""Tolerance of the mIoU: the last two validations of this training differ by less."""
CLOCK = "CCNET_CHAOS_CLOCK"
"""Environment variable with the file of the seconds by which clock.c moves the clock of all Python code of the scene."""
FEWER, MORE = "1 worker, first batch", "2 workers, first batch"
"""In the log: a group of one worker, or of two, has started."""


class Stage(NamedTuple):
    """What a fault may use: the scene, the current run, a function that starts it again, and a seeded generator."""

    scene: Scene
    run: Run
    again: Callable[[], Run]
    random: random.Random
    config: Config


class Fault(NamedTuple):
    """`strike` causes the fault and returns the run that continues."""

    name: str
    strike: Callable[[Stage], Run]
    restarts: bool = True
    """Whether the workers restart; otherwise they continue."""
    exact: bool = True
    """Whether the final weights are those of the undisturbed run, bit for bit."""
    loses_steps: bool = True
    """Whether the steps since the last checkpoint are done twice."""
    overrides: tuple[str, ...] = ()
    submitted: bool = False
    """Whether the run is started through the cluster's job server."""


class Outcome(NamedTuple):
    """The result of a run that a fault struck."""

    run: str
    fault: Fault
    step: int
    """Last step done before the fault."""
    committed: int
    """Step of the last checkpoint that was complete at that moment."""
    recovery: Recovery
    difference: float
    """Largest difference of a weight to the undisturbed run."""
    miou: float
    calm_miou: float

    @property
    def faults(self) -> list[str]:
        """The promises that do not hold."""
        found, recovered = [], self.recovery
        if self.fault.exact and self.difference:
            found.append(f"weights differ by {self.difference:g}")
        if self.fault.restarts and recovered.resumed_at < self.committed:
            found.append(f"resumed at step {recovered.resumed_at}, although a checkpoint of step {self.committed} existed")
        if not self.fault.exact and abs(self.miou - self.calm_miou) > NOISE:
            found.append(f"mIoU {self.miou:.4f} instead of {self.calm_miou:.4f}")
        if not self.fault.loses_steps and recovered.steps_lost:
            found.append(f"{recovered.steps_lost} steps done twice")
        return found


def struck(scene: Scene, blows: Sequence[tuple[Fault, int]], calm: Weights, name: str, seed: int) -> list[Outcome]:
    """Starts a training, strikes it with each fault after its step, and compares its end with that of the undisturbed run."""
    drawn, submitted = random.Random(seed), any(fault.submitted for fault, _ in blows)
    overrides = (f"name={name}", *(override for fault, _ in blows for override in fault.overrides))
    config = scene.config(*overrides)

    again = partial(scene.start, *overrides, submitted=submitted)
    run, at, found = again(), 0.0, []
    for fault, step in blows:
        run.wait_for_step(step, after=at)
        time.sleep(drawn.random() / 2)  # at any point of the next step
        committed, at = scene.committed(config), time.monotonic()
        continued = fault.strike(Stage(scene, run, again, drawn, config))
        found.append((name, fault, run.last_step(at), committed, recovery(run, continued, at, restarts=fault.restarts)))
        run = continued
    run.succeed()
    weights = scene.weights(config)
    return [Outcome(*each, weights.difference(calm), weights.miou, calm.miou) for each in found]


def kill_worker(stage: Stage) -> Run:
    kill(stage.random.choice(stage.scene.workers()))
    return stage.run


def kill_driver(stage: Stage) -> Run:
    stage.run.kill()
    return stage.again()


def kill_node(stage: Stage) -> Run:
    stage.scene.kill_second()
    stage.scene.add_second()
    return stage.run


def kill_controller(stage: Stage) -> Run:
    kill(stage.scene.controllers()[0])
    return stage.run


def restart_cluster(stage: Stage) -> Run:
    stage.scene.stop_cluster()
    stage.run.finish()
    stage.scene.start_cluster()
    return stage.again()


def freeze_worker(stage: Stage) -> Run:
    """Stops a worker, as on a machine that no longer answers: no process has died, but none makes progress."""
    frozen = stage.random.choice(stage.scene.workers())
    subprocess.run(["kill", "-STOP", str(frozen)], check=True)
    stage.run.wait_for("no progress for")
    return stage.run


def preempt_node(stage: Stage) -> Run:
    """The node's end is announced a minute before; another node replaces it."""
    scene, run = stage.scene, stage.run
    assert scene.cluster
    deadline_ms = int(1000 * (time.time() + 60))
    gcs = GcsClient(address=scene.cluster.address)
    taken = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    assert gcs.drain_node(scene.second.node_id, taken, "spot", deadline_ms)[0]
    run.wait_for("stopping after step")
    scene.kill_second()
    scene.add_second()
    return run


def stop_job(stage: Stage) -> Run:
    """Ctrl-C in `jobs.submit` stops the job through the job server; then the job is submitted again."""
    stage.run.process.send_signal(signal.SIGINT)
    stage.run.finish()
    return stage.again()


def sicken(fault: str) -> Callable[[Stage], Run]:
    """For SICK_S seconds, the store answers every request with this fault."""

    def strike(stage: Stage) -> Run:
        proxy = stage.scene.proxy
        proxy.aimed = {".": fault}
        time.sleep(SICK_S)
        proxy.aimed = {}
        assert proxy.injected[fault]
        return stage.run

    return strike


def lose_store(stage: Stage) -> Run:
    stage.scene.lose_store(SICK_S)
    return stage.run


def restart_mlflow(stage: Stage) -> Run:
    stage.scene.mlflow.stop()
    time.sleep(SICK_S)
    stage.scene.mlflow.start()
    return stage.run


def movable_clock(folder: Path) -> dict[str, str]:
    """The environment of a scene whose clock can be moved; needs a C compiler."""
    library, seconds = folder / "clock.so", folder / "clock"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, Path(__file__).with_name("clock.c")], check=True)
    seconds.write_text("0")
    return {CLOCK: str(seconds), "LD_PRELOAD": str(library)}


def move_clock(seconds: int) -> Callable[[Stage], Run]:
    """The wall clock of all Python code jumps."""

    def strike(stage: Stage) -> Run:
        Path(stage.scene.own[CLOCK]).write_text(str(seconds))
        return stage.run

    return strike


def shrink_and_grow(stage: Stage) -> Run:
    """The second node dies: the run continues with one worker, and with two again once there is another node."""
    scene, run = stage.scene, stage.run
    scene.kill_second()
    at = time.monotonic()
    run.wait_for(FEWER, after=at)
    run.wait_for_step(run.last_step(time.monotonic()) + 3, after=at)
    scene.add_second()
    run.wait_for(MORE, after=at)
    return run


def nothing_kept(scene: Scene) -> list[str]:
    """Trains with a store that loses checkpoint files: the run must end and name the object and the store. Returns mistakes."""
    overrides = ("name=lost", "train.workers=1", "train.steps=1")
    config = scene.config(*overrides)
    scene.proxy.aimed = {r"PUT .*/model\.safetensors": "length_required"}
    run = scene.start(*overrides)
    code = run.finish()
    scene.proxy.aimed = {}
    messages = "\n".join(line for line in run.log.splitlines() if not line.startswith("("))  # the driver's lines
    key = f"s3://{scene.bucket}/runs/{config.run_key}/step-000001/model.safetensors"
    expected = f"{key} at {scene.proxy.endpoint}: 411", "not retried: the same as before"
    missing = [f"a store that keeps nothing: not in the log: {words}" for words in expected if words not in messages]
    missing += ["a store that keeps nothing: the run did not fail"] if code != 1 or scene.committed(config) else []
    return missing + [f"a store that keeps nothing: left over: {what}" for what in scene.left_over()]


KILLS = (
    Fault("a worker killed", kill_worker),
    Fault("the driver killed", kill_driver),
    Fault("the second node killed", kill_node),
)
FAULTS = (
    (
        Fault("Ray Train's controller killed", kill_controller),
        Fault("a worker frozen (SIGSTOP)", freeze_worker, overrides=("faults.hang_s=10",)),
        Fault("the whole cluster restarted", restart_cluster),
    ),
    (
        Fault(f"S3 answers 503 for {SICK_S:g} s", sicken("slow_down"), restarts=False),
        Fault(f"MLflow down for {SICK_S:g} s", restart_mlflow, restarts=False),
    ),
    (
        Fault(f"S3 stalls for {SICK_S:g} s", sicken("stall"), restarts=False),
        Fault(f"S3 refuses connections for {SICK_S:g} s", lose_store, restarts=False),
    ),
    (Fault(f"S3's disk full (507) for {SICK_S:g} s", sicken("full"), restarts=False),),
    (Fault("a node taken away with notice", preempt_node, loses_steps=False),),
    (Fault("the job stopped and submitted again", stop_job, loses_steps=False, submitted=True),),
)
"""The faults of a group strike one run, one after another."""
CLOCKS = (
    Fault("the clock an hour ahead", move_clock(3600), restarts=False),
    Fault("the clock an hour back", move_clock(-3600), restarts=False),
)
"""Faults of a scene whose clock can be moved, which makes it slow."""
ELASTIC = Fault(
    "from 2 workers to 1 and back",
    shrink_and_grow,
    exact=False,
    overrides=("train.workers=[1, 2]", "train.steps=80", "train.validate_every=10"),
)


def points(faults: Sequence[Fault], steps: int, seed: int) -> list[tuple[Fault, int]]:
    """Each fault with the step after which it strikes, drawn with the seed from the first half of the run."""
    return list(zip(faults, sorted(random.Random(seed).sample(range(2, steps // 2), len(faults))), strict=True))

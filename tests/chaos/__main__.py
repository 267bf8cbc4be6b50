"""`python -m tests.chaos [docs/chaos.md]`: injects each fault and twenty random kills on real servers; writes the table."""

import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import ray
import torch

from pipeline.tracking.provenance import describe_commit
from tests.chaos.faults import (
    CLOCKS,
    ELASTIC,
    FAULTS,
    KILLS,
    Fault,
    Outcome,
    kill_worker,
    movable_clock,
    nothing_kept,
    points,
    struck,
)  # fmt: skip
from tests.chaos.run import ROOT
from tests.chaos.scene import CONFIG, DEMO, Scene, Weights

KILLED_RUNS, KILLS_EACH, SEED = 5, 4, 0
RECOVERED_S = 60
"""Longest allowed time from a killed worker to the next step, on two otherwise idle cores."""
HEAD = """# Chaos: what a training survives

Written by `make chaos` (`python -m tests.chaos`) in {minutes:.0f} minutes at commit {commit}, on {cpu}, {cores} cores, no
GPU; Python {python}, Ray {ray}, torch {torch}. Two Ray nodes, 2 workers, an S3 server (moto) behind a proxy and an
MLflow server, all real and on this one machine. The training is `{config}` with `{overrides}`.
Each fault strikes after a step drawn with seed {seed}. Faults with the same `run` struck one training, one after another.

`recovery`: seconds from the fault to the first step done after it. Its parts are `start`: noticing the fault, ending the old
processes, starting new ones, and that step; `load`: reading and verifying the checkpoint; `first batch`: until Ray Data has fed
the first worker. `lost`: steps done twice. `difference`: the largest difference of a final weight to the undisturbed run; 0 means
the same bits.
"""


def calm(scene: Scene, name: str, *overrides: str) -> Weights:
    """Trains without faults; returns the final weights."""
    scene.start(f"name={name}", *overrides).succeed()
    return scene.weights(scene.config(f"name={name}", *overrides))


def table(outcomes: list[Outcome]) -> str:
    """A Markdown table with one row for each outcome."""
    columns = ("run", "fault", "after step", "recovery", "start", "load", "first batch", "lost", "difference", "mIoU")
    rows = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for outcome in outcomes:
        found = outcome.recovery
        parts = [f"{value:.1f}" for value in (found.start_s, found.load_s, found.first_batch_s)]
        parts = parts if outcome.fault.restarts else ["continued", "", ""]
        name, end = outcome.fault.name, f"{outcome.miou:.4f} ({outcome.calm_miou:.4f} undisturbed)"
        rows.append(
            f"| {outcome.run} | {name} | {outcome.step} | {found.total_s:.1f} s | {' | '.join(parts)} | {found.steps_lost} | "
            f"{outcome.difference:g} | {end} |"
        )
    return "\n".join(rows)


def main(target: Path) -> int:
    """Runs everything and writes the table to `target`. Returns 1 if something is not as promised."""
    started, outcomes, kills, broken = time.monotonic(), [], [], []

    def strike(scene: Scene, into: list[Outcome], faults: Sequence[Fault], weights: Weights, seed: int) -> None:
        names = ", ".join(fault.name for fault in faults)
        print(f"{time.monotonic() - started:5.0f} s  {names}", flush=True)
        try:
            found = struck(scene, points(faults, scene.config().train.steps, seed), weights, f"struck-{seed}", seed)
        except Exception as error:  # any error goes under "Not as promised", and the next faults still run
            broken.append(f"{names}: {error}")
            found = []
            scene.stop_cluster()
            scene.start_cluster()
        into.extend(found)
        for outcome in found:
            print(
                f"         {outcome.recovery}  difference {outcome.difference:g}  {outcome.faults or 'as promised'}", flush=True
            )
            broken.extend(f"{outcome.fault.name} after step {outcome.step}: {what}" for what in outcome.faults)
            if outcome.fault.strike is kill_worker and outcome.recovery.total_s > RECOVERED_S:
                broken.append(
                    f"{outcome.fault.name} after step {outcome.step}: {outcome.recovery.total_s:.0f} s to the next step"
                )
        broken.extend(f"{names}: left over: {what}" for what in scene.left_over())

    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        clock = movable_clock(Path(folder))
        with Scene(Path(folder, "a"), DEMO) as scene:
            weights = calm(scene, "calm")
            for number in range(KILLED_RUNS):
                drawn = random.Random(SEED + number)
                strike(scene, kills, [drawn.choice(KILLS) for _ in range(KILLS_EACH)], weights, SEED + number)
            for number, group in enumerate(FAULTS):
                strike(scene, outcomes, group, weights, SEED + 100 + number)
            broken.extend(nothing_kept(scene))
            strike(scene, outcomes, [ELASTIC], calm(scene, "calm-long", *ELASTIC.overrides), SEED + 200)
        broken.extend(f"still running at the end: {process}" for process in scene.processes().values())
        with Scene(Path(folder, "b"), DEMO, clock) as scene:
            strike(scene, outcomes, CLOCKS, weights, SEED + 300)
    minutes = (time.monotonic() - started) / 60
    text = HEAD.format(
        minutes=minutes, commit=describe_commit(), cpu=cpu(), cores=os.cpu_count(), python=platform.python_version(),
        ray=ray.__version__, torch=torch.__version__, config=CONFIG, overrides=" ".join(DEMO), seed=SEED,
    )  # fmt: skip
    exact = f"{sum(not o.difference for o in kills)} of {KILLED_RUNS * KILLS_EACH}"
    text += f"\n## One of each\n\n{table(outcomes)}\n\n"
    text += f"## Kills at random points: {exact} in runs that end with the weights of the undisturbed run\n\n{table(kills)}\n"
    if broken:
        text += "\n## Not as promised\n\n" + "\n".join(f"- {line.splitlines()[0]}" for line in broken) + "\n"
    target.write_text(text)
    print("\n".join(["", *broken, text]))
    return len(broken) > 0


def cpu() -> str:
    """The processor's name."""
    lines = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout.splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model name")), platform.processor())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/chaos.md"))

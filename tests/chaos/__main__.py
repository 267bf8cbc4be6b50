"""`python -m tests.chaos [--only survived|struck|R1|...]`: strikes trainings and searches on real servers, writes docs/chaos.md.

`survived` injects each fault and twenty random kills; `struck`, `struck-workers`, `busy` and `two-at-once` are searches; the rows
R1, R2, ... end with an answer. Without --only, all of them run. What does not run keeps its place in the file.
"""

import argparse
import datetime
import random
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.tracking.provenance import describe_commit
from tests.chaos import report
from tests.chaos.answers import CASES, SHORT, set_up
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
from tests.chaos.scene import DEMO, Scene, Weights
from tests.chaos.searches import CASES as SEARCHES
from tests.chaos.searches import cases

DOCUMENT = ROOT / "docs/chaos.md"
SURVIVED = "survived"
KILLED_RUNS, KILLS_EACH, SEED = 5, 4, 0
RECOVERED_S = 60
"""Longest allowed time from a killed worker to the next step, on two otherwise idle cores."""


def calm(scene: Scene, name: str, *overrides: str) -> Weights:
    """Trains without faults; returns the final weights."""
    scene.start(f"name={name}", *overrides).succeed()
    return scene.weights(scene.config(f"name={name}", *overrides))


def survive() -> list[str]:
    """Injects all faults and writes their tables. Returns what is not as promised."""
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
    text = report.survived(
        outcomes, kills, broken,
        minutes=(time.monotonic() - started) / 60, commit=describe_commit(), num_kills=KILLED_RUNS * KILLS_EACH, seed=SEED,
    )  # fmt: skip
    DOCUMENT.write_text(report.with_survived(DOCUMENT.read_text(), text))
    return broken


def search(names: Sequence[str]) -> list[str]:
    """Tries these cases of searches and writes their lines of the table. Returns what is not as promised."""
    measured, broken = _measured(), []
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, Scene(Path(folder, "scene")) as scene:
        try:
            for each in cases(scene, names):
                print(each, flush=True)
                DOCUMENT.write_text(report.with_searches(DOCUMENT.read_text(), [report.search_line(each, measured)]))
                broken.extend(f"{each.name}: {what}" for what in each.broken)
        except Exception as error:  # the rows of before are written
            broken.append(f"searches: {error}")
        broken.extend(f"searches: left over: {what}" for what in scene.left_over())
    return broken


def _measured() -> str:
    """Commit and day of what is measured now."""
    commit, _, dirty = describe_commit().partition("-")
    return f"{'-'.join(filter(None, [commit[:9], dirty]))}, {datetime.date.today()}"


def answer(rows: Sequence[str]) -> list[str]:
    """Tries the cases of these rows and writes their lines of the table. Returns what is not as promised."""
    measured, broken = _measured(), []
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        temporary = Path(folder, "tmp")
        temporary.mkdir()
        environment = {"TMPDIR": str(temporary), "RAY_TMPDIR": "/tmp"}  # Ray's own files must not vanish below a full disk
        with Scene(Path(folder, "scene"), SHORT, environment) as scene:
            bench = set_up(scene, Path(folder))
            for row in rows:
                started = time.monotonic()
                own = Path(folder, row)
                own.mkdir()
                try:
                    answers = list(CASES[row](bench._replace(folder=own)))
                except Exception as error:  # the next cases still run, and the row keeps what it had
                    broken.append(f"{row}: {error}")
                    answers = []
                print(f"{row}  {time.monotonic() - started:.0f} s  {answers}", flush=True)
                names = {scene.bucket: "BUCKET", folder: "FOLDER", scene.mlflow.uri: "http://MLFLOW"}
                names |= {f"{word} {socket.gethostname()}": f"{word} HOST" for word in ("host", "node")}
                lines = [report.answer_line(each, measured, names) for each in answers]
                DOCUMENT.write_text(report.with_answers(DOCUMENT.read_text(), lines))
            broken.extend(f"{' '.join(rows)}: left over: {what}" for what in scene.left_over())
    return broken


def main() -> int:
    """Runs what is asked for. Returns 1 if something is not as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    everything = [SURVIVED, *SEARCHES, *CASES]
    parser.add_argument("--only", nargs="+", choices=everything, default=everything, metavar="NAME")
    names = parser.parse_args().only
    broken = survive() if SURVIVED in names else []
    if searches := [name for name in names if name in SEARCHES]:
        broken += search(searches)
    if rows := [name for name in names if name in CASES]:
        broken += answer(rows)
    print("\n".join(["", *broken]))
    return len(broken) > 0


if __name__ == "__main__":
    sys.exit(main())

"""docs/chaos.md: tables of faults and answers, each replaced by what measured it; the rest of the file stays as it is."""

import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping

import ray
import torch

from tests.chaos.answers import SHORT, Answer
from tests.chaos.faults import Outcome
from tests.chaos.scene import CONFIG, DEMO
from tests.chaos.searches import CASES as SEARCH_CASES
from tests.chaos.searches import IN_PROCESS, Found

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
SEARCHES = "## Searches"
ANSWERS = "## What ends with an answer"
_IN_FORCE = {word.partition("=")[0]: word for word in SHORT}.values()  # of two overrides of a setting, the later one
ANSWERS_HEAD = f"""{ANSWERS}

Each row was measured at the commit and on the day in its last column, by `make chaos` or by `python -m tests.chaos --only ROW`;
rows are those of [field-cases.md](field-cases.md). One worker, the services of above, `{CONFIG}` with
`{" ".join(_IN_FORCE)}`. The undisturbed run is a plain loop without Ray (tests/chaos/plain_loop.py).

`screen`: its last lines; no line has a traceback. `nothing lost`: compared by sha256 for objects, bit for bit for weights and by
the steps of each metric in MLflow.

| row | what is done | screen | exit | nothing lost | the way out, tried | measured |
|---|---|---|---|---|---|---|
"""
SEARCHES_HEAD = f"""{SEARCHES}

Each row was measured at the commit and on the day in its last column, by `python -m tests.chaos --only struck busy ...`, with the
services of above.
Six trials over learning rate, crop and R, two at a time, each in its own process: `{" ".join(IN_PROCESS[1:])}`.
`struck-workers`: two trials with two workers each, one after another. A fault strikes after a number of validations that is
drawn with a seed, and up to 5 s later.

`differences`: what the search has other than one that nothing disturbed: a trial too many or too few, another point, state,
validation or mIoU; in MLflow a run too many or too few, one that is not FINISHED, a point of mIoU or loss missing or doubled.

| case | what happens | time | differences | measured |
|---|---|---|---|---|
"""
LONGEST_SCREEN = 420
"""Characters of an answer in the table; of a longer one the middle is left out."""


def survived(
    outcomes: list[Outcome], kills: list[Outcome], broken: list[str], *, minutes: float, commit: str, num_kills: int, seed: int
) -> str:
    """The first part of the file."""
    text = HEAD.format(
        minutes=minutes, commit=commit, cpu=cpu(), cores=os.cpu_count(), python=platform.python_version(),
        ray=ray.__version__, torch=torch.__version__, config=CONFIG, overrides=" ".join(DEMO), seed=seed,
    )  # fmt: skip
    exact = f"{sum(not o.difference for o in kills)} of {num_kills}"
    text += f"\n## One of each\n\n{table(outcomes)}\n\n"
    text += f"## Kills at random points: {exact} in runs that end with the weights of the undisturbed run\n\n{table(kills)}\n"
    if broken:
        text += "\n## Not as promised\n\n" + "\n".join(f"- {line.splitlines()[0]}" for line in broken) + "\n"
    return text


def search_line(found: Found, measured: str) -> str:
    """The table's line for a search."""
    cells = (found.name, "<br>".join(found.blows), f"{found.minutes:.1f} min", "; ".join(found.broken) or "none", measured)
    return f"| {' | '.join(cells)} |"


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


def answer_line(answer: Answer, measured: str, names: Mapping[str, str]) -> str:
    """The table's line for an answer. `names`: what differs from run to run -> the word that stands for it."""
    screen = answer.screen
    for text, word in names.items():
        screen = screen.replace(text, word)
    screen = " ".join(screen.split())
    if len(screen) > LONGEST_SCREEN:
        screen = f"{screen[: LONGEST_SCREEN // 2]} ... {screen[-LONGEST_SCREEN // 2 :]}"
    cells = (answer.row, answer.done, screen, str(answer.code), answer.kept, answer.then, measured)
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def with_survived(document: str, part: str) -> str:
    """The file with another first part; searches and answers stay."""
    return part + _from(document, SEARCHES, ANSWERS)


def with_searches(document: str, lines: Iterable[str]) -> str:
    """The file with these lines in the table of searches, in place of those of the same cases; everything else stays."""
    rest, new = _from(document, SEARCHES, ANSWERS), {_case(line): line for line in lines}
    part = rest.removesuffix(_from(rest, ANSWERS))
    kept = {case: line for line in part.splitlines() if (case := _case(line)) in SEARCH_CASES}
    rows = [(kept | new)[case] for case in SEARCH_CASES if case in kept | new]
    return document.removesuffix(rest).rstrip() + f"\n\n{SEARCHES_HEAD}" + "\n".join(rows) + "\n" + _from(rest, ANSWERS)


def _case(line: str) -> str:
    """The first cell of a table's line."""
    return line.strip("| ").partition(" | ")[0]


def _from(document: str, *headings: str) -> str:
    """The file from the first of these headings that it has; empty if it has none."""
    found = min((at for heading in headings if (at := document.find(f"{heading}\n")) >= 0), default=len(document))
    return document[found - 1 :] if found < len(document) else ""


def with_answers(document: str, lines: Iterable[str]) -> str:
    """The file with these lines in the table of answers, in place of those of the same rows; everything else stays."""
    first, _, second = document.partition(ANSWERS)
    new = list(lines)
    rows = {_row(line) for line in new}
    old = [line for line in second.splitlines() if _row(line) and _row(line) not in rows]
    return f"{first.rstrip()}\n\n{ANSWERS_HEAD}" + "\n".join(sorted([*old, *new], key=_row)) + "\n"


def _row(line: str) -> int:
    """Number of a table line's row; 0 for another line."""
    found = re.match(r"\| R(\d+) \|", line)
    return int(found[1]) if found else 0


def cpu() -> str:
    """The processor's name."""
    lines = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout.splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model name")), platform.processor())

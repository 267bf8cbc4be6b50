"""Compares two checkpoints: what differs in how they were made, and whether their scores on the same images really differ."""

import hashlib
import json
import math
from typing import Any, NamedTuple

from ccnet.bootstrap import bootstrap_differences
from pipeline.config.config import Config
from pipeline.config.load import override
from pipeline.errors import ConfigError
from pipeline.evaluation import panels
from pipeline.evaluation.evaluate import Evaluation, evaluate
from pipeline.evaluation.metrics import counted, figure
from pipeline.evaluation.protocol import INTERVAL
from pipeline.formatting import or_none
from pipeline.formatting import table as text_table
from pipeline.images.codec import encode_png
from pipeline.reports import differences, page
from pipeline.storage.store import open_store

MOST = 10
"""Images that are named."""
HEADINGS = ("class", "first", "second", "difference", "95 % interval", "second")
IMAGE_HEADINGS = ("differs most", "wrong, first", "wrong, second", "difference")
FEWEST = 10
"""Images with a class from which on its difference is judged: fewer give an interval that is too narrow."""
BY_CHANCE = "Of twenty judged classes that do not differ, about one is better or worse by chance."


class Interval(NamedTuple):
    """A difference, second minus first, and its interval over images."""

    name: str
    images: int
    """Images in whose label or prediction the class occurs."""
    first: float
    second: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        return self.second - self.first

    @property
    def verdict(self) -> str:
        """Whether other images of the same kind would show a difference of the same sign."""
        if math.isnan(self.low) or math.isnan(self.high):
            return ""
        if self.low == self.high == 0:
            return "equal"
        if self.images < FEWEST:
            return f"only {counted(self.images)}"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "not certain"


class Comparison(NamedTuple):
    """What differs between two checkpoints."""

    first: Evaluation
    second: Evaluation
    settings: list[str]
    """A line for each setting that shapes the model, and for each version."""
    data: list[str]
    """A line for each way in which their data differ."""
    steps: list[str]
    """From which step on their trainings differ."""
    miou: Interval
    classes: list[Interval]
    order: list[int]
    """Numbers of the images, that with the largest difference of wrong pixels first."""

    def text(self) -> str:
        """Ready to print."""
        lines = [f"first   {_described(self.first)}", f"second  {_described(self.second)}", ""]
        for title, found in (("settings", self.settings), ("data", self.data), ("training", self.steps)):
            lines += [f"{title}:", *(f"  {line}" for line in found or ["no difference"]), ""]
        rows = [_row(each) for each in (*self.classes, self.miou)]
        lines += [text_table(HEADINGS, rows), BY_CHANCE, "", text_table(IMAGE_HEADINGS, self.image_rows())]
        return "\n".join(lines)

    def image_rows(self) -> list[tuple[str, ...]]:
        """A row of text for each of the images that differ most."""
        return [(name, f"{one:.2%}", f"{other:.2%}", f"{other - one:+.2%}") for name, one, other in self.images]

    @property
    def images(self) -> list[tuple[str, float, float]]:
        """(id, share wrong by the first, by the second) of the images that differ most."""
        pairs = [(self.first.images[number], self.second.images[number]) for number in self.order[:MOST]]
        return [(one.sample_id, one.wrong, other.wrong) for one, other in pairs]


def compare(config: Config) -> Comparison:
    """Evaluates `evaluate.checkpoint` and `evaluate.other` on the same images.

    Raises ConfigError without a second checkpoint, and what `evaluate` raises.
    """
    if not config.evaluate.other:
        raise ConfigError(["evaluate.other: missing; name the checkpoint to compare with, as for evaluate.checkpoint"])
    options = {"evaluate.attention_off": False}
    first = evaluate(override(config, options))
    second = evaluate(override(config, options | {"evaluate.checkpoint": config.evaluate.other}))
    (low, high), bounds = bootstrap_differences(tuple(first.pixels), tuple(second.pixels), **INTERVAL)
    names, ious = first.score.class_names, (each.score.matrix.iou().tolist() for each in (first, second))
    made = first.checkpoint.progress, second.checkpoint.progress
    images = ((first.pixels[1] + second.pixels[1]) > 0).sum(0).tolist()
    gaps = [abs(one.wrong - other.wrong) for one, other in zip(first.images, second.images, strict=True)]
    return Comparison(
        first,
        second,
        differences.settings(*made),
        differences.data(config, *made),
        differences.steps(config.tracking, *made),
        Interval("mIoU", len(first.images), first.score.miou, second.score.miou, low, high),
        [Interval(*each, *between) for *each, between in zip(names, images, *ious, bounds, strict=True)],
        sorted(range(len(gaps)), key=lambda number: -gaps[number]),
    )


def _row(each: Interval) -> tuple[str, ...]:
    known = not math.isnan(each.low)
    interval = f"{each.low:+.4f} to {each.high:+.4f}" if known else ""
    difference = "" if math.isnan(each.difference) else f"{each.difference:+.4f}"
    return each.name, figure(each.first), figure(each.second), difference, interval, each.verdict


def write_page(config: Config, found: Comparison) -> str:
    """Writes page and record below `storage.path`, unless they are there; returns the page's address."""
    content = _record(found)
    key = f"{config.name}-comparison-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]}"
    store = open_store(f"{config.storage.path}/comparisons/{key}", config.storage)
    if not store.exists("comparison.json"):
        store.write("report.html", _page(config, key, found))
        store.write("comparison.json", (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    return store.url("report.html")


def _record(found: Comparison) -> dict[str, Any]:
    return {
        "format": "ccnet-comparison",
        "version": 1,
        "first": {"url": found.first.checkpoint.url, "sha256": found.first.checkpoint.sha256},
        "second": {"url": found.second.checkpoint.url, "sha256": found.second.checkpoint.sha256},
        "settings": found.settings,
        "data": found.data,
        "training": found.steps,
        "miou": _as_json(found.miou),
        "classes": [_as_json(each) for each in found.classes],
        "images": found.images,
        "protocol": found.second.score.protocol,
    }


def _as_json(each: Interval) -> dict[str, Any]:
    return {name: or_none(value) for name, value in each._asdict().items()}


def _described(evaluation: Evaluation) -> str:
    score = evaluation.score
    return f"{evaluation.checkpoint.url}  mIoU {score.miou:.4f}{f' {score.caveat}' if score.caveat else ''}"


def _page(config: Config, key: str, found: Comparison) -> bytes:
    rows = [_row(each) for each in (found.miou, *found.classes)]
    nets, shown = (found.first.net, found.second.net), found.order[: config.evaluate.panel_images]
    picture = encode_png(panels.of_pairs(config, found.first.manifest, nets, shown))
    lists = [
        page.section(title, page.code("\n".join(lines) or "no difference"))
        for title, lines in (("Settings", found.settings), ("Data", found.data), ("Training", found.steps))
    ]
    return page.document(
        key,
        f"{page.headline(found.second.score, config.data.name)}; the first has {found.first.score.miou:.4f}",
        [
            page.table(("", ""), [("first", _described(found.first)), ("second", _described(found.second))]),
            *lists,
            page.section("Scores", page.table(HEADINGS, rows), page.paragraph(BY_CHANCE)),
            page.picture("The images that differ most", picture),
            page.table(IMAGE_HEADINGS, found.image_rows()),
            page.section("Protocol", page.code(json.dumps(found.second.score.protocol, indent=1))),
        ],
    )

"""Compares two checkpoints: what differs in how they were made, and whether their scores on the same images really differ."""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ccnet.bootstrap import bootstrap_differences
from pipeline.config.config import Config
from pipeline.config.load import override
from pipeline.errors import ConfigError
from pipeline.evaluation import panels
from pipeline.evaluation.evaluate import Evaluation, evaluate
from pipeline.evaluation.protocol import INTERVAL
from pipeline.formatting import table as text_table
from pipeline.images.codec import encode_png
from pipeline.reports import differences, page
from pipeline.storage.store import open_store

MOST = 10
"""Images that are named."""
HEADINGS = ("class", "first", "second", "difference", "95 % interval", "second is")
IMAGE_HEADINGS = ("differs most", "wrong, first", "wrong, second", "difference")
BY_CHANCE = "Of twenty classes that do not differ, about one is better or worse by chance."


class Interval(NamedTuple):
    """A difference, second minus first, and its interval over images."""

    name: str
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
        return "better" if self.low > 0 else "worse" if self.high < 0 else "may be chance"


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
    images: list[tuple[str, float, float]]
    """(id, wrong by the first, wrong by the second): the images that differ most."""
    report_url: str

    def text(self) -> str:
        """Ready to print."""
        lines = [f"first   {self.first.checkpoint.url}", f"second  {self.second.checkpoint.url}", ""]
        for title, found in (("settings", self.settings), ("data", self.data), ("training", self.steps)):
            lines += [f"{title}:", *(f"  {line}" for line in found or ["no difference"]), ""]
        rows = [_row(each) for each in (*self.classes, self.miou)]
        lines += [text_table(HEADINGS, rows), BY_CHANCE, "", text_table(IMAGE_HEADINGS, self.image_rows())]
        return "\n".join(lines)

    def image_rows(self) -> list[tuple[str, ...]]:
        """A row of text for each of `images`."""
        return [(name, f"{one:.2%}", f"{other:.2%}", f"{other - one:+.2%}") for name, one, other in self.images]


def compare(config: Config) -> Comparison:
    """Evaluates `evaluate.checkpoint` and `evaluate.other` on the same images, and writes a page below `storage.path`.

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
    order = _by_difference(first, second)
    found = Comparison(
        first,
        second,
        differences.settings(*made),
        differences.data(config, *made),
        differences.steps(config.tracking, *made),
        Interval("mIoU", first.score.miou, second.score.miou, low, high),
        [Interval(name, one, other, *between) for name, one, other, between in zip(names, *ious, bounds, strict=True)],
        [(first.images[n].sample_id, first.images[n].wrong, second.images[n].wrong) for n in order[:MOST]],
        "",
    )
    return found._replace(report_url=_write(config, found, order))


def _by_difference(first: Evaluation, second: Evaluation) -> list[int]:
    """Numbers of the images, that with the largest difference of wrong pixels first."""
    gaps = [abs(one.wrong - other.wrong) for one, other in zip(first.images, second.images, strict=True)]
    return sorted(range(len(gaps)), key=lambda number: -gaps[number])


def _row(each: Interval) -> tuple[str, ...]:
    known = not math.isnan(each.low)
    interval = f"{each.low:+.4f} to {each.high:+.4f}" if known else ""
    difference = "" if math.isnan(each.difference) else f"{each.difference:+.4f}"
    return each.name, page.figure(each.first), page.figure(each.second), difference, interval, each.verdict


def _write(config: Config, found: Comparison, order: Sequence[int]) -> str:
    """Writes page and record, unless this comparison has been written before; returns the page's address."""
    content = _record(found)
    key = f"{config.name}-comparison-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]}"
    store = open_store(f"{config.storage.path}/comparisons/{key}", config.storage)
    if not store.exists("comparison.json"):
        store.write("report.html", _page(config, key, found, order))
        store.write("comparison.json", (json.dumps(content, indent=1) + "\n").encode())
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
        "miou": found.miou._asdict(),
        "classes": [each._asdict() for each in found.classes],
        "images": found.images,
        "protocol": found.second.score.protocol,
    }


def _page(config: Config, key: str, found: Comparison, order: Sequence[int]) -> bytes:
    rows = [_row(each) for each in (found.miou, *found.classes)]
    nets, shown = (found.first.net, found.second.net), order[: config.evaluate.panel_images]
    picture = encode_png(panels.of_pairs(config, found.first.manifest, nets, shown))
    lists = [
        page.section(title, page.code("\n".join(lines) or "no difference"))
        for title, lines in (("Settings", found.settings), ("Data", found.data), ("Training", found.steps))
    ]
    return page.document(
        key,
        f"{page.headline(found.second.score, config.data.name)}; the first has {found.first.score.miou:.4f}",
        [
            page.table(("", ""), [("first", found.first.checkpoint.url), ("second", found.second.checkpoint.url)]),
            *lists,
            page.section("Scores", page.table(HEADINGS, rows), page.paragraph(BY_CHANCE)),
            page.picture("The images that differ most", picture),
            page.table(IMAGE_HEADINGS, found.image_rows()),
            page.section("Protocol", page.code(json.dumps(found.second.score.protocol, indent=1))),
        ],
    )

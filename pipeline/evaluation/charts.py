"""Charts for people: confusion matrices, the pixels of each class, the curves of a training and of a search."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.figures import BLUES, GAP, INK, MUTED, Image, blank_figure, colormap, drawn, short

SERIES = ("#174a7c", "#8fb8de")
"""Colours of the first and the second series of a chart."""
LABEL = 0.032
"""Height of a label, in units of the mIoU."""
MOST_TICKS = 6
"""Whole numbers below a small chart."""
Curve = Sequence[tuple[int, float]]
"""(step, value), by step."""


def confusion_picture(counts: NDArray[np.int64], names: Sequence[str]) -> Image:
    """uint8[H, W, 3] of int64[K, K] counts [truth, prediction]: percent of each true class's pixels, and the IoU next to it."""
    num_classes, names = len(names), [short(name) for name in names]
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    union = counts.sum(axis=0) + counts.sum(axis=1) - counts.diagonal()
    longest = max(len(name) for name in names)
    cell, left, top, bottom = 46, 46 + 7 * longest, max(74, 34 + 6 * longest), 34
    size = cell * num_classes
    width, height = left + size + 84, top + size + bottom
    figure = blank_figure(width, height)
    axes = figure.add_axes((left / width, bottom / height, size / width, size / height))
    axes.imshow(share, cmap=colormap(BLUES), vmin=0, vmax=1, aspect="auto")
    for i, j in np.ndindex(*counts.shape):
        if counts[i, j]:
            text = "<1" if share[i, j] < 0.005 else f"{100 * share[i, j]:.0f}"
            faint = MUTED if share[i, j] < 0.05 else INK
            axes.text(j, i, text, ha="center", va="center", size=9, color="white" if share[i, j] > 0.45 else faint)
    for i in range(num_classes):
        iou = f"{100 * counts[i, i] / union[i]:.1f}" if union[i] else "n/a"
        axes.text(num_classes - 0.2, i, iou, ha="left", va="center", size=10, color=INK, weight="bold")
    axes.text(num_classes - 0.2, num_classes - 0.4, "IoU %", ha="left", va="top", size=9, color=MUTED)
    axes.set_yticks(range(num_classes), names, parse_math=False)
    axes.set_xticks(range(num_classes), names, rotation=45, ha="left", rotation_mode="anchor", parse_math=False)
    axes.xaxis.tick_top()
    _bare(axes)
    axes.set_xticks(np.arange(num_classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(num_classes + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#e4e7eb", linewidth=1)
    axes.tick_params(which="both", length=0)
    figure.text(
        GAP / width, 1 - 12 / height, "rows: truth\ncolumns: prediction\n% of the row's pixels", size=8, color=MUTED, va="top"
    )
    return drawn(figure)


def class_scores(
    iou: Sequence[float], intervals: Sequence[tuple[float, float] | None], names: Sequence[str], level: float
) -> Image:
    """uint8[H, W, 3]: a bar for the IoU of each class that occurs, the best first, with its interval of `level` (0 to 1)."""
    order = sorted((k for k in range(len(names)) if iou[k] == iou[k]), key=lambda k: -iou[k])
    labels = [short(names[k]) for k in order]
    left, top, bar = 46 + 8 * max(map(len, labels), default=0), 40, 24
    width, height = left + 560, top + max(1, len(order)) * bar + GAP
    figure = blank_figure(width, height)
    axes = figure.add_axes((left / width, GAP / height, (width - left - 130) / width, (height - top - GAP) / height))
    axes.barh(range(len(order)), [iou[k] for k in order], height=0.7, color=SERIES[1])
    for place, k in enumerate(order):
        end = iou[k]
        if bounds := intervals[k]:
            axes.plot(bounds, (place, place), color=INK, linewidth=1.4, marker="|", markersize=7)
            end = max(end, bounds[1])
        axes.text(end, place, f"  {iou[k]:.4f}", va="center", size=9, color=MUTED)
    axes.set_yticks(range(len(order)), labels, parse_math=False)
    axes.set_ylim(max(1, len(order)) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    _bare(axes)
    figure.text(GAP / width, 1 - 24 / height, f"IoU, and its {100 * level:g} % interval over images", size=10, color=INK)
    return drawn(figure)


def reliability(bins: NDArray[np.float64], error: float) -> Image:
    """uint8[H, W, 3] of float64[3, M], the bins of a `Calibration`: accuracy over confidence, and below the pixels of each."""
    confidence, accuracy, _ = bins[:, bins[2] > 0]
    figure = blank_figure(520, 560, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot((0, 1), (0, 1), color=MUTED, linewidth=1, linestyle=(0, (4, 4)))
    above.plot(confidence, accuracy, color=SERIES[0], linewidth=1.8, marker="o", markersize=5)
    above.fill_between(confidence, confidence, accuracy, color=SERIES[1], alpha=0.5)
    above.set_title(f"expected calibration error {error:.4f}", size=10, color=INK, loc="left")
    above.set_ylabel("share of pixels that are right", color=INK)
    above.set_ylim(0, 1)
    below.bar((np.arange(bins.shape[1]) + 0.5) / bins.shape[1], bins[2], width=0.9 / bins.shape[1], color=SERIES[1])
    below.set_xlim(0, 1)
    below.set_xlabel("confidence (dashed: right as often as it says)", color=INK)
    below.set_ylabel("share of pixels", color=INK)
    for axes in (above, below):
        axes.grid(color="#e4e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        _bare(axes)
    return drawn(figure)


def class_histogram(counts: Mapping[str, tuple[Sequence[int], Sequence[int]]], names: Sequence[str]) -> Image:
    """uint8[H, W, 3]: bars of each class's share of the labelled pixels, one for each split; the most frequent class first.

    `counts`: split -> (pixels of each class, images that contain each class). The text behind a bar gives both.
    """
    splits, labels = list(counts), [short(name) for name in names]
    share = {split: np.array(pixels) / max(1, sum(pixels)) for split, (pixels, _) in counts.items()}
    order = np.argsort(-share[splits[0]], kind="stable")
    bar, left, top = 18, 46 + 8 * max(len(label) for label in labels), 54
    width, height = left + 560, top + len(labels) * (bar * len(splits) + 10) + GAP
    figure = blank_figure(width, height)
    axes = figure.add_axes((left / width, GAP / height, (width - left - 200) / width, (height - top - GAP) / height))
    room = len(splits) + 10 / bar  # of a class, in bars
    for i, split in enumerate(splits):
        places = np.arange(len(labels)) * room + i
        axes.barh(places, share[split][order], height=0.9, color=SERIES[i % 2], label=split)
        for place, number in zip(places, order, strict=True):
            text = f"{share[split][number]:.2%}  {counts[split][1][number]:,} images"
            axes.text(share[split][number], place, f"  {text}", va="center", size=8, color=MUTED)
    axes.set_yticks(np.arange(len(labels)) * room + (len(splits) - 1) / 2, [labels[i] for i in order], parse_math=False)
    axes.set_ylim(len(labels) * room - 10 / bar - 0.5, -0.5)
    axes.set_xticks([])
    _bare(axes)
    figure.text(GAP / width, 1 - 24 / height, "share of the labelled pixels, and images with the class", size=10, color=INK)
    figure.legend(loc="upper right", ncols=len(splits), frameon=False, fontsize=9)
    return drawn(figure)


def learning_curve(loss: Curve, miou: Curve) -> Image:
    """uint8[H, W, 3]: the training loss (left axis) and the mIoU of the validations (right axis) over the steps."""
    figure = blank_figure(1000, 420, layout="constrained")
    left = figure.add_subplot()
    right = left.twinx()
    left.plot(*_columns(loss), color=SERIES[1], linewidth=1.2)
    right.plot(*_columns(miou), color=SERIES[0], linewidth=1.8, marker="o", markersize=4)
    for step, value in miou[-1:]:
        right.annotate(f"{value:.4f}", (step, value), (-4, 6), textcoords="offset points", ha="right", size=10, color=INK)
    left.set_ylim(bottom=0)
    right.set_ylim(0, 1)
    left.set_xlabel("step", color=MUTED)
    left.set_ylabel("training loss", color=MUTED)
    right.set_ylabel("validation mIoU", color=SERIES[0])
    left.grid(color="#e4e7eb", linewidth=0.8)
    for axes in (left, right):
        _bare(axes)
    return drawn(figure)


def search_curves(curves: Mapping[str, Curve], rungs: Sequence[int], best: str) -> Image:
    """uint8[H, W, 3]: the mIoU of each trial of a search over its steps, and the rungs. `best`: the one in front."""
    figure = blank_figure(1000, 480, layout="constrained")
    axes = figure.add_subplot()
    for rung in rungs:
        axes.axvline(rung, color="#e4e7eb", linewidth=6)
    placed: list[tuple[int, float]] = []
    for name in sorted(curves, key=lambda name: (name != best, -curves[name][-1][1])):  # the best one has the first label
        front = name == best
        steps, values = _columns(curves[name])
        width = 2.2 if front else 1.2
        color = SERIES[0 if front else 1]
        axes.plot(steps, values, color=color, linewidth=width, marker="o", markersize=4, zorder=3 if front else 2)
        label = f"{name}  {max(values):.4f}" if front else name
        free = (values[-1] - down * LABEL / 4 for down in range(20))  # a name that is farther from its point would mislead
        heights = [each for each in free if all(step != steps[-1] or abs(each - other) >= LABEL for step, other in placed)]
        if not heights:
            continue
        height = heights[0]
        placed.append((steps[-1], height))
        axes.annotate(label, (steps[-1], height), (6, -3), textcoords="offset points", size=8, color=INK if front else MUTED)
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0, right=1.12 * max(step for curve in curves.values() for step, _ in curve))
    axes.set_xlabel("step; grey: trials are compared", color=MUTED)
    axes.set_ylabel("validation mIoU", color=SERIES[0])
    axes.grid(color="#e4e7eb", linewidth=0.8, axis="y")
    _bare(axes)
    return drawn(figure)


def search_settings(
    points: Mapping[str, Sequence[tuple[Any, float]]], log: Collection[str], notes: Mapping[str, str], rung: int
) -> Image:
    """uint8[H, W, 3]: for each searched setting, the mIoU of the trials over its value; the best one in front.

    `points`: setting -> (value, mIoU) of each trial, in the same order for all. `log`: settings with a logarithmic axis; the axis
    of values that are no numbers has one place for each. `notes`: setting -> what is said about it. `rung`: the step of the
    scores.
    """
    from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

    columns = min(3, len(points))
    rows = -(-len(points) // columns)
    figure = blank_figure(340 * columns, 300 * rows, layout="constrained")
    axes_of = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for axes, (name, pairs) in zip(axes_of, points.items(), strict=False):
        values, mious = [value for value, _ in pairs], [miou for _, miou in pairs]
        if not all(isinstance(value, int | float) for value in values):
            labels = sorted({str(value) for value in values})
            values = [labels.index(str(value)) for value in values]
            axes.set_xticks(range(len(labels)), [short(label) for label in labels], parse_math=False)
            axes.set_xlim(-0.5, len(labels) - 0.5)
        elif name in log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 30 * min(values) else (1, 3)))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_locator(NullLocator())
        elif all(isinstance(value, int) for value in values):
            whole = MaxNLocator(MOST_TICKS, integer=True)
            axes.xaxis.set_major_locator(whole if len({*values}) > MOST_TICKS else FixedLocator(sorted({*values})))
        best = int(np.argmax(mious))
        axes.margins(x=0.1)
        axes.set_axisbelow(True)
        axes.scatter(values, mious, s=36, color=SERIES[1], edgecolors="white", linewidths=0.8)
        axes.scatter(values[best], mious[best], s=60, color=SERIES[0])
        axes.set_ylim(0, 1)
        axes.set_xlabel(f"{name}{notes.get(name, '')}", color=INK, parse_math=False)
        axes.grid(color="#e4e7eb", linewidth=0.8)
        _bare(axes)
    for axes in axes_of[::columns]:
        axes.set_ylabel(f"validation mIoU at step {rung}", color=SERIES[0])
    for axes in axes_of[len(points) :]:
        axes.set_visible(False)
    return drawn(figure)


def _columns(curve: Curve) -> tuple[list[int], list[float]]:
    return [step for step, _ in curve], [value for _, value in curve]


def _bare(axes: Any) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, colors=INK, labelsize=9)

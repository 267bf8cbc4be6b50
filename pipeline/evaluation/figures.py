"""Pictures for people: colour maps of labels, panels of predictions, of crops and of attention.

matplotlib takes half a second to import, so it is imported only where something is drawn.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.images.codec import IGNORE

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Image = NDArray[np.uint8]
Map = NDArray[np.floating[Any]]
Pixel = tuple[int, int]
"""(row, column)"""

INK, MUTED, PAPER = "#1f2933", "#616e7c", "#ffffff"
WRONG, GREY = (230, 30, 40), (150, 150, 150)
TILE, MAX_TILE = 300, 640
"""Width of a panel's pictures in pixels: smaller ones are enlarged at least to TILE, larger ones reduced below MAX_TILE."""
GAP, DPI = 12, 100
BLOCK = 2**18
"""Pixels that are blended at once."""
LONGEST_NAME, MOST_IDS = 40, 12
"""Characters of a class's name in a picture; ids of classes in a caption."""
TITLES = ("image", "truth", "prediction", "error")
BLUES, HEAT = ("#ffffff", "#c9dcf0", "#5b9bd5", "#174a7c", "#0b2545"), ("#d1495b", "#ff8c1a", "#ffe066")
"""Colour scales of confusion matrices and of attention, from the lowest value to the highest."""


def colorize(label: Image, colors: ArrayLike) -> Image:
    """uint8[H, W] class ids -> uint8[H, W, 3] RGB by `colors` [K, 3]; ids without a colour, 255 among them, are black."""
    table = np.zeros((256, 3), np.uint8)
    palette = np.asarray(colors, np.uint8)
    table[: len(palette)] = palette
    table[IGNORE] = 0
    picture: Image = table[label]
    return picture


def overlay(image: Image, label: Image, colors: ArrayLike, alpha: float = 0.5) -> Image:
    """uint8[H, W, 3]: the image with the classes' colours over it, opacity `alpha`; ignored pixels keep the image."""
    done = image.copy()
    rows = max(1, BLOCK // image.shape[1])
    for start in range(0, len(image), rows):  # a large image in float64 would take 16 times its memory
        part, classes = done[start : start + rows], label[start : start + rows]
        blend = (1 - alpha) * part + alpha * colorize(classes, colors)
        part[classes != IGNORE] = blend.round().astype(np.uint8)[classes != IGNORE]
    return done


def error_map(image: Image, truth: Image, prediction: Image) -> Image:
    """uint8[H, W, 3]: wrong pixels red over a dimmed grey image, ignored pixels flat grey."""
    dimmed = 60 + 0.45 * image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    picture: Image = dimmed.astype(np.uint8)
    picture[(truth != prediction) & (truth != IGNORE)] = WRONG
    picture[truth == IGNORE] = GREY
    return picture


def panel(
    samples: Sequence[tuple[Image, Image, Image]], colors: ArrayLike, names: Sequence[str], sample_ids: Sequence[str] = ()
) -> Image:
    """uint8[H, W, 3]: one row per sample (image uint8[h, w, 3], truth and prediction uint8[h, w]), and a legend below.

    Columns: image, truth, prediction, error; the id of each sample below its image, if given. Pictures are scaled by whole
    factors only, so no class is invented at a border.
    """
    factor = _factor(max(truth.shape[1] for _, truth, _ in samples))
    rows = []
    for number, (image, truth, prediction) in enumerate(samples):
        tiles = [image, colorize(truth, colors), colorize(prediction, colors), error_map(image, truth, prediction)]
        counted = truth != IGNORE
        share = (truth != prediction)[counted].mean() if counted.any() else 0.0
        below = short(sample_ids[number]) if sample_ids else ""
        rows.append(([_resize(tile, factor) for tile in tiles], [below, "", "", f"{share:.1%} wrong"]))
    table = _table(TITLES, rows)
    return np.concatenate([table, _legend(table.shape[1], colors, names)])


def pairs(
    samples: Sequence[tuple[Image, Image, Image, Image]], colors: ArrayLike, names: Sequence[str], sample_ids: Sequence[str]
) -> Image:
    """uint8[H, W, 3]: one row per sample (image uint8[h, w, 3], truth and two predictions uint8[h, w]), and a legend below."""
    factor = _factor(max(truth.shape[1] for _, truth, _, _ in samples))
    rows = []
    for sample_id, (image, truth, *predictions) in zip(sample_ids, samples, strict=True):
        counted = truth != IGNORE
        wrong = [(truth != each)[counted].mean() if counted.any() else 0.0 for each in predictions]
        tiles = [image, *(colorize(each, colors) for each in (truth, *predictions))]
        rows.append(
            ([_resize(tile, factor) for tile in tiles], [short(sample_id), "", *(f"{share:.1%} wrong" for share in wrong)])
        )
    table = _table(("image", "truth", "first", "second"), rows)
    return np.concatenate([table, _legend(table.shape[1], colors, names, wrong=False)])


def training_batch(samples: Sequence[tuple[Image, Image]], colors: ArrayLike, names: Sequence[str]) -> Image:
    """uint8[H, W, 3]: what the network is fed: one row per crop (image uint8[h, w, 3], classes uint8[h, w]), and a legend below.

    Columns: crop, the classes over it, the classes. The caption lists the ids in it.
    """
    factor = _factor(max(label.shape[1] for _, label in samples))
    rows = []
    for image, label in samples:
        tiles = [image, overlay(image, label, colors), colorize(label, colors)]
        ids = np.unique(label).tolist()
        shown = " ".join(map(str, ids[:MOST_IDS])) + (" ..." if len(ids) > MOST_IDS else "")
        rows.append(([_resize(tile, factor) for tile in tiles], ["", "", f"ids {shown}"]))
    table = _table(("crop", "classes over it", "classes"), rows)
    return np.concatenate([table, _legend(table.shape[1], colors, names, wrong=False)])


def attention_panel(
    samples: Sequence[tuple[Image, Pixel, Sequence[Map]]], note: str = "", *, align_corners: bool = True
) -> Image:
    """uint8[H, W, 3]: one row per sample (image uint8[h, w, 3], pixel, maps): where the pixel attends; `note` below each image.

    `maps` are float[h', w'], shares of the pixel's attention: one per pass, then one of all passes together, which is not drawn
    if there is only one pass. Every sample has the same number of maps. A map is drawn over the dimmed image, brightest at its
    largest value, which the caption gives. Brightness follows the square root, or most of a cross would be too dark. The maps are
    placed over the image as the network's scores are (`align_corners`).
    """
    num_passes = len(samples[0][2]) - 1
    titles = ["pixel", *(f"pass {i + 1}" for i in range(num_passes))]
    if num_passes > 1:
        titles.append("both passes" if num_passes == 2 else f"all {num_passes} passes")
    factor = _factor(max(image.shape[1] for image, _, _ in samples))
    rows = []
    for image, pixel, maps in samples:
        shown = maps[: len(titles) - 1]
        tiles = [_resize(tile, factor) for tile in (image, *(_heat(image, one, align_corners) for one in shown))]
        row, column = (p * factor + factor // 2 if factor > 0 else p // -factor for p in pixel)
        rows.append(([_ring(tile, (row, column)) for tile in tiles], [note, *(f"brightest {one.max():.1%}" for one in shown)]))
    return _table(titles, rows)


def notable_pixel(label: Image, rank: int = 0) -> Pixel:
    """A pixel worth showing: of the rarest class in uint8[H, W], the one nearest to that class's centre of gravity.

    `rank` 1 takes the next rarest class and so on; after the most frequent class comes the rarest again. Ties between classes go
    to the lowest id, ties between pixels to the first row, then the first column. If everything is ignored, the pixel is the
    middle of the picture.
    """
    counts = np.bincount(label[label != IGNORE], minlength=1)
    if not counts.any():
        return label.shape[0] // 2, label.shape[1] // 2
    present = np.flatnonzero(counts)
    rarest_first = present[counts[present].argsort(kind="stable")]
    places = np.argwhere(label == rarest_first[rank % len(present)])
    row, column = places[((places - places.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return int(row), int(column)


def _heat(image: Image, attention: Map, align_corners: bool) -> Image:
    """The map, enlarged to the image by nearest cell, over the image in dimmed grey."""
    sides = list(zip(attention.shape, image.shape[:2], strict=True))
    rows, columns = (np.rint(np.linspace(0, cells - 1, pixels)).astype(int) for cells, pixels in sides)
    if not align_corners:  # each cell covers an equal part of the pixels
        rows, columns = ((2 * np.arange(pixels) + 1) * cells // (2 * pixels) for cells, pixels in sides)
    strength = np.sqrt(attention / attention.max())[np.ix_(rows, columns)]
    dimmed = 0.35 * image.mean(axis=2, keepdims=True)
    alpha = strength[..., None]
    blend = (1 - alpha) * dimmed + alpha * 255 * colormap(HEAT)(strength)[..., :3]
    picture: Image = blend.round().astype(np.uint8)
    return picture


def _ring(tile: Image, pixel: Pixel) -> Image:
    """The tile with a ring around the pixel, white with a dark edge so that it shows on any background."""
    rows, columns = np.ogrid[: tile.shape[0], : tile.shape[1]]
    off = abs(np.hypot(rows - pixel[0], columns - pixel[1]) - 10)
    ringed = tile.copy()
    ringed[off < 3] = 0
    ringed[off < 1.5] = 255
    return ringed


def _table(titles: Sequence[str], rows: Sequence[tuple[Sequence[Image], Sequence[str]]]) -> Image:
    """Rows of tiles of equal height, each with its caption, below the titles of the columns."""
    column = max(tiles[0].shape[1] for tiles, _ in rows)
    width = len(titles) * (column + GAP) + GAP
    edges = [GAP + i * (column + GAP) for i in range(len(titles))]
    strips = [_text_strip(width, 44, dict(zip(edges, titles, strict=True)), size=17, color=INK, weight="bold")]
    for tiles, captions in rows:
        strip = np.full((tiles[0].shape[0], width, 3), 255, np.uint8)
        for left, tile in zip(edges, tiles, strict=True):
            strip[:, left : left + tile.shape[1]] = tile
        strips += [strip, _text_strip(width, 34, dict(zip(edges, captions, strict=True)), size=13, color=MUTED)]
    return np.concatenate(strips)


def _factor(width: int) -> int:
    """Whole number to multiply a picture's sides by; negative: to divide by."""
    return -(-TILE // width) if width < TILE else -width // MAX_TILE


def _resize(picture: Image, factor: int) -> Image:
    if factor > 0:
        return picture.repeat(factor, axis=0).repeat(factor, axis=1)
    return picture[::-factor, ::-factor]


def _text_strip(width: int, height: int, texts: Mapping[int, str], *, size: int, color: str, weight: str = "normal") -> Image:
    """One line of text: {left edge in pixels: text}."""
    figure = blank_figure(width, height)
    for left, text in texts.items():
        figure.text(left / width, 0.42, text, size=size, color=color, weight=weight, va="center", parse_math=False)
    return drawn(figure)


def _legend(width: int, colors: ArrayLike, names: Sequence[str], *, wrong: bool = True) -> Image:
    from matplotlib import patches

    entries = [*zip(np.asarray(colors) / 255, names, strict=False), (np.zeros(3), "ignored")]
    entries += [(np.array(WRONG) / 255, "wrong")] if wrong else []
    entries = [(color, short(name)) for color, name in entries]
    cell, line = 50 + 11 * max(len(name) for _, name in entries), 34
    per_line = max(1, (width - 2 * GAP) // cell)
    height = line * -(-len(entries) // per_line) + 16
    figure = blank_figure(width, height)
    for i, (color, name) in enumerate(entries):
        x, y = GAP + (i % per_line) * cell, height - line * (i // per_line) - 25
        corner, side = (x / width, (y - 9) / height), 18
        box = patches.Rectangle(
            corner, side / width, side / height, transform=figure.transFigure, facecolor=color, edgecolor=MUTED, lw=0.5
        )
        figure.add_artist(box)
        figure.text((x + 27) / width, y / height, name, size=13, color=INK, va="center_baseline", parse_math=False)
    return drawn(figure)


def short(name: str) -> str:
    """A name of at most LONGEST_NAME characters."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 4]} ..."


@cache
def colormap(scale: tuple[str, ...]) -> "Colormap":
    """Colours between those of `scale`, for values from 0 to 1."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("scale", scale)


def blank_figure(width: float, height: float, layout: Literal["constrained"] | None = None) -> "Figure":
    """An empty figure of `width` x `height` pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=PAPER, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def drawn(figure: "Figure") -> Image:
    """uint8[H, W, 3] of a figure."""
    canvas: Any = figure.canvas  # matplotlib's canvas has no types
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # it draws a box, in every picture again
        canvas.draw()
    return np.array(canvas.buffer_rgba(), np.uint8)[..., :3]

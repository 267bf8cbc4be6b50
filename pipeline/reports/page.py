"""The parts of an HTML page. Texts are escaped; pictures are in the file; it has no scripts and loads nothing."""

import base64
import html
from collections.abc import Sequence

import torch

from pipeline.evaluation.metrics import Score, counted, figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 1200px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em; line-height: 1.3 } h2 { font-size: 1.15em; margin-top: 2em }
h1, p { overflow-wrap: anywhere }
table { display: block; overflow-x: auto; border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .15em 1em .15em .4em; text-align: left; border-bottom: 1px solid #e4e7eb; vertical-align: top }
td:not(:last-child) { white-space: nowrap }
img { max-width: 100% } pre { background: #f5f7fa; padding: 1em; overflow-x: auto; white-space: pre-wrap }
"""


def document(title: str, headline: str, parts: Sequence[str]) -> bytes:
    """The file. `headline` is its first line, as text; `parts` are HTML."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    body = "\n".join([f"<h1>{html.escape(headline)}</h1>", *parts])
    text = f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'
    return text.encode(errors="backslashreplace")


def paragraph(text: str) -> str:
    """A text as a paragraph."""
    return f"<p>{html.escape(text)}</p>"


def section(title: str, *parts: str) -> str:
    """Parts in HTML under a heading."""
    return "\n".join([f"<h2>{html.escape(title)}</h2>", *parts])


def code(text: str) -> str:
    """Lines in a fixed-width font, as they are."""
    return f"<pre>{html.escape(text)}</pre>"


def picture(title: str, png: bytes) -> str:
    """A picture, the bytes of a PNG file, under its title."""
    data = base64.b64encode(png).decode()
    return section(title, f"<img alt='{html.escape(title, quote=True)}' src='data:image/png;base64,{data}'>")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table. A share in the second column, such as 0.71 or 71 %, is drawn behind its figure."""
    lines = ["<tr>" + "".join(f"<th>{html.escape(heading)}</th>" for heading in headings) + "</tr>"]
    for row in rows:
        cells = [f"<td{_bar(cell) if column == 1 else ''}>{html.escape(cell)}</td>" for column, cell in enumerate(row)]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _bar(cell: str) -> str:
    try:
        share = float(cell.rstrip(" %")) * (1 if cell.endswith("%") else 100)
    except ValueError:
        return ""
    return f' style="background: linear-gradient(90deg, #c9ddf0 {share:.1f}%, transparent {share:.1f}%); min-width: 9em"'


def headline(score: Score, data: str) -> str:
    """`mIoU 0.7134 on 10 images of val of NAME`, with what speaks against it and its interval."""
    notes = [score.caveat] if score.caveat else []
    if score.interval:
        notes.append(f"{100 * score.level:g} % interval over images {shown_interval(score.interval)}")
    images = f"{counted(score.num_images)} of {score.protocol['split']} of {data}"
    return f"mIoU {score.miou:.4f} on {images}" + (f" ({', '.join(notes)})" if notes else "")


def shown_interval(bounds: tuple[float, float] | None) -> str:
    """`0.7012 to 0.7290`; empty for None."""
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else ""


def figures(score: Score) -> str:
    """The tables of a score: each class, the best first, and over all classes."""
    pixels = torch.tensor(score.counts).sum(1)
    columns = zip(score.matrix.iou().tolist(), score.matrix.class_accuracy().tolist(), score.boundary.iou().tolist(), strict=True)
    rows = [
        [name, *map(figure, values), f"{number / max(1, int(pixels.sum())):.2%}"]
        for name, values, number in zip(score.class_names, columns, pixels.tolist(), strict=True)
    ]
    headings = ["class", "IoU", "accuracy", "boundary IoU", "pixels"]
    if score.class_intervals:
        headings.append(f"{100 * score.level:g} % interval of the IoU")
        rows = [[*row, shown_interval(bounds)] for row, bounds in zip(rows, score.class_intervals, strict=True)]
    rows.sort(key=lambda row: (row[1] != "absent", row[1]), reverse=True)
    overall = [(name, figure(value), note) for name, value, note in score.summary()]
    return f"{table(headings, rows)}\n<br>\n{table(('over all classes', '', ''), overall)}"

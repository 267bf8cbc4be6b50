"""Pictures of the pages that users see: MLflow's, and that of `jobs.serve`, in a real Chromium.

Each is a PNG of a part of the page. It raises AssertionError if that part names this machine, its user or a folder of it.
"""

import json
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Locator, Page, sync_playwright

from infra.processes import free_port
from pipeline.tracking.provenance import user
from tests.support.browser import CHROMIUM, QUIET

WIDTH, MENU, MARGIN = 1000, 200, 16
"""Pixels of a picture, of MLflow's menu at its left, which is left out, and below what is shown."""
WIDE, WIDER, SERVED = 1300, 1650, 800
"""Pixels across: of pages with wide tables, which are made smaller afterwards, and of that of the service."""
VIEW = "workflowType=machine_learning"
TEXTS = """({x, y, width, height}) => {
    const texts = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), range = document.createRange();
    while (walker.nextNode()) {
        range.selectNode(walker.currentNode);
        const seen = [...range.getClientRects()].some(box => box.width && box.left < x + width && box.right > x
            && box.top < y + height && box.bottom > y);
        if (seen) texts.push(walker.currentNode.data);
    }
    return texts.join("\\n");
}"""
"""The texts of a page that lie in a part of it."""


@contextmanager
def browser() -> Iterator[Page]:
    """A page of MLflow or of the service."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = chromium.new_page()
        page.set_default_timeout(90_000)  # on two busy cores the first page takes long
        # Without it, MLflow opens a panel over the right third of the first page.
        page.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
        yield page
        chromium.close()


def overview(page: Page, run: str, width: int = WIDE) -> bytes:
    """The whole description of a run. `run`: the address of its page, as `pipeline.tracking.runs.page` gives it."""
    _open(page, run, width)
    page.get_by_text("Show more", exact=True).click()
    beside = page.get_by_text("About this run").bounding_box()  # who has started it, and where
    assert beside
    return _shot(page, page.get_by_text("Show less", exact=True), width=min(width, round(beside["x"]) - MENU - MARGIN))


def charts(page: Page, run: str, metrics: str) -> bytes:
    """The charts of the metrics that a regular expression finds."""
    _open(page, run.replace("?", "/model-metrics?"))
    page.get_by_placeholder("Search metric charts").fill(metrics)
    plots = page.locator(".js-plotly-plot")
    plots.locator(".main-svg").first.wait_for()
    page.wait_for_timeout(3000)  # lines are animated
    return _shot(page, plots.last, below=60)


def picture(page: Page, run: str, name: str) -> bytes:
    """An artifact of a run, among its other files."""
    _open(page, run.replace("?", f"/artifacts/{name}?"))
    shown = page.locator("img[src^='blob:'], img[src*='get-artifact']").first
    shown.wait_for()
    return _shot(page, shown)


def run_list(page: Page, run: str, columns: Mapping[str, int]) -> bytes:
    """The list of the runs beside a run, whose children are shown. `columns`: such as `metrics.val/miou` -> pixels."""
    experiment = run.partition("/runs/")[0]
    _open(page, f"{experiment}/runs?{VIEW}", WIDE)
    page.locator(".ag-row").first.wait_for()
    state = f'MLflowLocalStorage-1.1-ExperimentPage-["{experiment.rpartition("/")[2]}"]-ReactComponentState'
    widths = {re.sub(r"\.(.*)", r".`\1`", column): width for column, width in columns.items()}
    chosen = json.dumps({
        "selectedColumns": [*widths],
        "columnOrder": [*widths],
        "columnWidths": widths,
        "runsExpanded": {urlsplit(run.replace("#/", "")).path.rpartition("/")[2]: True},
    })  # fmt: skip
    page.evaluate(f"""localStorage.setItem('{state}', JSON.stringify(
        Object.assign(JSON.parse(localStorage.getItem('{state}')), {chosen})))""")
    page.reload()
    page.locator(".ag-row").nth(2).wait_for()
    return _shot(page, page.locator(".ag-center-cols-container"), width=WIDE)


def registered(page: Page, server: str, name: str, version: str) -> bytes:
    """A version of a registered model, without its tags."""
    _open(page, f"{server}/#/models/{name}/versions/{version}?{VIEW}")
    page.get_by_role("button", name="Tags").click()
    for part in ("Inputs", "Outputs"):
        page.get_by_text(part).click()
    return _shot(page, page.get_by_text("binary", exact=True).nth(1))


def served(page: Page, model: str, image: bytes) -> bytes:
    """The page of `jobs.serve` with an image. `model`: what it takes."""
    with _service(model) as url, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "image.png").write_bytes(image)
        _open(page, url, SERVED - MENU)
        page.set_input_files("#file", Path(folder) / "image.png")
        page.locator("#result").wait_for()
        return _shot(page, page.locator("#result"), left=0, width=SERVED)


@contextmanager
def _service(model: str) -> Iterator[str]:
    """`jobs.serve` on a free port: its address once it answers."""
    command = [sys.executable, "-m", "jobs.serve", model, "--port", str(free_port(8000))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("metrics"):
                break
        page = [line.split()[1] for line in lines if line.startswith("page")]
        assert page, "".join(lines)
        yield page[0]
    finally:
        process.terminate()
        process.communicate(timeout=60)


def _open(page: Page, url: str, width: int = WIDTH) -> None:
    """Opens a page that is tall, because MLflow draws a chart when it comes into view."""
    page.set_viewport_size({"width": MENU + width, "height": 2400})
    page.goto(url)


def _shot(page: Page, last: Locator, *, left: int = MENU, width: int = WIDTH, below: int = MARGIN) -> bytes:
    """The page from its top to the lower edge of its last part."""
    last.wait_for()
    box = last.bounding_box()
    assert box
    clip = {"x": left, "y": 0, "width": width, "height": round(box["y"] + box["height"]) + below}
    shown = page.evaluate(TEXTS, clip)
    for private in (user(), socket.gethostname(), str(Path.home()), str(Path.cwd())):
        assert not re.search(rf"(?<!\w){re.escape(private)}(?!\w)", shown), f"{private} is on the picture"
    hosts = {urlsplit(url).hostname for url in re.findall(r"https?://\S+", shown)}
    assert hosts <= {"127.0.0.1", "localhost"}, hosts
    return page.screenshot(clip=clip)  # type: ignore[arg-type]

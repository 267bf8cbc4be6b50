"""Opens a run's pages in a real Chromium: `python -m tests.support.browser BASE_URL RUN_ID EXPERIMENT_ID FOLDER [METRIC ...]`.

Saves charts.png, picture.png and runs.png to FOLDER; fails on a page error, a request that leaves this machine, a missing
metric name or a picture that did not load.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]


def screenshot(
    base_url: str,
    run_id: str,
    experiment_id: str,
    folder: Path,
    metrics: Sequence[str] = ("train/loss",),
    picture: str = "panel.png",
) -> list[Path]:
    """PNG files of the run's charts, of its artifact `picture` and of the table of runs. Raises AssertionError."""
    folder.mkdir(parents=True, exist_ok=True)
    errors: list[str] = []
    outside: set[str] = set()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        # Tall, because MLflow draws a chart when it comes into view.
        page = browser.new_page(viewport={"width": 1500, "height": 2400})
        page.set_default_timeout(90_000)  # on two busy cores the first page takes long
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: _note_outside(request.url, outside))
        run = f"{base_url}/#/experiments/{experiment_id}/runs/{run_id}"
        shots = [
            _charts(page, f"{run}/model-metrics", folder / "charts.png", metrics),
            _picture(page, f"{run}/artifacts/{picture}", folder / "picture.png"),
            _runs(page, f"{base_url}/#/experiments/{experiment_id}/runs", folder / "runs.png"),
        ]
        browser.close()
    assert not errors, f"page errors: {errors}"
    assert not outside, f"requests that leave this machine: {sorted(outside)}"
    return shots


def _charts(page: Page, url: str, file: Path, metrics: Sequence[str]) -> Path:
    page.goto(url)
    page.locator(".js-plotly-plot .main-svg").first.wait_for()
    close_assistant(page)
    for metric in metrics:
        page.get_by_text(metric.rpartition("/")[2], exact=True).first.wait_for()
    page.wait_for_timeout(1500)  # lines are animated
    page.screenshot(path=file)
    return file


def _picture(page: Page, url: str, file: Path) -> Path:
    page.goto(url)
    _wait_for_picture(page)
    close_assistant(page)
    page.screenshot(path=file)
    return file


def _runs(page: Page, url: str, file: Path) -> Path:
    page.goto(url)
    page.get_by_role("table").or_(page.locator(".ag-root")).first.wait_for()
    close_assistant(page)
    page.wait_for_timeout(1500)
    page.screenshot(path=file)
    return file


def close_assistant(page: Page) -> None:
    """Closes the panel that MLflow opens over the right third of the page at the first visit."""
    close = page.get_by_role("button", name="Close", exact=True)
    if close.count():
        close.first.click()
        close.first.wait_for(state="detached")


def _wait_for_picture(page: Page) -> None:
    """Waits until the run's picture has loaded; the page's own pictures are inlined as data:."""
    ours = "[...document.images].filter(image => !image.src.startsWith('data:'))"
    page.wait_for_function(
        f"() => {{ const all = {ours}; return all.length && all.every(i => i.complete && i.naturalWidth > 0) }}"
    )


def _note_outside(url: str, outside: set[str]) -> None:
    parts = urlsplit(url)
    if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1":
        outside.add(url)


if __name__ == "__main__":
    for shot in screenshot(*sys.argv[1:4], Path(sys.argv[4]), sys.argv[5:] or ("train/loss",)):
        print(shot)

"""Makes the README's pictures from a real run: `. .stack/env && python -m tests.support.readme_pictures CONFIG [FOLDER]`.

After `make demo`, for its configuration. Saves panel.jpg, learning_curve.png and mlflow.png to FOLDER, by default docs/img, each
of at most 150 kB. The last one is MLflow's page of the run in a real Chromium.
"""

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from pipeline.checkpoints import checkpoint
from pipeline.config.load import load
from pipeline.storage.store import open_store
from pipeline.tracking.client import tracking_uri
from pipeline.tracking.runs import page as page_of
from pipeline.training.metric_logs import PICTURES
from tests.support.browser import CHROMIUM, QUIET, close_assistant

WIDTH, MOST_BYTES = 1000, 150_000
ROWS, LEGEND = 0.48, 50
"""Of a panel of four images: the share of its height that has two, and the pixels of its legend."""


def two_rows(png: bytes) -> Image.Image:
    """The first two images of a panel, and its legend."""
    panel = Image.open(io.BytesIO(png)).convert("RGB")
    top = round(ROWS * panel.height)
    picture = Image.new("RGB", (panel.width, top + LEGEND), "white")
    picture.paste(panel.crop((0, 0, panel.width, top)))
    picture.paste(panel.crop((0, panel.height - LEGEND, *panel.size)), (0, top))
    return picture


def save(picture: Image.Image, file: Path) -> None:
    """Saves the picture with at most WIDTH columns: photographs as JPEG, the others with 64 colours."""
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    if file.suffix == ".jpg":
        picture.save(file, quality=85, subsampling=0)
    else:
        picture.quantize(64).save(file, optimize=True)
    print(file, file.stat().st_size)
    assert file.stat().st_size <= MOST_BYTES, "cut more of the picture"


def charts(run: str) -> bytes:
    """MLflow's charts of loss and mIoU; `run`: the address of the run's page."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1500, "height": 900})
        page.set_default_timeout(90_000)
        page.goto(run.replace("?", "/model-metrics?"))
        page.locator(".js-plotly-plot .main-svg").first.wait_for()
        close_assistant(page)
        page.get_by_placeholder("Search metric charts").fill("loss$|miou")
        page.wait_for_timeout(3000)  # lines are animated
        shot = page.screenshot()
        browser.close()
    return shot


def main(words: list[str]) -> None:
    config, folder = load(words[0]), Path(words[1] if len(words) > 1 else "docs/img")
    store = open_store(f"{config.runs_url}/{config.run_key}", config.storage)
    newest = checkpoint.newest_progress(store)
    assert newest is not None, "no run: make demo"
    folder.mkdir(parents=True, exist_ok=True)
    shot = charts(page_of(tracking_uri(config.tracking), newest["run_id"]))
    curve = Image.open(io.BytesIO(store.read(f"{PICTURES}/learning_curve.png")))
    save(two_rows(store.read(f"{PICTURES}/panel.png")), folder / "panel.jpg")
    save(curve.convert("RGB"), folder / "learning_curve.png")
    save(Image.open(io.BytesIO(shot)).convert("RGB"), folder / "mlflow.png")


if __name__ == "__main__":
    main(sys.argv[1:])

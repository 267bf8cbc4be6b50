"""Makes the pictures of README and docs from real runs, each of at most 150 kB, and saves them to docs/img.

    . .stack/env && python -m tests.support.readme_pictures CONFIG [SEARCH [dotted.key=value ...]]

After `make demo`, for its configuration, whose model must be registered. SEARCH is the configuration of a search that has ended,
such as jobs/configs/demo_tune.yaml, with its overrides; without it runs.png and search.png stay as they are. Look at each picture
before you commit it.
"""

import io
import sys
from pathlib import Path

from PIL import Image

from pipeline.config.load import load, override
from pipeline.data.manifest import open_data
from pipeline.data.shards import Row
from pipeline.loading.samples import open_samples
from pipeline.storage.store import open_store
from pipeline.tracking import runs
from pipeline.tracking.client import connect, tracking_uri
from pipeline.training.metric_logs import PICTURES
from tests.support import pages

FOLDER, WIDTH, MOST_BYTES = Path("docs/img"), 1000, 150_000
ROWS, LEGEND = 0.48, 50
"""Of a panel of four images: the share of its height that has two, and the pixels of its legend."""


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def two_rows(png: bytes) -> Image.Image:
    """The first two images of a panel, and its legend."""
    panel = opened(png)
    top = round(ROWS * panel.height)
    picture = Image.new("RGB", (panel.width, top + LEGEND), "white")
    picture.paste(panel.crop((0, 0, panel.width, top)))
    picture.paste(panel.crop((0, panel.height - LEGEND, *panel.size)), (0, top))
    return picture


def save(picture: Image.Image, name: str) -> None:
    """Saves the picture with at most WIDTH columns: photographs as JPEG, the others with 64 colours."""
    file = FOLDER / name
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    if file.suffix == ".jpg":
        for quality in (85, 75, 65):
            picture.save(file, quality=quality, subsampling=0)
            if file.stat().st_size <= MOST_BYTES:
                break
    else:
        picture.quantize(64).save(file, optimize=True)
    print(file, file.stat().st_size)
    assert file.stat().st_size <= MOST_BYTES, "cut more of the picture"


def main(words: list[str]) -> None:
    config = load(words[0])
    server = tracking_uri(config.tracking)
    done = runs.find_run(config)
    assert done, "no run: make demo"
    store = open_store(f"{config.runs_url}/{config.run_key}", config.storage)
    save(two_rows(store.read(f"{PICTURES}/panel.png")), "panel.jpg")
    save(opened(store.read(f"{PICTURES}/learning_curve.png")), "learning_curve.png")
    run = runs.page(server, done.info.run_id)
    name = str(config.tracking.register_as)
    champion = connect(server).get_model_version_by_alias(name, "champion")
    with pages.browser() as page:
        save(opened(pages.overview(page, run)), "run.png")
        save(opened(pages.charts(page, run, "loss$|miou")), "charts.png")
        save(opened(pages.picture(page, run, "panel.png")), "images.jpg")
        save(opened(pages.registered(page, server, name, champion.version)), "registry.png")
        if len(words) > 1:
            search = load(words[1], words[2:])
            # A search is found by its own key.
            parent = runs.find_run(override(search, {"train.resume": search.search_key}))
            assert parent, "no such search: python -m jobs.submit tune ..."
            found = runs.page(server, parent.info.run_id)
            columns = {"attributes.Dataset": 260, "metrics.val/miou": 100} | {f"params.{key}": 160 for key in search.tune.space}
            save(opened(pages.run_list(page, found, columns)), "runs.png")
            save(opened(pages.overview(page, found, pages.WIDER)), "search.png")
        image = next(open_samples(config, open_data(config), "val").ahead([0]))
        assert isinstance(image, Row)
        save(opened(pages.served(page, f"models:/{name}@champion", image.image)), "serve.jpg")


if __name__ == "__main__":
    main(sys.argv[1:])

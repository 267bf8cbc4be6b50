"""Whole commands with any names: each reads and writes exactly its own keys, beside names that look alike."""

import hashlib
import tempfile
import unicodedata
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
import ray.train
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ccnet import build_ccnet
from jobs import predict, prepare, train
from jobs.cli import main
from pipeline.checkpoints import checkpoint
from pipeline.checkpoints.files import MANIFEST, PROGRESS
from pipeline.config.config import Config
from pipeline.config.load import load
from pipeline.data.index import digest
from pipeline.data.manifest import open_data
from pipeline.data.prepare import _written
from pipeline.data.source.record import record_key
from pipeline.delivery.record import CARD, RECORD, WEIGHTS
from pipeline.evaluation.metrics import Score
from pipeline.evaluation.results import LIST
from pipeline.images.codec import encode_png
from pipeline.loading.samples import open_samples
from pipeline.reports.training import PAGE
from pipeline.storage.lease import held
from pipeline.storage.store import Store
from pipeline.training.checkpointing import CheckpointSaver
from pipeline.training.run import Run
from tests.pipeline.storage.test_store_names import PARTS, PATTERN
from tests.support.buckets import make_bucket
from tests.support.checkpoints import trained
from tests.support.folders import noise, rows_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("credentials")]

CONFIG = "jobs/configs/demo.yaml"
CLASSES = ("road", "car")
MODEL = {"backbone": "small", "num_classes": 2, "recurrence": 2, "auxiliary": False}
TINY = ["data.layout=folders", "data.crop_size=17", "train.workers=1", "train.global_batch=2", "train.keep_checkpoints=1"]
PLAIN = st.from_regex(r"\A[a-z0-9][a-z0-9_-]{0,9}\Z")
PICTURES = ("training_batch", "class_histogram", "panel", "worst_images", "attention", "confusion_matrix", "learning_curve")
STEMS = PARTS.filter(lambda stem: not stem.startswith(".") and len(stem.encode()) < 180)


def looks_like(name: str) -> list[str]:
    """Names that a pattern, a prefix, a URL, a form of Unicode or blanks cut off would take for this one."""
    forms = (unicodedata.normalize(form, name) for form in ("NFC", "NFD", "NFKC"))
    found = {f"{name}1", f"x{name}", name[:-1], PATTERN.sub("", name), PATTERN.sub("x", name), name.strip(), name.lower(), *forms}
    found |= {urllib.parse.unquote(name), urllib.parse.unquote_plus(name), urllib.parse.quote(name)}
    found |= {name.split(mark)[0] for mark in "#?*[{%&+'\" "}
    found = {one for one in found if "/" not in one and one.isprintable() and len(one.encode()) < 250}
    return sorted(found - {name, "", ".", ".."})


def hashes(store: Store) -> dict[str, str]:
    """Key -> sha256 of everything that a store holds."""
    keys = store.list()
    return {key: hashlib.sha256(data).hexdigest()
            for key, data in zip(keys, store.read_ranges([(key, 0, None) for key in keys]), strict=True)}  # fmt: skip


def write_source(store: Store, stems: Sequence[str]) -> dict[str, bytes]:
    """Writes an image and a label for each stem into both splits; returns stem -> image of the validation."""
    images = {}
    for number, stem in enumerate(stems):
        for split in ("train", "val"):
            images[stem] = encode_png(noise(2 * number + (split == "val")))
            store.write(f"images/{split}/{stem}.png", images[stem])
            store.write(f"masks/{split}/{stem}.png", encode_png(rows_of(0, 1)))
    store.write("classes.yaml", "\n".join(f"- {name}" for name in CLASSES).encode())
    return images


class Place:
    """A storage under an odd name beside others that look like it, and a source of odd names."""

    def __init__(self, root: Store, name: str, stems: Sequence[str], data: str, run: str, *words: str) -> None:
        self.root, self.stems = root, stems
        self.store, source = root.join(name), root.join("source", name)
        self.words = [*TINY, f"name={run}", f"storage.path={self.store.root}", f"data.name={data}", f"data.source={source.root}",
                      f"predict.images={source.url('images/val')}", *words]  # fmt: skip
        if root.endpoint:
            self.words.append(f"storage.endpoint={root.endpoint}")
        self.config = load(CONFIG, self.words)
        self.run = self.store.join("runs", self.config.run_key)
        self.images = write_source(source, stems)
        self._write_others(name, data)
        self.before = hashes(root)

    def _write_others(self, name: str, data: str) -> None:
        key, (stem, *_) = self.config.run_key, self.stems
        model = f"step-000001/{checkpoint.MODEL}"
        below = (f"data/{data}/{MANIFEST}", f"runs/{key}/{model}", f"predictions/{key}/{stem}.png")
        beside = (f"data/{data}1/{MANIFEST}", f"runs/{key}1/{model}", f"runs/{key[:-1]}/{model}", f"predictions/{key}1/a.png")
        others = [f"{other}/{key}" for other in looks_like(name) for key in below]
        others += [f"source/{other}/images/train/{stem}.png" for other in looks_like(name)]
        others += [f"{name}/{key}" for key in beside]
        others += [f"{name}/runs/{key}/{odd}" for odd in ("step-0000001/a", "step-1/a", "step-000001a/a", "note.txt")]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: self.root.write(key, b"other"), others))

    def command(self, verb: Any) -> None:
        assert main(verb.run, [CONFIG, *self.words]) == 0

    def made(self) -> set[str]:
        """Keys that were not there before, relative to the storage. Fails if one that was is not the same byte for byte."""
        now, above = hashes(self.root), f"{self.store.root[len(self.root.root) + 1 :]}/"
        assert {key: now.get(key) for key in self.before} == self.before
        return {
            key.removeprefix(above) if key.startswith(above) else f"elsewhere: {key}" for key in now if key not in self.before
        }

    def check_data(self) -> None:
        """The prepared data set holds exactly the samples of the source."""
        manifest = open_data(self.config)
        entries = open_samples(self.config, manifest, "val").index.entries(range(manifest.num_images("val")))
        assert {e.sample_id: e.image_sha256 for e in entries} == {stem: digest(data) for stem, data in self.images.items()}

    def keys_of_data(self) -> set[str]:
        manifest = open_data(self.config)
        keys = {*_written(manifest, self.config), MANIFEST, record_key(manifest)}
        return {f"data/{self.config.data.name}/{key}" for key in keys}

    def keys_of_results(self) -> set[str]:
        ends = (".png", "_overlay.png")
        names = {LIST, *(f"{stem}{end}" for stem in self.stems for end in ends)}
        return {f"predictions/{self.config.run_key}/{name}" for name in names}


def keys_of_checkpoints(config: Config, *steps: int) -> set[str]:
    files = (checkpoint.MODEL, checkpoint.OPTIMIZER, PROGRESS, MANIFEST)
    return {f"runs/{config.run_key}/{checkpoint.folder_name(step)}/{file}" for step in steps for file in files}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The setting of a checkpoint, elsewhere, that can predict."""
    folder = tmp_path_factory.mktemp("network")
    net = build_ccnet(**cast(Any, MODEL))
    progress = {"step": 1, "metrics": {"miou": 0.5}, "model": MODEL, "class_names": CLASSES}
    progress["score"] = Score([[0]], CLASSES, 0, {}, [[0], [0]])._asdict()
    checkpoint.save(folder, checkpoint.snapshot(net, torch.optim.SGD(net.parameters(), lr=0.1)), progress)
    return f"evaluate.checkpoint={folder}"


def store_checkpoints(config: Config, run: Store, scratch: Path) -> None:
    """Stores small checkpoints of steps 1, 2 and 3 as rank 0 of a training does, which deletes the old ones."""
    with held(run) as claim:
        saver = CheckpointSaver(Run(config, cast(Any, None), run, "", "", claim), cast(Any, None), None, lambda: None)
        for step in (1, 2, 3):
            local = scratch / str(step)
            local.mkdir()
            progress = {"step": step, "metrics": {"miou": step / 10}}
            name = checkpoint.folder_name(step)
            saver._store(checkpoint.snapshot(*trained(step)), progress, ray.train.Checkpoint(str(local)), name)


def touches_exactly_its_own(place: Place) -> None:
    """Prepares, stores and prunes checkpoints, and predicts."""
    place.command(prepare)
    place.check_data()
    with tempfile.TemporaryDirectory() as scratch:
        store_checkpoints(place.config, place.run, Path(scratch))
    place.command(predict)
    expected = place.keys_of_data() | keys_of_checkpoints(place.config, 3) | place.keys_of_results()
    assert place.made() == expected


def composed(stem: str) -> str:
    return unicodedata.normalize("NFC", stem)


NAMES = given(name=PARTS, stems=st.lists(STEMS, min_size=1, max_size=2, unique_by=composed), data=PLAIN, run=PLAIN)
ODD = "ex[1]*? {a,b}#%41+&'\"!道 "
ODD_STEMS = ["a[1]*", "b {x,y}#%41+&'\"? "]


@NAMES
@example(name=ODD, stems=ODD_STEMS, data="a", run="a-1")
@settings(max_examples=5, deadline=None)
def test_any_name_touches_exactly_its_own_files(name: str, stems: list[str], data: str, run: str, network: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        touches_exactly_its_own(Place(Store(folder), name, stems, data, run, network))


@NAMES
@example(name=ODD, stems=ODD_STEMS, data="a", run="a-1")
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_touches_exactly_its_own_objects(
    name: str, stems: list[str], data: str, run: str, network: str, endpoint: str
) -> None:
    touches_exactly_its_own(Place(make_bucket(endpoint), name, stems, data, run, network))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_training_touches_exactly_its_own_keys_and_prediction_finds_it(
    kind: str, local_ray: None, endpoint: str, tmp_path: Path
) -> None:
    steps = (
        "train.steps=4",
        "train.validate_every=2",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        "tracking.register_as=null",
    )
    root = make_bucket(endpoint) if kind == "s3" else Store(str(tmp_path / "root"))
    place = Place(root, ODD, ODD_STEMS, "a", "a-1", "tracking.experiment=../a 'b' [c]*", *steps)
    for verb in (prepare, train, predict):
        place.command(verb)
    run = f"runs/{place.config.run_key}"
    made, best = place.made(), checkpoint.best(place.run)
    assert best is not None
    own = {f"{run}/.validate_storage_marker", f"{run}/checkpoint_manager_snapshot.json", f"{run}/{best}/kept.json"}
    own |= {f"models/{place.config.run_key}/{name}" for name in (CARD, RECORD, WEIGHTS)}
    own |= {f"{run}/{key}" for key in place.run.list("metrics") if key.startswith("metrics/sent-")}
    own |= {f"{run}/pictures/{name}.png" for name in PICTURES} | {f"{run}/{PAGE}"}
    kept = {4, int(best.removeprefix("step-"))}
    assert made == own | place.keys_of_data() | place.keys_of_results() | keys_of_checkpoints(place.config, *kept)

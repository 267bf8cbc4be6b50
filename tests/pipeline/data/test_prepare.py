"""Preparation writes all of a source or nothing: packed or in place, from a folder, S3 or generated, to a folder or S3."""

import logging
import os
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import prepare as job
from pipeline.config.config import Config
from pipeline.config.load import parse
from pipeline.data import synthetic
from pipeline.data.manifest import MANIFEST, Manifest, read_manifest
from pipeline.data.prepare import prepare, survey
from pipeline.data.shards import Row
from pipeline.data.source.find import find_source
from pipeline.errors import SampleError, SourceError, StorageError
from pipeline.images import codec
from pipeline.loading.samples import open_samples
from pipeline.storage.store import Store, open_store

# Ray Data's settings object raises its own deprecation warnings.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.", r"ignore::FutureWarning:ray\.")

NUM_PIXELS = 24 * 32
ENDPOINT = "CCNET_TEST_ENDPOINT"
"""Variable with the address of a test's S3 server. Unlike AWS_ENDPOINT_URL it reaches Ray's processes, in the configuration."""


def image_of(number: int) -> bytes:
    return codec.encode_png(np.full((24, 32, 3), number, np.uint8))


def label_of(*ids: int, height: int = 24, width: int = 32) -> bytes:
    """A label with equally many rows of each id."""
    return codec.encode_png(np.repeat(np.array(ids, np.uint8), height // len(ids))[:, None].repeat(width, 1))


LABEL = codec.encode_png(np.random.default_rng(0).integers(0, 12, (24, 32), dtype=np.uint8))


def source(root: Path, train: int = 5, val: int = 3) -> Path:
    for split, number in (("train", train), ("val", val)):
        for kind in ("", "annot"):
            (root / f"{split}{kind}").mkdir(parents=True)
            for i in range(number):
                (root / f"{split}{kind}" / f"{i:03d}.png").write_bytes(LABEL if kind else image_of(i + 9 * (split == "val")))
    return root


def config(path: str, folder: Path | str | None = None, **data: Any) -> Config:
    layout = {"layout": "camvid", "source": str(folder)} if folder else {"layout": "generated"}
    data = {"name": "toy", "crop_size": 33, "shard_rows": 2, **layout, **data}
    storage = {"path": path, "endpoint": os.environ.get(ENDPOINT)}
    return parse({"name": "test", "storage": storage, "model": {"recurrence": 2}, "data": data})


def data_store(made: Config) -> Store:
    return open_store(made.data_url, made.storage)


def rows_of(made: Config, manifest: Manifest, split: str = "train") -> list[Row]:
    return open_samples(made, manifest, split).read(range(manifest.num_images(split)))


def kinds(made: Config) -> set[str]:
    """Files of the data set, without the folder of the attempt that wrote them."""
    return {key.split("/", 1)[-1] for key in data_store(made).list()}


def test_an_empty_source_is_named_and_nothing_written(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", train=0, val=0)
    (folder / "README").touch()
    made = config(str(tmp_path / "out"), folder)
    with pytest.raises(SourceError) as caught:
        prepare(made)
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        f"{folder}/{name}" for name in ("train", "trainannot", "val", "valannot")
    ]
    assert open_store(made.storage.path, made.storage).list() == []
    assert f"{folder}/valannot: no files *.png" in str(caught.value)


def test_an_unreachable_store_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"s3://bucket/p at http://127.0.0.1:9: cannot be reached"):
        prepare(config("s3://bucket/p", source(tmp_path)))


def test_a_changed_file_behind_a_link_is_a_changed_source(tmp_path: Path) -> None:
    disk = source(tmp_path / "disk")
    (tmp_path / "linked").mkdir()
    for name in os.listdir(disk):
        (tmp_path / "linked" / name).symlink_to(disk / name)
    made = config(str(tmp_path / "out"), tmp_path / "linked")
    before = find_source(made).listing
    assert before.keys() == find_source(config("unused", disk)).listing.keys()
    (disk / "train/000.png").write_bytes(image_of(77) + b"\0")
    after = find_source(made).listing
    assert {key for key in after if after[key] != before[key]} == {"train/000.png"}


@pytest.fixture
def s3(endpoint: str, credentials: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place in a bucket of an S3 server."""
    monkeypatch.setenv(ENDPOINT, endpoint)
    name = f"prepare-{secrets.token_hex(4)}"  # moto's servers in one process share their buckets
    data_store(config(f"s3://{name}"))._fs().mkdir(name)
    return f"s3://{name}/prefix"


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow("local_ray"))])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder, which threads prepare, and a bucket, which Ray Data prepares."""
    if request.param == "folder":
        return str(tmp_path / "out")
    request.getfixturevalue("local_ray")
    bucket: str = request.getfixturevalue("s3")
    return bucket


def test_a_folder_is_packed_whole_and_its_bytes_untouched(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    made = config(path, source(tmp_path / "source"))
    with caplog.at_level(logging.INFO):
        manifest = prepare(made)
    assert "prepare: 5 of 5 parts" in caplog.text
    assert read_manifest(data_store(made)) == manifest
    assert (manifest.packed, manifest.num_images("train"), manifest.num_images("val")) == (True, 5, 3)
    rows = rows_of(made, manifest)
    assert rows == [Row(f"{i:03d}", image_of(i), LABEL, 24, 32) for i in range(5)]
    assert {name for name in kinds(made) if "class-" not in name} == {
        MANIFEST, "train-000000.parquet", "train-000001.parquet", "train-000002.parquet", "val-000000.parquet",
        "val-000001.parquet", "index-train/00000000.arrow", "index-val/00000000.arrow", "source.parquet",
    }  # fmt: skip

    with caplog.at_level(logging.INFO):
        assert prepare(made) == manifest
    assert "already prepared" in caplog.text
    assert job.run(made) == 0
    assert "Bicyclist" in capsys.readouterr().out

    newer = prepare(config(path, tmp_path / "source", shard_rows=4))
    assert read_manifest(data_store(made)) == newer
    assert newer.fingerprint == manifest.fingerprint
    assert newer.splits["train"].index != manifest.splits["train"].index
    assert rows_of(made, manifest) == rows  # a run that started with the old data can still read them


def test_in_place_nothing_but_index_and_manifest_is_written(path: str, tmp_path: Path) -> None:
    folder = source(tmp_path / "source")
    made = config(path, folder, packed=False)
    manifest = prepare(made)
    written = {name for name in kinds(made) if "class-" not in name}
    assert written == {MANIFEST, "index-train/00000000.arrow", "index-val/00000000.arrow", "source.parquet"}
    assert not manifest.packed
    packed = config(path, folder, name="packed")
    assert prepare(packed).splits["train"].content == manifest.splits["train"].content
    assert rows_of(made, manifest) == rows_of(packed, read_manifest(data_store(packed)))
    samples = open_samples(made, manifest, "val")
    assert samples.objects.url(samples.index.entries([1])[0].image) == f"{folder}/val/001.png"
    assert prepare(made) == manifest  # not prepared again
    assert prepare(config(path, folder)).fingerprint == manifest.fingerprint  # the same data under the same name

    (folder / "train/002.png").write_bytes(image_of(200))
    with pytest.raises(SampleError, match=f"{folder}/train/002.png: corrupt: .* jobs.prepare CONFIG again"):
        rows_of(made, manifest)
    again = prepare(made)
    assert again.fingerprint != manifest.fingerprint
    assert rows_of(made, again)[2].image == image_of(200)


@pytest.mark.parametrize("packed", [True, False])
def test_a_bucket_as_source_gives_the_same_data_as_a_folder(s3: str, tmp_path: Path, packed: bool) -> None:
    folder = source(tmp_path / "source")
    bucket = open_store(f"{s3}/{tmp_path.name}/source", config("unused").storage)
    for file in folder.rglob("*.png"):
        bucket.write(str(file.relative_to(folder)), file.read_bytes())
    local = prepare(config(str(tmp_path / "out"), folder, packed=packed))
    made = config(str(tmp_path / "from-s3"), bucket.root, packed=packed)
    manifest = prepare(made)
    assert manifest.fingerprint == local.fingerprint
    assert [row.image for row in rows_of(made, manifest)] == [image_of(i) for i in range(5)]
    assert prepare(made) == manifest
    bucket.write("train/002.png", image_of(200))
    assert prepare(made).fingerprint != local.fingerprint


def test_the_manifest_counts_what_is_in_the_source(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", train=3, val=2)
    (folder / "trainannot/000.png").write_bytes(label_of(0, 4, 11))  # 11 is ignored
    (folder / "trainannot/001.png").write_bytes(label_of(4))
    (folder / "trainannot/002.png").write_bytes(label_of(4, height=10, width=40))
    (folder / "train/002.png").write_bytes(codec.encode_png(np.zeros((10, 40, 3), np.uint8)))
    (folder / "val/000.png").write_bytes(image_of(0))  # a duplicate of train/000
    made = config(str(tmp_path / "out"), folder)
    surveyed = survey(made)
    assert not (tmp_path / "out").exists()
    manifest = prepare(made)
    train = manifest.splits["train"]
    third = NUM_PIXELS // 3
    assert train.pixels == (third, 0, 0, 0, third + NUM_PIXELS + 400, *[0] * 6)
    assert train.images == (1, 0, 0, 0, 3, *[0] * 6)
    assert (train.ignored, train.smallest, train.largest) == (third, (10, 32), (24, 40))
    assert train.bytes == sum(file.stat().st_size for name in ("train", "trainannot") for file in (folder / name).iterdir())
    assert (manifest.num_duplicates, manifest.duplicates) == (1, (("train/000", "val/000"),))
    index = open_samples(made, manifest, "train").index
    assert index.members(4, np.arange(3)).tolist() == [0, 1, 2]
    assert index.members(0, np.arange(1)).tolist() == [0]
    placed = {name: replace(split, index=manifest.splits[name].index) for name, split in surveyed.splits.items()}
    assert replace(surveyed, splits=placed) == manifest


def test_bad_files_are_all_named_and_nothing_is_left(path: str, tmp_path: Path) -> None:
    folder = source(tmp_path / "source")
    made = config(path, folder)
    manifest = prepare(made)
    keys = data_store(made).list()
    (folder / "train" / "001.png").write_bytes(image_of(1)[:-30])
    (folder / "trainannot" / "004.png").write_bytes(label_of(42))
    (folder / "valannot" / "002.png").write_bytes(label_of(1, height=10, width=10))
    for packed in (True, False):
        with pytest.raises(SourceError, match="nothing was written: fix the source") as caught:
            prepare(config(path, folder, packed=packed))
        assert [fault.split(": ")[0] for fault in caught.value.faults] == [
            f"{folder}/{name}" for name in ("train/001.png", "trainannot/004.png", "valannot/002.png")
        ]
    assert data_store(made).list() == keys  # the earlier data set stays valid
    assert read_manifest(data_store(made)) == manifest
    for fault in ("truncated PNG", "42 (768 pixels)", "10 x 10 pixels, its image 32 x 24"):
        assert fault in str(caught.value)


@pytest.mark.parametrize("lost", ["val-000001.parquet", "index-val/00000000.arrow", "index-train/class-003/00000000.i64"])
def test_what_is_lost_is_prepared_again(tmp_path: Path, lost: str) -> None:
    made = config(str(tmp_path / "out"), source(tmp_path / "source"))
    manifest = prepare(made)
    data_store(made).delete(next(key for key in data_store(made).list() if key.endswith(lost)))
    again = prepare(made)
    assert again.splits["val"].index != manifest.splits["val"].index
    assert again.fingerprint == manifest.fingerprint
    assert len(rows_of(made, again, "val")) == 3
    assert prepare(made) == again


def test_the_generated_set_is_packed_pixel_by_pixel(path: str) -> None:
    made = config(path, generated={"num_train": 5, "num_val": 2, "size": 33})
    manifest = prepare(made)
    assert (manifest.num_images("train"), manifest.num_images("val"), manifest.class_names) == (5, 2, synthetic.NAMES)
    row = rows_of(made, manifest, "val")[1]
    image, label = synthetic.sample(synthetic.split_index("val", 1), synthetic.SEED, 33)
    assert row.sample_id == "val-000001"
    assert np.array_equal(codec.decode_image(row.image), image)
    assert np.array_equal(codec.decode_label(row.label), label)


def test_a_wrong_bucket_is_named(s3: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="bucket `elsewhere` does not exist: create it"):
        prepare(config("s3://elsewhere/p", source(tmp_path)))

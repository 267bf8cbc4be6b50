"""Preparation: all of a source or nothing, from a folder and from code, to a folder and to S3."""

import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from moto.server import ThreadedMotoServer

from jobs import prepare as job
from pipeline import cluster, generated, storage, transforms
from pipeline.config import Config
from pipeline.layouts import CAMVID, LayoutError, Pair
from pipeline.loading import parse
from pipeline.prepare import PrepareError, check_encoding, check_grey, inspect, prepare
from pipeline.shards import MANIFEST, ShardReader, read_manifest
from pipeline.storage import StorageError, Store, open_store

# Ray Data's settings object trips over its own deprecations.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.", r"ignore::FutureWarning:ray\.")

RANDOM = np.random.default_rng(0)
IMAGE = transforms.encode_png(RANDOM.integers(0, 256, (24, 32, 3), dtype=np.uint8))
LABEL = transforms.encode_png(RANDOM.integers(0, 12, (24, 32), dtype=np.uint8))


def pixels(height: int, width: int, value: int) -> bytes:
    return transforms.encode_png(np.full((height, width), value, np.uint8))


def png(depth: int, kind: int, content: bytes) -> bytes:
    """A PNG of 2 x 2 pixels of any bit depth and colour type; a palette of four colours for type 3."""
    header = (2).to_bytes(4, "big") * 2 + bytes([depth, kind, 0, 0, 0])
    chunks = [(b"IHDR", header), (b"PLTE", bytes(range(12))), (b"IDAT", zlib.compress(content)), (b"IEND", b"")]
    parts = [n + d for n, d in chunks if n != b"PLTE" or kind == 3]
    return b"\x89PNG\r\n\x1a\n" + b"".join((len(p) - 4).to_bytes(4, "big") + p + zlib.crc32(p).to_bytes(4, "big") for p in parts)


def source(root: Path, train: int = 5, val: int = 3) -> Path:
    for split, number in (("train", train), ("val", val)):
        for kind in ("", "annot"):
            (root / f"{split}{kind}").mkdir(parents=True)
            for i in range(number):
                (root / f"{split}{kind}" / f"{i:03d}.png").write_bytes(LABEL if kind else IMAGE)
    return root


def config(path: str, folder: Path | None = None, **data: Any) -> Config:
    layout = {"layout": "camvid", "source": str(folder)} if folder else {"layout": "generated"}
    data = {"name": "toy", "crop_size": 33, "shard_rows": 2, **layout, **data}
    return parse({"name": "test", "storage": {"path": path}, "model": {"recurrence": 2}, "data": data})


def data_store(made: Config) -> Store:
    return open_store(made.data_url, made.storage)


PAIR = Pair("a", "train/a.png", "trainannot/a.png")


@pytest.mark.parametrize(
    ("image", "label", "fault"),
    [
        (IMAGE[:-20], LABEL, f"train/a.png: truncated PNG: ends after {len(IMAGE) - 20} bytes"),
        (IMAGE[: len(IMAGE) // 2], LABEL, "train/a.png: truncated PNG"),
        (IMAGE[:300] + b"\0\0" + IMAGE[302:], LABEL, "train/a.png: damaged PNG: chunk 'IDAT'"),
        (b"", LABEL, "train/a.png: empty file"),
        (b"GIF89a", LABEL, "train/a.png: neither PNG nor JPEG"),
        (b"\xff\xd8\xff\xe0 cut off", LABEL, "train/a.png: truncated JPEG"),
        (IMAGE, LABEL[:-1], "trainannot/a.png: truncated PNG"),
        (IMAGE, pixels(32, 24, 0), "trainannot/a.png: label is 24 x 32 pixels, its image 32 x 24 (train/a.png)"),
        (IMAGE, pixels(24, 32, 17), "trainannot/a.png: label ids outside the map: 17 (768 pixels); legal: 0, 1, 2, 3"),
        (IMAGE, IMAGE, "trainannot/a.png: 8-bit RGB PNG: a label must be 8-bit grey"),
        (IMAGE, png(8, 3, b"\0\1\2\0\3\0"), "trainannot/a.png: 8-bit palette PNG"),
        (IMAGE, png(16, 0, b"\0\0\1\0\2\0\0\1\0\2"), "trainannot/a.png: 16-bit grey PNG"),
    ],
)
def test_each_fault_of_a_pair_names_the_file(image: bytes, label: bytes, fault: str) -> None:
    faults = inspect(PAIR, image, label, CAMVID.label_map)[2]
    assert len(faults) == 1
    assert faults[0].startswith(fault)


def test_faults_of_both_files_are_told_together() -> None:
    assert len(inspect(PAIR, IMAGE[:-9], LABEL[:-9], CAMVID.label_map)[2]) == 2


def test_a_sound_pair_has_size_and_counts() -> None:
    size, counts, faults = inspect(PAIR, IMAGE, LABEL, CAMVID.label_map)
    assert (size, int(counts.sum()), faults) == ((24, 32), 24 * 32, [])


def test_whole_files_pass_and_a_jpeg_label_does_not() -> None:
    check_encoding(IMAGE)
    check_encoding(b"\xff\xd8 any \xff\xd9\0\0")
    check_grey(LABEL)
    with pytest.raises(ValueError, match="a label must be a PNG"):
        check_grey(b"\xff\xd8 any \xff\xd9")


def test_an_empty_source_is_named_and_nothing_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = source(tmp_path / "source", train=0, val=0)
    made = config(str(tmp_path / "out"), folder)
    with pytest.raises(LayoutError) as caught:
        prepare(made)
    assert len(caught.value.faults) == 4
    assert f"{folder}/train: no .png" in str(caught.value)
    assert open_store(made.storage.path, made.storage).list() == []
    assert job.run(made) == 1
    assert f"{folder}/valannot: no .png" in capsys.readouterr().err


def test_an_unreachable_store_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"s3://bucket/p at http://127.0.0.1:9: cannot be reached"):
        prepare(config("s3://bucket/p", source(tmp_path)))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Ray and an S3 server; Ray's workers get the endpoint and credentials from the environment it is started in."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.delenv("RAY_ADDRESS", raising=False)
        storage._S3.clear_instance_cache()
        ray.shutdown()
        cluster.connect(num_cpus=2)
        yield "s3://bucket/prefix"
        ray.shutdown()
    storage._S3.clear_instance_cache()
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def path(request: pytest.FixtureRequest, s3: str, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "out")
    url = f"{s3}/{tmp_path.name}"
    made = config(url)
    if not data_store(made)._fs().exists("bucket"):
        data_store(made)._fs().mkdir("bucket")
    return url


@pytest.mark.slow
def test_a_folder_is_packed_whole_and_its_bytes_untouched(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    made = config(path, source(tmp_path / "source"))
    with caplog.at_level(logging.INFO):
        manifest = prepare(made)
    assert "prepare: 5 of 5 shards" in caplog.text
    store = data_store(made)
    train = manifest.splits["train"]
    assert read_manifest(store) == manifest
    assert (train.num_images, len(train.shards), manifest.num_images("val")) == (5, 3, 3)
    assert (train.sizes, sum(train.pixels) + train.ignored) == (((24, 32, 5),), 5 * 24 * 32)
    rows = ShardReader(store, manifest, "train").read(range(5))
    assert [row.sample_id for row in rows] == [f"{i:03d}" for i in range(5)]
    assert all((row.image, row.label, row.height, row.width) == (IMAGE, LABEL, 24, 32) for row in rows)

    with caplog.at_level(logging.INFO):
        assert prepare(made) == manifest
    assert "already prepared" in caplog.text
    assert job.run(made) == 0
    assert "Bicyclist" in capsys.readouterr().out

    changed = config(path, tmp_path / "source", shard_rows=4)
    newer = prepare(changed)
    assert read_manifest(store) == newer
    assert len(newer.splits["train"].shards) == 2
    assert ShardReader(store, manifest, "train").read([4]) == [rows[4]]  # a run that began with the old data goes on


@pytest.mark.slow
def test_bad_files_are_all_named_and_nothing_is_left(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray's log handler keeps the stream that pytest captured at ray.init and has closed since; it would say so on stderr.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    folder = source(tmp_path / "source")
    made = config(path, folder)
    (folder / "train" / "001.png").write_bytes(IMAGE[:-30])
    (folder / "trainannot" / "004.png").write_bytes(pixels(24, 32, 42))
    (folder / "valannot" / "002.png").write_bytes(pixels(10, 10, 1))
    with pytest.raises(PrepareError) as caught:
        prepare(made)
    assert [fault.split(": ")[0] for fault in caught.value.faults] == [
        f"{folder}/train/001.png",
        f"{folder}/trainannot/004.png",
        f"{folder}/valannot/002.png",
    ]
    assert data_store(made).list() == []
    assert job.run(made) == 1
    told = capsys.readouterr().err
    assert "truncated PNG" in told
    assert "42 (768 pixels)" in told
    assert "10 x 10 pixels, its image 32 x 24" in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_a_failed_preparation_leaves_the_earlier_data_valid(path: str, tmp_path: Path) -> None:
    folder = source(tmp_path / "source")
    made = config(path, folder)
    manifest = prepare(made)
    keys = data_store(made).list()
    (folder / "train" / "001.png").write_bytes(IMAGE[:-30])
    with pytest.raises(PrepareError, match="truncated"):
        prepare(made)
    assert data_store(made).list() == keys
    assert read_manifest(data_store(made)) == manifest


@pytest.mark.slow
def test_lost_shards_are_packed_again(path: str, tmp_path: Path) -> None:
    made = config(path, source(tmp_path / "source"))
    manifest = prepare(made)
    data_store(made).delete(manifest.splits["val"].shards[0].key)
    again = prepare(made)
    assert again.fingerprint == manifest.fingerprint
    assert len(ShardReader(data_store(made), again, "val").read([0, 1, 2])) == 3


@pytest.mark.slow
def test_the_generated_set_is_packed_pixel_by_pixel(path: str) -> None:
    made = config(path, generated={"num_train": 5, "num_val": 2, "size": 33})
    manifest = prepare(made)
    assert (manifest.num_images("train"), manifest.num_images("val"), manifest.class_names) == (5, 2, generated.NAMES)
    row = ShardReader(data_store(made), manifest, "val").read([1])[0]
    image, label = generated.sample(generated.split_index("val", 1), generated.SEED, 33)
    assert row.sample_id == "val-000001"
    assert np.array_equal(transforms.decode_image(row.image), image)
    assert np.array_equal(transforms.decode_label(row.label), label)
    assert {key.split("/")[-1] for key in data_store(made).list()} == {
        MANIFEST, "train-000000.parquet", "train-000001.parquet", "train-000002.parquet", "val-000000.parquet",
    }  # fmt: skip


@pytest.mark.slow
def test_a_wrong_bucket_is_named(s3: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="bucket `elsewhere` does not exist: create it"):
        prepare(config("s3://elsewhere/p", source(tmp_path)))

"""Preparation names every file that it cannot read or use, beside all others."""

from pathlib import Path

import pytest

from pipeline.data.classes import CAMVID
from pipeline.data.prepare import PackTask, pack
from pipeline.data.source.pairing import Pair
from pipeline.errors import StorageError
from pipeline.storage.store import Store, open_store
from tests.pipeline.data.test_prepare import NUM_PIXELS, config, image_of, source
from tests.support.pictures import with_checksums


def test_files_that_cannot_be_read_or_written_are_named(tmp_path: Path) -> None:
    store = open_store(str(source(tmp_path / "source")), config("unused").storage)
    pair, gone = Pair("000", "train/000.png", "trainannot/000.png"), Pair("9", "train/9.png", "trainannot/9.png")
    done = pack(PackTask(store, None, "", "train", [gone, pair], 0, CAMVID))
    assert (done.entries, len(done.faults), done.pixels.sum()) == ((), 2, NUM_PIXELS)
    for fault, key in zip(done.faults, (gone.image, gone.label), strict=True):
        assert f"{store.root}/{key}" in fault
        assert fault.endswith("cannot be read: data.source must be readable from every Ray node")
    (tmp_path / "file").touch()
    shards = open_store(str(tmp_path / "file"), config("unused").storage)
    (fault,) = pack(PackTask(store, shards, "a.parquet", "train", [pair], 0, CAMVID)).faults
    assert fault.startswith(f"{tmp_path}/file/a.parquet: cannot be written: ")


def test_one_odd_file_hides_no_other_fault(tmp_path: Path) -> None:
    """A picture of 1.2 gigapixels, an empty file and a folder in the place of a file; one sample holds two faults."""
    folder = source(tmp_path / "source", train=6)
    small = image_of(1)
    huge = with_checksums(small[:16] + (40_000).to_bytes(4, "big") + (30_000).to_bytes(4, "big") + small[24:])
    (folder / "train" / "001.png").write_bytes(huge)
    (folder / "train" / "002.png").write_bytes(b"")
    (folder / "trainannot" / "002.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    store = open_store(str(folder), config("unused").storage)
    (folder / "trainannot" / "003.png").unlink()
    (folder / "trainannot" / "003.png").mkdir()
    pairs = [Pair(f"{i:03d}", f"train/{i:03d}.png", f"trainannot/{i:03d}.png") for i in range(6)]
    faults = pack(PackTask(store, None, "", "train", pairs, 0, CAMVID)).faults
    expected = [
        ("train/001.png", "40000 x 30000 pixels: at most 268435456 pixels"),
        ("train/002.png", "empty file: copy it again"),
        ("trainannot/002.png", "a Git LFS pointer"),
        ("trainannot/003.png", "cannot be used (Is a directory)"),
    ]
    assert [fault[: len(f"{folder}/{key}: {what}")] for fault, (key, what) in zip(faults, expected, strict=True)] == [
        f"{folder}/{key}: {what}" for key, what in expected
    ]


def test_a_store_that_went_away_is_no_fault_of_each_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every file would wait for it in turn."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    away = Store("s3://bucket/p", "http://127.0.0.1:9", patience_s=0.2)
    with pytest.raises(StorageError, match="cannot be reached"):
        pack(PackTask(away, None, "", "train", [Pair("0", "train/0.png", "trainannot/0.png")], 0, CAMVID.label_map))

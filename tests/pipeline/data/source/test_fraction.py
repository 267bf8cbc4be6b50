"""The split `val` that a fraction takes from `train`."""

from pathlib import Path

from pipeline.data.source.fraction import cut_val
from pipeline.data.source.pairing import Pair
from pipeline.storage.store import Object, Store


def made(root: Path, images: dict[str, bytes]) -> tuple[Store, list[Pair], dict[str, Object]]:
    store = Store(str(root))
    for name, data in images.items():
        store.write(f"{name}.bmp", data)
    pairs = [Pair(name, f"{name}.bmp", f"{name}.png") for name in sorted(images)]
    return store, pairs, {found.key: found for found in store.listing()}


def val_ids(root: Path, images: dict[str, bytes], fraction: float = 0.5) -> set[str]:
    store, pairs, objects = made(root, images)
    train, val = cut_val(pairs, fraction, store, objects)
    assert sorted([*train, *val], key=lambda pair: pair.sample_id) == pairs
    return {pair.sample_id for pair in val}


def test_a_sample_keeps_its_split_when_others_are_added(tmp_path: Path) -> None:
    few = {f"{i:03}": bytes([i, 1]) for i in range(20)}
    many = few | {f"{i:03}": bytes([i, 2]) for i in range(20, 200)}
    before, after = val_ids(tmp_path / "few", few, 0.2), val_ids(tmp_path / "many", many, 0.2)
    assert before == after & few.keys()
    assert len(after) == 45


def test_copies_and_versions_of_one_image_stay_together(tmp_path: Path) -> None:
    images = {f"{i:02}": bytes([i]) for i in range(10)} | {f"copy-{i:02}": bytes([i]) for i in range(10)}
    images |= {f"{i:02}_jpg.rf.{version}": bytes([99, i, ord(version)]) for i in range(10) for version in "abc"}
    images |= {"again_jpg.rf.z": bytes([99, 0, ord("a")]), "again_jpg.rf.y": b"other"}
    val = val_ids(tmp_path, images)
    for i in range(10):
        assert (f"{i:02}" in val) == (f"copy-{i:02}" in val)
        assert len({f"{i:02}_jpg.rf.{version}" in val for version in "abc"}) == 1
    assert len({name in val for name in ("00_jpg.rf.a", "00_jpg.rf.b", "again_jpg.rf.z", "again_jpg.rf.y")}) == 1
    assert 0 < len(val) < len(images)

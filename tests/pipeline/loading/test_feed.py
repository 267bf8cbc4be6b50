"""The global batches are the same, by hash, for any number of workers, resumed, packed or in place, by torch or by Ray."""

import logging
import secrets
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.data.manifest import open_data
from pipeline.data.prepare import prepare
from pipeline.data.shards import Row
from pipeline.data.synthetic import NAMES
from pipeline.errors import SampleError, StorageError
from pipeline.fault_tolerance.failures import RowsLost
from pipeline.images.codec import decode_label, encode_png
from pipeline.loading.batches import checked_batches, training_batches
from pipeline.loading.feed import Batch, Feed, decode
from pipeline.loading.ray_dataset import ResumableDataConfig, placeholder
from pipeline.loading.samples import open_samples
from pipeline.storage import store as storage
from tests.support.faulty_store import FAULTS, FaultyStore
from tests.support.own_data import GLOBAL_BATCH, NUM_TRAIN, STEPS, by_step, config, feed_of, make_source
from tests.support.pictures import with_checksums

pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.", r"ignore::FutureWarning:ray\.")

IDS = np.zeros((4, 4), np.uint8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source, prepared twice: packed as `own`, in place as `loose`."""
    folder = tmp_path_factory.mktemp("feed")
    make_source(folder / "source")
    prepare(config(folder))
    prepare(config(folder, packed=False, name="loose"))
    return folder


def test_the_same_global_batches_for_any_number_of_workers(prepared: Path) -> None:
    """3 and 5 do not divide the batch of 8: shares of 2, 3 and 3 rows, or of 1, 2, 1, 2 and 2."""
    one = by_step(feed_of(prepared, global_batch=8))
    assert len(set(one.values())) == STEPS
    for workers in (2, 3, 4, 5, 8):
        assert by_step(feed_of(prepared, workers=workers, global_batch=8)) == one


def test_the_same_global_batches_when_resumed_at_any_step_with_another_number_of_workers(prepared: Path) -> None:
    whole = by_step(feed_of(prepared, global_batch=8))
    for step in range(1, STEPS):
        resumed = feed_of(prepared, first_step=step, workers=1 + step % 5, global_batch=8)
        assert by_step(resumed) == {s: h for s, h in whole.items() if s >= step}


def test_every_rank_has_as_many_rows_a_step_as_the_largest_share_the_last_of_them_empty(prepared: Path) -> None:
    feed = feed_of(prepared, workers=5, global_batch=8)
    rows = feed.rows({"id": np.array([2])})  # rank 2, one step; it holds row 3
    assert rows["position"].tolist() == [3, -1]
    assert (rows["step"].tolist(), rows["rank"].tolist(), rows["replaced"].tolist()) == ([0, 0], [2, 2], [False, False])
    assert rows["image"][0].any()
    assert not rows["image"][1].any()
    assert not rows["label"][1].any()


def test_packed_and_in_place_give_the_same_batches_and_fingerprint(prepared: Path) -> None:
    packed, loose = feed_of(prepared), feed_of(prepared, packed=False, name="loose")
    assert (packed.manifest.packed, loose.manifest.packed) == (True, False)
    assert by_step(packed) == by_step(loose)
    assert packed.manifest.splits["train"].content == loose.manifest.splits["train"].content


def test_another_seed_gives_other_batches(prepared: Path) -> None:
    feed = feed_of(prepared)
    other = feed._replace(config=feed.config.model_copy(update={"seed": 1}))
    assert not set(by_step(feed).values()) & set(by_step(other).values())


class StepDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The sampler's order for a torch DataLoader, the oracle: item i is step i."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label, _ = self.feed.crops(self.feed.sampler.positions(step, step + 1, 0, 1))
        return torch.from_numpy(image), torch.from_numpy(label)


# Ray's batches are views of shared memory; nothing writes to them.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")
def test_a_torch_data_loader_over_the_sampler_gives_the_same_batches_as_ray_data(prepared: Path, local_ray: None) -> None:
    feed = feed_of(prepared)
    loader = DataLoader(StepDataset(feed), batch_size=None, num_workers=1, multiprocessing_context="spawn")
    expected = [(image.numpy(), label.numpy()) for image, label in loader]
    rows = ResumableDataConfig(lambda workers: feed).configure({"train": placeholder()}, 1, None, None)[0]["train"]
    batches = list(training_batches(rows, feed, rank=0))
    assert [batch.step for batch in batches] == list(range(STEPS))
    for batch, (image, label) in zip(batches, expected, strict=True):
        assert np.array_equal(batch.image.permute(0, 2, 3, 1).numpy(), image)
        assert np.array_equal(batch.label.numpy(), label)


def test_oversampled_images_contain_the_class(prepared: Path) -> None:
    feed = feed_of(prepared, oversample={"lamp": 0.2, "disc-warm": 0.5})
    split = feed.manifest.splits["train"]
    assert 0 < split.images[NAMES.index("disc-warm")] < NUM_TRAIN
    picks = feed.sampler.picks(np.arange(4 * NUM_TRAIN))
    samples = open_samples(feed.config, feed.manifest, "train")
    numbers = feed.samples_of(picks, samples)
    labels = [decode_label(row.label) for row in samples.read(range(NUM_TRAIN))]
    for number, stream in zip(numbers, picks.stream, strict=True):
        if stream == 1:  # the class of the lower number, whatever the order in the configuration
            assert NAMES.index("disc-warm") in labels[number]
    assert by_step(feed) == by_step(feed_of(prepared, workers=5, oversample={"disc-warm": 0.5, "lamp": 0.2}))


def rows_of(feed: Feed) -> Iterator[Batch]:
    for step in range(STEPS):
        positions = feed.sampler.positions(step, step + 1, 0, 1)
        place = {"position": positions, "step": positions // GLOBAL_BATCH, "rank": np.zeros_like(positions)}
        yield place | {"image": np.zeros((12, 2, 2, 3), np.uint8), "label": np.zeros((12, 2, 2), np.uint8),
                       "replaced": np.zeros(12, bool)}  # fmt: skip


@pytest.mark.parametrize("wrong", ["position", "step", "rank"])
def test_a_worker_that_meets_a_wrong_row_stops_and_names_it(prepared: Path, wrong: str) -> None:
    feed = feed_of(prepared)
    batches = list(rows_of(feed))
    batches[3][wrong] = batches[3][wrong] + 1
    with pytest.raises(RowsLost, match=f"data order broken at step 3, rank 0: expected {wrong}"):
        list(checked_batches(iter(batches), feed.sampler, steps=STEPS, rank=0, workers=1))


def test_padding_is_checked_and_removed(prepared: Path) -> None:
    """Rank 1 of 5 holds rows 2 and 3 of the 12, and gets three rows: the last one is padding."""
    sampler = feed_of(prepared).sampler
    images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1) + np.zeros((3, 2, 2, 3), np.uint8)
    row = {"position": np.array([2, 3, -1]), "step": np.zeros(3, int), "rank": np.ones(3, int), "image": images,
           "label": images[..., 0], "replaced": np.zeros(3, bool)}  # fmt: skip
    (batch,) = checked_batches(iter([row]), sampler, steps=1, rank=1, workers=5)
    assert (batch.image.shape, batch.label.shape) == ((2, 3, 2, 2), (2, 2, 2))
    assert batch.image[:, 0, 0, 0].tolist() == [0, 1]
    shifted = row | {"position": np.array([2, 3, 4])}
    with pytest.raises(RuntimeError, match=r"rank 1: expected position \[2, 3, -1\], got \[2, 3, 4\]"):
        list(checked_batches(iter([shifted]), sampler, steps=1, rank=1, workers=5))


def test_a_lost_or_missing_batch_is_noticed(prepared: Path) -> None:
    feed = feed_of(prepared)
    batches = list(rows_of(feed))
    with pytest.raises(RowsLost, match="data order broken at step 3"):
        list(checked_batches(iter(batches[:3] + batches[4:]), feed.sampler, steps=STEPS, rank=0, workers=1))
    with pytest.raises(RuntimeError, match="data ended after step 8 of 9"):
        list(checked_batches(iter(batches[:-1]), feed.sampler, steps=STEPS, rank=0, workers=1))


def test_a_corrupt_sample_stops_the_feed_and_is_named_or_is_replaced_and_reported(
    tmp_path: Path, prepared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_source(tmp_path / "source")
    made = config(tmp_path, packed=False, name="loose")
    prepare(made)
    bad = tmp_path / "source" / "images" / "train" / "007.png"
    bad.write_bytes(bad.read_bytes()[:-20])
    feed = Feed(made, open_data(made), 0, workers=1)
    every = np.arange(NUM_TRAIN)
    with pytest.raises(SampleError, match=r"007\.png.*\(sample 007\)"):
        feed.crops(every)
    patient = feed._replace(config=config(tmp_path, packed=False, name="loose", max_skipped=1))
    with caplog.at_level(logging.WARNING):
        _, _, replaced = patient.crops(every)
    assert replaced.sum() == 1
    assert patient.sampler.picks(every).place[replaced].tolist() == [7]
    assert "007.png" in caplog.text
    bad.unlink()
    assert patient.crops(every)[2].sum() == 1


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", r"not a readable image \(0 bytes\)"),
        (with_checksums(encode_png(IDS)[:16] + b"\0\0\x9c\x40\0\0\x75\x30" + encode_png(IDS)[24:]), "not a readable image"),
        (None, "cannot be decoded: AttributeError"),
    ],
)
def test_whatever_a_sample_raises_names_the_sample(image: bytes, reason: str) -> None:
    """The second is a picture of 1.2 gigapixels, which OpenCV refuses by an exception of its own."""
    with pytest.raises(SampleError, match=f"sample street/3: {reason}.*; run python -m jobs.prepare CONFIG again"):
        decode(Row("street/3", image, encode_png(IDS), 4, 4))


def test_tasks_import_neither_torch_nor_ray() -> None:
    """A task worker of a cluster pays for every import before its first image."""
    code = "import sys, pipeline.loading.feed; print([m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def in_bucket(prepared: Path, endpoint: str, credentials: None) -> Feed:
    """The data set prepared in place, with its originals, copied into a bucket."""
    name = f"bucket-{secrets.token_hex(4)}"  # the S3 servers of one process share their buckets
    bucket = storage.Store(f"s3://{name}", endpoint)
    bucket._fs().mkdir(name)
    for path in [*prepared.glob("source/**/*.png"), *prepared.glob("out/data/loose/**/*.*")]:
        bucket.write(str(path.relative_to(prepared)), path.read_bytes())
    base = config(prepared, packed=False, name="loose")
    made = base.model_copy(update={
        "storage": base.storage.model_copy(update={"path": f"{bucket.root}/out", "endpoint": bucket.endpoint}),
        "data": base.data.model_copy(update={"source": f"{bucket.root}/source"}),
    })  # fmt: skip
    return Feed(made, open_data(made), 0, workers=1)


def through(feed: Feed, proxy: FaultyStore, **changed: float) -> Feed:
    store = feed.config.storage.model_copy(update={"endpoint": proxy.endpoint, **changed})
    return feed._replace(config=feed.config.model_copy(update={"storage": store}))


@pytest.mark.slow
def test_200_faults_in_2000_fetches_change_no_batch_and_are_all_in_the_log(
    prepared: Path, in_bucket: Feed, caplog: pytest.LogCaptureFixture
) -> None:
    positions = np.arange(1000)  # two fetches each
    expected = feed_of(prepared).crops(positions)
    weights = {"slow_down": 30.0, "reset": 30.0, "reset_body": 30.0, "truncate": 30.0, "stall": 2.0, "stall_body": 2.0}
    upstream = in_bucket.config.storage.endpoint or ""
    with FaultyStore(upstream, seed=0, probability=0.12, weights=weights, only_gets=True, stall_s=0.3) as proxy:
        feed = through(in_bucket, proxy)
        with ThreadPoolExecutor(4) as pool:  # most of the time of a fault is waiting
            parts = list(pool.map(feed.crops, np.split(positions, 4)))
    found = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
    assert set(proxy.injected) == set(FAULTS)
    assert proxy.injected.total() >= 200
    logged = [record.getMessage() for record in caplog.records if record.name == "pipeline.storage.store"]
    assert len(logged) == proxy.injected.total()
    assert all(line.startswith("s3://bucket-") and ", try " in line for line in logged)


@pytest.mark.parametrize(("fault", "reason"), [("slow_down", "does not recover"), ("forbid", "access refused")])
def test_a_store_that_stays_sick_ends_in_an_error_that_names_bucket_and_key(in_bucket: Feed, fault: str, reason: str) -> None:
    sick = FaultyStore(in_bucket.config.storage.endpoint or "", chosen=dict.fromkeys(range(9999), fault))
    with sick, pytest.raises(StorageError, match=rf"s3://bucket-\w+/out/data/loose/\S+ at \S+: {reason}"):
        through(in_bucket, sick, patience_s=1).crops(np.arange(4))

"""The image benchmark: every stage runs the same steps and reports plausible values. No promise here is about speed."""

import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import ray

from pipeline.benchmark.datasets import Target, find_targets, make_pictures, picture, repeated
from pipeline.benchmark.feeds import Length, Measured, first_steps, one_round, steady_rate
from pipeline.benchmark.images import Figure, measure_images, whole_then_crop
from pipeline.benchmark.processes import family, own_peak, pss
from pipeline.benchmark.tables import images_tables, json_line
from pipeline.benchmark.workload import Steps, positions
from pipeline.config.benchmark import Pictures
from pipeline.config.config import Config
from pipeline.config.load import parse
from pipeline.images import codec
from pipeline.images.augment import Recipe, augment
from pipeline.loading.feed import Feed
from pipeline.storage.store import Store
from tests.support.sources import find_splits

# Ray Data's settings object raises Ray's own deprecation warnings; its batches are read-only, and nothing writes to them.
pytestmark = pytest.mark.filterwarnings(
    r"ignore::DeprecationWarning:ray\.", r"ignore::FutureWarning:ray\.", "ignore:The given NumPy array is not writable",
    "ignore:.*ray-data-dataset_:pytest.PytestUnraisableExceptionWarning",  # Ray Data does not close the log of a data set
)  # fmt: skip

MIB = 2**20


def config(path: Path) -> Config:
    made = [{"height": 64, "width": 96, "format": "jpeg", "crop_size": 33, "images": 8}]
    return parse(
        {
            "name": "test",
            "storage": {"path": str(path)},
            "data": {"name": "own", "layout": "generated", "crop_size": 33},
            "model": {"backbone": "resnet18", "recurrence": 1},
            "train": {"global_batch": 2, "workers": 1},
            "benchmark": {"made": made, "rounds": 1, "cores": 2, "stores": [str(path)], "step": True},
        }
    )


class Run(NamedTuple):
    """A whole run, one round of the fewest steps over the smallest pictures, and what it left behind."""

    config: Config
    figures: list[Figure]
    feed: Feed
    stages: dict[str, Measured]
    """Stages of the feed and their measurements."""
    left_of_stages: list[multiprocessing.process.BaseProcess]
    left_ray: bool


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    rounds = []

    def recorded(feed: Feed, length: Length, cores: int) -> dict[str, Measured]:
        found = one_round(feed, length, cores)
        rounds.append((feed, dict(found), multiprocessing.active_children()))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        fewest = {"AUGMENTED": 4, "ROWS_ROUNDS": 1, "ROWS_STEPS": 3, "NUM_ROWS": (100, 1_000), "STEPS": 1}
        for name, value in {**fewest, "one_round": recorded}.items():
            patch.setattr(f"pipeline.benchmark.images.{name}", value)
        ray.shutdown()
        small = config(tmp_path_factory.mktemp("bench"))
        (figures,) = measure_images(small)
    ((feed, stages, left),) = rounds
    return Run(small, figures, feed, stages, left, ray.is_initialized())


@pytest.fixture(scope="module")
def target(run: Run) -> Target:
    (made,) = find_targets(run.config)
    return made


@pytest.mark.slow
def test_all_ways_of_the_feed_go_through_the_same_steps(run: Run) -> None:
    assert {stage: measured.steps for stage, measured in run.stages.items()} == {
        "decode only": tuple(range(8)),
        "bare loop": tuple(range(8)),
        "torch DataLoader": tuple(range(8)),
        "Ray Data": tuple(range(8)),
    }


@pytest.mark.slow
def test_every_stage_reports_its_rate_and_its_memory(run: Run) -> None:
    stages = run.stages
    for measured in stages.values():
        assert measured.images_per_s > 0
        assert measured.peak_bytes
        assert measured.peak_bytes > MIB
    for stage in ("torch DataLoader", "Ray Data"):
        wait, first = stages[stage].data_wait, stages[stage].first_batch_s
        assert wait is not None
        assert first is not None
        assert 0 <= wait <= 1
        assert first > 0
        assert stages[stage].from_request
    assert stages["decode only"].data_wait is stages["decode only"].first_batch_s is stages["bare loop"].data_wait is None


def test_the_rate_is_that_of_the_steady_state_and_neither_bursts_nor_start_nor_drain_shift_it() -> None:
    bursts = [0.1 * (step // 4) for step in range(64)]  # four steps at a time, 40 steps a second
    assert steady_rate(bursts) == pytest.approx(40, rel=0.05)
    late = [max(0.5, at) for at in bursts[:16]] + bursts[16:]
    assert steady_rate(late) == steady_rate(bursts)
    drained = bursts[:48] + [bursts[48]] * 16
    assert steady_rate(drained) == steady_rate(bursts)
    assert steady_rate([step / 40 for step in range(64)]) == pytest.approx(40)


@pytest.mark.slow
def test_no_process_of_a_stage_is_left(run: Run) -> None:
    assert run.stages
    assert run.left_of_stages == []


@pytest.mark.slow
def test_an_item_of_the_loader_is_a_step(target: Target) -> None:
    made = first_steps(Feed(target.config, target.manifest, 0, workers=1), 12)
    step, image, label = Steps(made)[5]
    expected = made.crops(np.array([10, 11]))
    assert (step, len(Steps(made)), positions(made, 5).tolist()) == (5, 12, [10, 11])
    np.testing.assert_array_equal(image.numpy(), expected[0])
    np.testing.assert_array_equal(label.numpy(), expected[1])


def test_measured_processes_load_neither_torch_nor_ray() -> None:
    code = (
        "import sys, jobs.benchmark, pipeline.benchmark.workload; sys.exit(bool({'torch', 'ray', 'mlflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0


@pytest.mark.parametrize(("end", "start", "size"), [("png", b"\x89PNG", (64, 96)), ("jpeg", b"\xff\xd8", (72, 48))])
def test_made_pictures_are_a_data_set_of_that_size_and_format(
    end: str, start: bytes, size: tuple[int, int], tmp_path: Path
) -> None:
    store = Store(str(tmp_path))
    make_pictures(store, Pictures.model_validate({"height": size[0], "width": size[1], "format": end, "crop_size": 33}))
    splits = find_splits("folders", store, {})
    assert {split: len(pairs) for split, pairs in splits.items()} == {"train": 24, "val": 2}
    image, label = store.read(splits["train"][0].image), store.read(splits["train"][0].label)
    assert image.startswith(start)
    assert codec.decode_image(image).shape == (*size, 3)
    assert codec.decode_label(label).shape == size


def test_a_made_picture_compresses_as_one_of_camvid() -> None:
    image, _ = picture(3, (360, 480))
    assert 190_000 < len(codec.encode_png(image)) < 310_000
    assert 40_000 < len(codec.encode_jpeg(image)) < 80_000


@pytest.mark.slow
def test_made_pictures_are_prepared_once(run: Run, target: Target) -> None:
    assert run.feed.manifest.num_images("train") == 24
    assert target.manifest == run.feed.manifest


@pytest.mark.slow
def test_rows_are_the_few_objects_over_and_over(target: Target) -> None:
    many = Feed(target.config, repeated(target, 1_000), 0, workers=1)
    assert many.sampler.num_samples == 1_000
    assert many.crops(np.arange(40))[0].shape == (40, 33, 33, 3)


def test_whole_then_crop_is_the_same_crop() -> None:
    random = np.random.default_rng(0)
    image, label = random.integers(0, 256, (64, 96, 3), np.uint8), random.integers(0, 6, (64, 96), np.uint8)
    ids = np.arange(256, dtype=np.uint8)
    for sample in range(20):
        seeds = {"seed": 0, "epoch": 0, "sample": sample}
        mine = augment(image, label, ids, Recipe((33, 49)), **seeds)
        whole = whole_then_crop(image, label, ids, Recipe((33, 49)), **seeds)
        assert np.abs(mine[0].astype(int) - whole[0]).max() <= 1
        np.testing.assert_array_equal(mine[1], whole[1])


@pytest.mark.slow
def test_the_augment_path_and_the_rows_have_their_ratios(run: Run) -> None:
    whole, crop, few, many = run.figures[-4:]
    assert not whole.ratios
    assert crop.ratios["augment: whole, then crop"] > 0
    assert (few.stage, few.ratios, many.stage) == ("100 rows", {}, "1,000 rows")
    assert set(many.ratios) == {"memory of 100 rows", "first batch of 100 rows"}
    assert many.peak_mib
    assert many.peak_mib > 10


def test_peak_memory_sees_an_allocation_that_is_gone_again() -> None:
    code = """
import os, time
import numpy as np
from pipeline.benchmark.processes import PeakMemory, pss
before = pss(os.getpid())
with PeakMemory(lambda: [os.getpid()], every_s=0.01) as peak:
    held = np.ones(64 << 20, np.uint8)
    time.sleep(0.5)  # long enough for the thread that samples the memory
    del held
print(peak.bytes - before, pss(os.getpid()) - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, after = map(int, done.stdout.split())
    assert 60 * MIB < peak < 90 * MIB
    assert after < 30 * MIB


def test_own_peak_is_not_that_of_the_process_that_started_it() -> None:
    held = np.ones(256 * MIB, np.uint8)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(own_peak).result() < 256 * MIB < own_peak()
    assert held.size


def test_the_family_of_a_process_is_its_descendants() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        grandchild = int(child.stdout.readline())
        assert {child.pid, grandchild} <= set(family(os.getpid()))
        assert pss(child.pid) > 0
        os.kill(grandchild, 15)
    assert pss(child.pid) == 0


def figure(stage: str, **other: object) -> Figure:
    given = {"median": 100.0, "lowest": 90.0, "highest": 110.0, "rounds": 3, "cpus": 2, "cores": 2, "ratios": {}}
    fields = {"data": "2048x1024-jpeg", "store": "s3://ccnet/bench", "stage": stage} | given | other
    return Figure(**fields)  # type: ignore[arg-type]


def test_the_table_shows_ratios_and_leaves_out_what_was_not_measured() -> None:
    fed = {"from_request": 88.0, "first_batch_s": 1.25, "data_wait": 0.031, "peak_mib": 812.3, "first_batch_cold_s": 4.5}
    text = images_tables(
        [
            figure("bare loop", ratios={"bare loop": 1.0, "torch DataLoader": 1.1}),
            figure("Ray Data", ratios={"bare loop": 0.9, "torch DataLoader": 0.99}, **fed),
            figure("augment: the crop alone", ratios={"augment: whole, then crop": 3.5}),
            figure("decode only", store="/disk", ratios={}),
        ]
    )
    rows = {line[:23].strip(): line[23:].split() for line in text.splitlines()}
    assert rows["bare loop"] == ["100.0", "90.0", "to", "110.0", "1.00", "1.10"]
    assert rows["Ray Data"] == ["100.0", "90.0", "to", "110.0", "0.90", "0.99", "88.0", "1.25", "3.1%", "812"]
    assert "augment: the crop alone: 3.50 x augment: whole, then crop" in text
    assert "Ray Data: first batch 4.50 s on a cluster whose workers have run no task yet" in text
    assert text.count("spread") == 2
    assert max(map(len, text.splitlines())) <= 130


@pytest.mark.slow
def test_a_whole_run_gives_a_line_for_each_figure(run: Run) -> None:
    lines = [json.loads(json_line(f)) for f in run.figures]
    assert [line["stage"] for line in lines] == [
        "decode only", "bare loop", "torch DataLoader", "Ray Data", "training step",
        "augment: whole, then crop", "augment: the crop alone", "100 rows", "1,000 rows",
    ]  # fmt: skip
    assert {(line["data"], line["store"], line["rounds"]) for line in lines} == {("96x64-jpeg", run.config.storage.path, 1)}
    assert lines[3]["first_batch_cold_s"] > 0
    assert not run.left_ray

"""What differs between two checkpoints: planted differences are found, and none where there is none."""

import json
import re
from pathlib import Path

import pytest

import ccnet
from jobs.compare import command
from pipeline.config.config import Config
from pipeline.config.load import override
from pipeline.delivery.record import RECORD
from pipeline.errors import ConfigError
from pipeline.evaluation.evaluate import evaluate
from pipeline.reports import differences
from pipeline.reports.compare import Comparison, Interval, compare, write_page
from pipeline.storage.lease import Claim
from pipeline.storage.store import open_store
from pipeline.tracking import runs
from pipeline.tracking.client import connect
from pipeline.training.best import deliver_best
from pipeline.training.run import Run
from tests.support import untrained
from tests.support.untrained import IDS, NUM_IMAGES


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return override(untrained.make(tmp_path / "storage", scratch(tmp_path)), {"train.workers": 0})


def scratch(folder: Path, name: str = "scratch") -> Path:
    (folder / name).mkdir()
    return folder / name


def test_planted_differences_are_found(config: Config, tmp_path: Path) -> None:
    relabelled = override(config, {"data.name": "relabelled", "name": "second", "seed": 7, "train.learning_rate": 0.5})
    untrained.pack(relabelled, [*IDS[1:], "val-new"], relabelled=3)
    url = untrained.store_checkpoint(relabelled, scratch(tmp_path, "b"), seed=1, environment={"commit": "1" * 40})
    found = compare(override(config, {"evaluate.other": url}))
    assert found.settings[0] == "seed was 0 and is 7"
    assert "train.learning_rate was 0.01 and is 0.5" in found.settings
    assert found.data[0].startswith("ten ")
    # The ids keep their places, so each has the image of its neighbour.
    assert found.data[1:] == [
        "val: 1 added: val-new",
        "val: 1 removed: val-0",
        f"val: {NUM_IMAGES - 1} with another image: {', '.join(IDS[1:])}",
    ]
    assert found.steps == ["unknown"]
    first, second = found.first.score, found.second.score
    assert (found.miou.first, found.miou.second) == (first.miou, second.miou)
    assert found.miou.low <= found.miou.difference <= found.miou.high
    gaps = [abs(other - one) for _, one, other in found.images]
    assert gaps == sorted(gaps, reverse=True)
    assert len(gaps) == 10
    assert [each.images for each in found.classes] == occurring(found)
    page = Path(write_page(config, found))
    for text in ("seed was 0 and is 7", "1 added: val-new", found.images[0][0], "data:image/png", first.caveat, second.caveat):
        assert text in page.read_text(), text
    record = json.loads(page.with_name("comparison.json").read_text(), parse_constant=pytest.fail)
    assert record["settings"] == found.settings


def occurring(found: Comparison) -> list[int]:
    """Images with each class, by the IoU of each image, which is a number where the class occurs."""
    both = [[one.class_iou, other.class_iou] for one, other in zip(found.first.images, found.second.images, strict=True)]
    return [sum(any(iou[k] == iou[k] for iou in pair) for pair in both) for k in range(len(found.classes))]


def test_a_relabelled_image_is_told_from_another_one(config: Config, tmp_path: Path) -> None:
    relabelled = override(config, {"data.name": "relabelled", "name": "second"})
    untrained.pack(relabelled, IDS, relabelled=3)
    url = untrained.store_checkpoint(relabelled, scratch(tmp_path, "b"))
    found = compare(override(config, {"evaluate.other": url}))
    assert found.data[1:] == [f"val: 3 relabelled: {', '.join(IDS[:3])}"]
    untrained.pack(relabelled, IDS, relabelled=4)
    again = compare(override(config, {"evaluate.other": url}))
    assert again.data[1:] == ["the images cannot be compared: relabelled was prepared again since"]


def deliver(config: Config) -> Path:
    """The checkpoint of the configuration's run, as jobs.train delivers it."""
    made, store = evaluate(config), open_store(f"{config.runs_url}/{config.run_key}", config.storage)
    run = Run(config, made.manifest, store, "", "f" * 32, Claim(store, ""))
    return Path(deliver_best(run, made.checkpoint, made.score).address)


def test_settings_of_delivered_models_are_compared(config: Config, tmp_path: Path) -> None:
    weights = f"{tmp_path}/start.pth"
    second = {"name": "second", "seed": 7, "data.crop_size": [33, 41], "train.workers": 2, "model.weights": weights}
    environments = ({"commit": "1" * 40}, {"commit": "2" * 40})
    configs = [override(config, changes) for changes in ({"name": "first"}, second)]
    for number, (made, environment) in enumerate(zip(configs, environments, strict=True)):
        untrained.store_checkpoint(made, scratch(tmp_path, str(number)), environment=environment)
    one, other = (str(deliver(override(made, {"train.workers": 0}))) for made in configs)
    found = compare(override(config, {"evaluate.checkpoint": one, "evaluate.other": other}))
    assert found.settings == [
        "seed was 0 and is 7",
        "data.crop_size was [33, 33] and is [33, 41]",
        f"model.weights was None and is {weights!r}",
        f"commit was {'1' * 40} and is {'2' * 40}",
    ]
    assert (found.data, found.steps) == ([], ["the same run, steps 1 and 1"])
    # A model beside the checkpoint of another run.
    assert compare(override(config, {"evaluate.other": one})).settings == []


def test_of_an_older_delivered_model_the_settings_are_not_known(config: Config) -> None:
    folder = deliver(config)
    record = json.loads((folder / RECORD).read_text())
    del record["origin"]["settings"]
    (folder / RECORD).write_text(json.dumps(record))
    found = compare(override(config, {"evaluate.other": str(folder)}))
    assert found.settings == ["unknown: a model delivered by an earlier version lacks them; give its run or its checkpoint"]
    assert ccnet.load(folder, device="cpu").record.score["step"] == 1


def test_a_delivered_model_holds_no_secret_and_its_settings_no_address(config: Config, tmp_path: Path) -> None:
    secret = {"tracking.uri": "http://me:hunter2@mlflow:5000", "model.weights": f"{tmp_path}/start.pth", "name": "secret"}
    made = override(config, secret | {"data.source": f"{tmp_path}/source", "data.lists": {"val": f"{tmp_path}/val.txt"}})
    untrained.store_checkpoint(made, scratch(tmp_path, "b"))
    text = (deliver(made) / RECORD).read_text()
    assert not [word for word in ("hunter2", "mlflow:5000", "val.txt", f"{tmp_path}/source") if word in text]
    settings = json.loads(text)["origin"]["settings"]
    assert "/" not in json.dumps(settings)
    assert settings["train"]["learning_rate"] == 0.01
    written = {path.name: path.read_bytes() for path in deliver(made).iterdir()}
    assert written[RECORD].decode() == text, "delivered again: the same bytes"


def test_the_same_checkpoint_differs_in_nothing(config: Config, tmp_path: Path) -> None:
    url = untrained.store_checkpoint(override(config, {"name": "same"}), scratch(tmp_path, "b"), run_id="f" * 32)
    found = compare(override(config, {"evaluate.other": url}))
    assert (found.settings, found.data) == ([], [])
    assert (found.miou.low, found.miou.high, found.miou.verdict) == (0.0, 0.0, "equal")
    assert {each.verdict for each in found.classes} <= {"equal", ""}
    assert {other - one for _, one, other in found.images} == {0.0}
    page = Path(write_page(config, found))
    before = page.stat().st_mtime_ns
    assert write_page(config, compare(override(config, {"evaluate.other": url}))) == str(page)
    assert page.stat().st_mtime_ns == before, "the same comparison writes nothing"
    assert re.search(r"^mIoU +0\.\d{4}  0\.\d{4} +\+0\.0000  \+0\.0000 to \+0\.0000 +equal$", found.text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.1, 0.2, "better"), (-0.2, -0.1, "worse"), (-0.1, 0.1, "not certain"), (0.0, 0.0, "equal")]
)
def test_a_difference_counts_if_other_images_would_show_it(low: float, high: float, verdict: str) -> None:
    assert Interval("road", 10, 0.5, 0.6, low, high).verdict == verdict


def test_a_class_in_few_images_is_not_judged() -> None:
    """Of one image all resamples are equal: the interval is a point, and says nothing."""
    assert Interval("road", 1, 0.5, 0.6, 0.1, 0.1).verdict == "only 1 image"
    assert Interval("road", 9, 0.5, 0.6, 0.1, 0.2).verdict == "only 9 images"


def test_without_a_second_checkpoint_it_is_asked_for(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.other: missing; name the checkpoint to compare with"):
        compare(config)
    assert command(["jobs/configs/demo.yaml", "one"]) == 2


@pytest.mark.slow
def test_the_step_at_which_two_runs_part_in_mlflow(config: Config, tmp_path: Path) -> None:
    made = override(config, {"tracking.uri": f"sqlite:///{tmp_path}/mlflow.db"})
    client, losses = (
        connect(str(made.tracking.uri)),
        {"a": (0.5, 0.25, 0.125), "b": (0.5, 0.25, 0.1250001), "c": (0.5, 0.25), "d": ()},
    )
    ids = {name: runs.open_mlflow_run(made, environment={}, run_key=name) for name in losses}
    for name, values in losses.items():
        for step, loss in enumerate(values, 1):
            client.log_metric(ids[name], "train/loss", loss, step=step)

    def parted(one: str, other: str) -> list[str]:
        return differences.steps(made.tracking, *({"run_id": run_id, "step": 3} for run_id in (one, other)))

    assert parted(ids["a"], ids["b"]) == ["the loss differs from step 3 on: 0.125 and 0.1250001"]
    assert parted(ids["a"], ids["c"]) == ["equal as far as both go, to step 2"]
    assert parted(ids["a"], ids["a"]) == ["the same run, steps 3 and 3"]
    assert parted(ids["a"], ids["d"]) == ["unknown: MLflow has no step that both have recorded"]
    assert parted(ids["a"], "0" * 32)[0].startswith("unknown: ")
    assert parted(ids["a"], "") == ["unknown"]

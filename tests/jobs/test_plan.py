"""The output of jobs.plan, before and after preparation, and its exit code."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import plan
from pipeline.checkpoints import checkpoint
from pipeline.config.config import Config
from pipeline.config.load import parse
from pipeline.data.prepare import prepare
from pipeline.errors import ConfigError, SourceError
from pipeline.evaluation.protocol import validation_protocol
from pipeline.images import codec
from pipeline.storage.store import Store, open_store
from pipeline.training.run import open_run
from tests.support import folders
from tests.support.checkpoints import saved, trained
from tests.support.folders import rows_of

ROOT = Path(__file__).parents[2]
TINY = ["data.generated={num_train: 8, num_val: 4, size: 65}", "data.crop_size=65", "train.steps=10", "train.global_batch=4"]


def config(root: Path, **sections: dict[str, Any]) -> Config:
    data = {"name": "toy", "layout": "generated", "crop_size": 65, "scale": [1.0, 1.0]}
    data |= {"generated": {"num_train": 8, "num_val": 4, "size": 65}} | sections.pop("data", {})
    tree = {"name": "t", "storage": {"path": str(root)}, "model": {"recurrence": 2, "backbone": "resnet18"}, "data": data}
    return parse(tree | {"train": {"global_batch": 4, "steps": 10}} | sections)


def source(root: Path) -> Path:
    """Two pairs a split; the label of train/1.png has another size than its image."""
    for split in ("train", "val"):
        for kind, shape in (("", (24, 32, 3)), ("annot", (24, 32))):
            (root / f"{split}{kind}").mkdir(parents=True)
            for i in range(2):
                size = (32, 24) if (split, kind, i) == ("train", "annot", 1) else shape
                (root / f"{split}{kind}" / f"{i}.png").write_bytes(codec.encode_png(np.full(size, i, np.uint8)))
    return root


def test_a_plan_before_and_after_preparation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean = config(tmp_path / "s")
    assert plan.run(clean, strict=True) == 0
    before = capsys.readouterr().out
    assert "the source was surveyed instead; nothing was prepared" in before
    assert not [path for path in (tmp_path / "s").rglob("*") if path.is_file()]
    prepared = prepare(clean)
    assert plan.run(clean, strict=True) == 0
    after = capsys.readouterr().out
    assert f"fingerprint {prepared.fingerprint[:16]}" in after
    assert after.partition("\n\n")[2] == before.partition("\n\n")[2]
    assert after.endswith("\n0 errors, 0 warnings\n")

    doubtful = config(tmp_path / "s", loss={"ohem": {}})
    assert plan.run(doubtful) == 0
    assert plan.run(doubtful, strict=True) == 1
    assert capsys.readouterr().out.endswith("\n0 errors, 1 warning\n")
    assert plan.run(config(tmp_path / "s", loss={"class_weights": [1, 2]})) == 1
    assert "error    loss.class_weights has 2 values: toy has 6 classes" in capsys.readouterr().out


def test_what_training_refuses_is_an_error_of_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {"train": {"global_batch": 4, "steps": 10, "resume": "t-0123abcd"}, "tracking": {"uri": "http://127.0.0.1:9"}}
    refused = config(tmp_path / "s", **wrong)
    prepare(refused)
    assert plan.run(refused) == 1
    shown = capsys.readouterr().out
    assert "error    tracking.uri = http://127.0.0.1:9: no MLflow server answers there" in shown
    assert "error    train.resume = t-0123abcd: no checkpoint in " in shown
    with pytest.raises(ConfigError) as raised, open_run(refused):
        pass
    assert [line.partition(":")[0] for line in raised.value.mistakes] == ["tracking.uri = http", "train.resume = t-0123abcd"]


def test_checkpoints_that_cannot_be_read_are_an_error_of_plan_and_training_and_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = config(tmp_path / "s", tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"})
    run, recorded = open_store(f"{made.runs_url}/{made.run_key}", made.storage), {"config": made.record()}
    recorded["protocol"] = validation_protocol(made, prepare(made))
    for step in (4, 8):
        saved(run, tmp_path, step, **recorded)
    run.write("step-000008/model.safetensors", b"cut")
    assert plan.run(made) == 0
    assert f"warning  checkpoint skipped: {run.url('step-000008/model.safetensors')}: " in capsys.readouterr().out
    run.write("step-000004/manifest.json", b'{"version": 2}')
    before = {key: run.read(key) for key in run.list()}
    assert plan.run(made) == 1
    shown = capsys.readouterr().out
    assert f"error    {run.url('')}: holds checkpoints, but none that can be used ({run.url('step-000008/model')}" in shown
    assert "1 error, 0 warnings" in shown
    with pytest.raises(ConfigError, match=r"; nothing was changed: put back a copy of one, .*\(name=\.\.\.\)"), open_run(made):
        pass
    assert {key: run.read(key) for key in run.list()} == before


ALL, NONE = rows_of(0, 1, 2), rows_of(255)
THREE, BINARY = "[road, car, tree]", "[background, crack]"
NOTHING_TO_LEARN = {
    "masks of 0 and 255": (BINARY, [rows_of(0, 255)] * 2, [rows_of(0, 255)], "error", "{id: 255, name: crack}]"),
    "masks of 0 alone": (THREE, [rows_of(0)] * 2, [rows_of(0)], "error", "train: every labelled pixel is `road`"),
    "one class in train": (THREE, [rows_of(1)] * 2, [ALL], "error", "train: every labelled pixel is `car`"),
    "train ignored": (THREE, [NONE] * 2, [ALL], "error", "train: every pixel is ignored"),
    "val ignored": (THREE, [ALL] * 2, [NONE], "error", "val: every pixel is ignored"),
    "no val": (THREE, [ALL] * 2, [], "error", "val"),
    "one class listed": ("[crack]", [rows_of(0)] * 2, [rows_of(0)], "error", "1 class that is not ignored: at least 2"),
    "ids of another data set": (THREE, [ALL, rows_of(0, 7)], [ALL], "error", "label ids outside the map: 7"),
    "ids spread over 0 to 255": (THREE, [rows_of(0, 127, 255)] * 2, [rows_of(0, 127)], "error", "{id: 127, name: car}"),
    "ids from 1": (THREE, [rows_of(0, 1, 2, 3)] * 2, [ALL], "error", "[{id: 0, ignore: true}, {id: 1, name: road}"),
    "a class that no split has": (THREE, [rows_of(0, 1)] * 2, [rows_of(0, 1)], "warning", "no split has a pixel of 1 of the 3 "),
    "a class that val lacks": (BINARY, [rows_of(0, 1)] * 2, [rows_of(0)], "warning", "val has no pixel of 1 of the 2 classes: "),
    "one label for all images": (BINARY, [rows_of(0, 1)] * 2, [rows_of(0, 1)], "warning", "train: every label is the same file"),
    "a class that train lacks": (THREE, [rows_of(0, 1)] * 2, [ALL], "warning", "train has no pixel of 1 of the 3 classes: tree"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTHING_TO_LEARN)
def test_a_data_set_that_teaches_nothing_is_no_sound_plan(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    classes, train, val, level, words = NOTHING_TO_LEARN[case]
    made = folders.config(tmp_path, folders.write(tmp_path / "source", classes, train, val))
    assert plan.run(made) == (level == "error")
    shown = capsys.readouterr().out
    assert words in shown
    if level == "error":
        with pytest.raises(SourceError):
            prepare(made)
    else:
        prepare(made)
        assert plan.run(made) == 0
        assert words in capsys.readouterr().out


def test_images_that_train_and_val_share_are_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folders.write(tmp_path / "source", THREE, [ALL] * 2, [ALL])
    shutil.copy(folder / "images/train/0.png", folder / "images/val/0.png")
    assert plan.run(folders.config(tmp_path, folder)) == 0
    assert "warning  every image of val occurs in more than one split, byte for byte: train/0 = val/0" in capsys.readouterr().out


def test_a_source_that_changed_since_it_was_prepared_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folders.write(tmp_path / "source", THREE, [ALL, rows_of(2, 1, 0)], [ALL])
    made = folders.config(tmp_path, folder)
    prepare(made)
    assert plan.run(made, strict=True) == 0
    folders.write(folder, "[road, car, tree]", [ALL, rows_of(2, 1, 0), ALL], [])
    assert plan.run(made) == 1
    shown = capsys.readouterr().out
    assert (
        f"error    data.source = {folder}: changed since jobs.prepare: samples of train: 1 added (first: images/train/2.png)"
        in shown
    )
    assert "fix: run python -m jobs.prepare CONFIG" in shown
    with pytest.raises(ConfigError, match=r"changed since jobs\.prepare"), open_run(made):
        pass


def test_a_run_that_resumes_keeps_its_data_and_says_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folders.write(tmp_path / "source", THREE, [ALL] * 2, [ALL])
    made = folders.config(tmp_path, folder)
    protocol = {"data_fingerprint": prepare(made).fingerprint, "image_scale": made.evaluate.scale}
    net, optimizer = trained(1)
    local = tmp_path / "local"
    local.mkdir()
    record = {"step": 1, "metrics": {}, "config": made.record(), "protocol": protocol}
    checkpoint.save(local, checkpoint.snapshot(net, optimizer), record)
    checkpoint.upload(local, Store(f"{made.runs_url}/{made.run_key}"), checkpoint.folder_name(1))
    folders.write(folder, THREE, [ALL] * 3, [])
    assert plan.run(made) == 0
    shown = capsys.readouterr().out
    assert f"warning  data.source = {folder}: changed since jobs.prepare: samples of train: 1 added" in shown
    assert "fix: this run resumes with the data as prepared; for a new run, run python -m jobs.prepare CONFIG" in shown


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.", r"ignore::FutureWarning:ray\.")
def test_faults_of_the_source_are_errors(tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]) -> None:
    folder = source(tmp_path / "source")
    broken = config(tmp_path / "s", data={"layout": "camvid", "source": str(folder)}, train={"cpus_per_worker": 2.0})
    assert plan.run(broken) == 1
    shown = capsys.readouterr().out
    assert f"error    {folder}/trainannot/1.png: label is 24 x 32 pixels, its image 32 x 24" in shown
    assert "error    train.workers = 2: 5 CPUs are needed" in shown
    assert shown.endswith("\n2 errors, 0 warnings\n")


def test_the_command_takes_strict_anywhere_and_starts_no_cluster(tmp_path: Path) -> None:
    words = ["--strict", "jobs/configs/demo.yaml", *TINY, f"storage.path={tmp_path}", "loss.ohem={}"]
    done = subprocess.run([sys.executable, "-m", "jobs.plan", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout.endswith("\n0 errors, 1 warning\n")
    assert "Ray" not in done.stderr

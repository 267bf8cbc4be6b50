"""Prediction of what people keep in folders: nothing of theirs is replaced, and one bad image is one fault."""

import json
import logging
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import s3fs

from jobs import cli
from jobs import predict as verb
from pipeline.config.config import Config
from pipeline.config.load import override
from pipeline.data import synthetic
from pipeline.errors import ConfigError, StorageError
from pipeline.evaluation.predict import Predicted, predict
from pipeline.evaluation.results import LIST, seal_of, sealed
from pipeline.images import codec
from pipeline.storage.local import is_scratch
from tests.support import untrained

ROOT = Path(__file__).parents[3]
IMAGE = synthetic.sample(0, 0, 40)[0][:, :24]
JPEG, PNG = codec.encode_jpeg(IMAGE), codec.encode_png(IMAGE)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return untrained.make(tmp_path_factory.mktemp("storage"), tmp_path_factory.mktemp("checkpoint"))


def folder(path: Path, **files: bytes) -> Path:
    """A folder of files; `__` in the end of a name stands for a dot."""
    path.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        file = path / re.sub(r"__(\w+)$", r".\1", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


def asked(config: Config, images: object, output: object, **more: object) -> Config:
    return override(config, {"predict.images": str(images), "predict.output": str(output), **more})


def names(done: Predicted) -> list[str]:
    return [Path(each.mask_url).name for each in done.done]


def held(path: Path) -> dict[str, bytes]:
    """The files in a folder but the list of predictions."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name != LIST)
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.mark.parametrize("output", ["images", "images/masks", "link", "link/masks", "images/../images"])
def test_results_never_lie_among_the_images(config: Config, tmp_path: Path, output: str) -> None:
    images = folder(tmp_path / "images", a__png=PNG)
    (tmp_path / "link").symlink_to(images)
    with pytest.raises(ConfigError, match=r"predict\.output = .*results would lie in predict\.images = .*choose another folder"):
        predict(asked(config, images, tmp_path / output))
    assert held(images) == {"a.png": PNG}


def test_results_never_lie_in_a_folder_of_images_reached_by_a_link(config: Config, tmp_path: Path) -> None:
    real, images = folder(tmp_path / "real", a__png=PNG), folder(tmp_path / "images", b__png=PNG)
    (images / "more").symlink_to(real)
    with pytest.raises(ConfigError, match=r"results would lie among the images in .*/real"):
        predict(asked(config, images, real))
    assert held(real) == {"a.png": PNG}


def test_images_with_one_result_are_faults_whatever_else_lies_there(config: Config, tmp_path: Path) -> None:
    images = folder(tmp_path / "in", cam__jpg=JPEG, cam__png=PNG, a__jpg=JPEG, a_overlay__jpg=JPEG, z__jpg=JPEG)
    done = predict(asked(config, images, tmp_path / "out"))
    assert names(done) == ["z.png"]
    assert list(held(tmp_path / "out")) == ["z.png", "z_overlay.png"]
    assert [fault.replace(f"{images}/", "") for fault in done.faults] == [
        "a.jpg: its result would be that of a_overlay.jpg too: rename one of the two",
        "a_overlay.jpg: its result would be that of a.jpg too: rename one of the two",
        "cam.jpg: its result would be that of cam.png too: rename one of the two",
        "cam.png: its result would be that of cam.jpg too: rename one of the two",
    ]


def test_files_that_are_no_images_are_left_out_and_counted(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = folder(tmp_path / "in", **{"a.JPG": JPEG, "clip.mp4": b"x", "notes.txt": b"x", "README": b"x"})
    folder(images, **{"._a.JPG": b"\0\5\x16\7", ".thumbs/a.jpg": JPEG, "__MACOSX/._a.jpg": b"\0\5\x16\7"})
    with caplog.at_level(logging.WARNING, "pipeline"):
        done = predict(asked(config, images, tmp_path / "out"))
    assert (names(done), done.faults) == (["a.png"], [])
    text = "files left out: 3 hidden (first: ._a.JPG), 1 without an ending (first: README), 1 *.mp4 (first: clip.mp4), 1 *.txt"
    assert text in caplog.text


def test_a_bad_image_is_named_and_the_others_are_predicted(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = folder(tmp_path / "in", a__jpg=JPEG, cut__png=PNG[:-20], empty__jpg=b"", z__jpg=JPEG)
    assert verb.run(asked(config, images, tmp_path / "out")) == 1
    printed = capsys.readouterr()
    assert list(held(tmp_path / "out")) == ["a.png", "a_overlay.png", "z.png", "z_overlay.png"]
    assert re.fullmatch(r"2 images predicted in \d+ s \([\d.e+]+ images/s\)", printed.out.splitlines()[-1])
    cut, empty, last = printed.err.splitlines()[-3:]
    assert cut.startswith(f"{images}/cut.png: truncated PNG")
    assert empty == f"{images}/empty.jpg: empty file: copy it again"
    assert last == "images not predicted, named above: 2"


def test_a_rerun_replaces_its_own_results_and_nothing_else(config: Config, tmp_path: Path) -> None:
    images, output = folder(tmp_path / "in", a__jpg=JPEG, b__jpg=JPEG, c__jpg=JPEG), tmp_path / "out"
    folder(output, c_overlay__png=PNG)  # a file of the user
    first = predict(asked(config, images, output))
    assert (names(first), len(first.faults)) == (["a.png", "b.png"], 1)
    assert "c_overlay.png was not replaced: it is no result of this image" in first.faults[0]
    mask = codec.decode_label((output / "b.png").read_bytes())
    (output / "b.png").write_bytes(codec.encode_png(mask))  # as if it was corrected by hand
    before = held(output)
    again = predict(asked(config, images, output, **{"evaluate.flip": True}))
    assert names(again) == ["a.png"]
    assert [Path(fault.partition(": ")[0]).name for fault in again.faults] == ["b.jpg", "c.jpg"]
    assert {key for key, data in held(output).items() if before[key] != data} <= {"a.png", "a_overlay.png"}


def test_a_rerun_computes_only_what_is_missing_or_made_of_something_else(config: Config, tmp_path: Path) -> None:
    images, output = folder(tmp_path / "in", a__jpg=JPEG, b__jpg=JPEG, c__jpg=JPEG, d__jpg=JPEG), tmp_path / "out"
    assert not any(each.before for each in predict(asked(config, images, output)).done)
    first, times = held(output), {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    assert all(each.before for each in predict(asked(config, images, output)).done)
    assert times == {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    (output / "a.png").unlink()
    (output / "b_overlay.png").unlink()
    (images / "c.jpg").write_bytes(codec.encode_jpeg(IMAGE[::-1].copy()))
    again = predict(asked(config, images, output))
    assert [(name, each.before) for name, each in zip(names(again), again.done, strict=True)] == [
        ("a.png", False), ("b.png", False), ("c.png", False), ("d.png", True),
    ]  # fmt: skip
    assert {name for name, data in held(output).items() if data != first[name]} <= {"c.png", "c_overlay.png"}
    other = predict(asked(config, images, output, **{"evaluate.recurrence": 1}))
    assert not any(each.before for each in other.done), "another R is another result"


@pytest.mark.parametrize("left", [0, 30, -1], ids=["nothing", "its beginning", "all but a byte"])
def test_what_a_loss_of_power_left_of_a_result_is_replaced(config: Config, tmp_path: Path, left: int) -> None:
    images, output = folder(tmp_path / "in", a__jpg=JPEG, b__jpg=JPEG), tmp_path / "out"
    predict(asked(config, images, output))
    whole = held(output)
    (output / "a.png").write_bytes(whole["a.png"][:left])
    assert [each.before for each in predict(asked(config, images, output)).done] == [False, True]
    assert held(output) == whole


@pytest.mark.parametrize("made_of", ["", "0" * 64])
def test_a_seal_is_of_one_image_and_of_one_file(made_of: str) -> None:
    whole = sealed(PNG, "a.jpg", made_of)
    assert seal_of(whole, "a.jpg") == made_of
    assert np.array_equal(codec.decode_image(whole), IMAGE)
    assert seal_of(whole, "b.jpg") is seal_of(PNG, "a.jpg") is seal_of(b"", "a.jpg") is None
    for position in (40, len(whole) - 60, len(whole) - 20):
        changed = bytearray(whole)
        changed[position] ^= 1
        assert seal_of(bytes(changed), "a.jpg") is None
    assert seal_of(sealed(whole, "a.jpg", made_of), "a.jpg") == made_of, "a PNG may have such a chunk already"


@pytest.mark.slow
def test_a_prediction_that_was_killed_resumes(config: Config, tmp_path: Path) -> None:
    number = 60
    images = folder(tmp_path / "in", **{f"{n:03d}.jpg": JPEG for n in range(number)})
    made = asked(config, images, tmp_path / "out", **{"train.workers": 0})
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(made.record()))
    command = [sys.executable, "-m", "jobs.predict", str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        while not len(list((tmp_path / "out").glob("*"))) > 20:
            assert first.poll() is None
            time.sleep(0.01)
        first.kill()
    assert not (tmp_path / "out" / LIST).exists()
    done = len(list((tmp_path / "out").glob("*_overlay.png")))
    again = predict(made)
    assert len(again.done) == number
    assert done - 1 <= sum(each.before for each in again.done) < number
    results = held(tmp_path / "out")
    expected = {f"{n:03d}{end}" for n in range(number) for end in (".png", "_overlay.png")}
    assert {name for name in results if not is_scratch(name)} == expected
    assert len((tmp_path / "out" / LIST).read_text().splitlines()) == 1 + number
    assert len({codec.decode_label(results[f"{n:03d}.png"]).tobytes() for n in range(number)}) == 1


def test_the_result_of_an_image_of_the_same_name_is_not_replaced(config: Config, tmp_path: Path) -> None:
    one, two, output = folder(tmp_path / "1", a__jpg=JPEG), folder(tmp_path / "2", a__png=PNG), tmp_path / "out"
    predict(asked(config, one, output))
    before = held(output)
    assert predict(asked(config, two, output)).done == []
    assert held(output) == before


def test_the_same_image_has_the_same_result_alone_and_in_its_folder(config: Config, tmp_path: Path) -> None:
    images = folder(tmp_path / "in", a__jpg=JPEG, b__jpg=JPEG)
    predict(asked(config, images / "a.jpg", tmp_path / "alone"))
    predict(asked(config, images, tmp_path / "all"))
    assert held(tmp_path / "alone").items() <= held(tmp_path / "all").items()
    assert list(held(tmp_path / "alone")) == ["a.png", "a_overlay.png"]


def test_an_address_without_images_is_an_error_that_says_what_lies_there(config: Config, tmp_path: Path) -> None:
    videos = folder(tmp_path / "videos", a__mp4=b"x", b__mp4=b"x", notes__txt=b"x")
    expected = r"videos: no image found; files left out: 2 \*\.mp4 \(first: a\.mp4\), 1 \*\.txt .*; \.png, \.jpg, .* are read"
    with pytest.raises(ConfigError, match=expected):
        predict(asked(config, videos, tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"notes\.txt: no image found; files left out: 1 \*\.txt"):
        predict(asked(config, videos / "notes.txt", tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match=r"no files found: correct predict\.images"):
        predict(asked(config, tmp_path / "empty", tmp_path / "out"))
    with pytest.raises(StorageError, match=r"nowhere: .*correct predict\.images"):
        predict(asked(config, tmp_path / "nowhere", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_limit_says_how_many_it_leaves_out(config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = folder(tmp_path / "in", a__jpg=JPEG, b__jpg=JPEG, c__jpg=JPEG)
    with caplog.at_level(logging.WARNING, "pipeline"):
        assert names(predict(asked(config, images, tmp_path / "out", **{"predict.limit": 1}))) == ["a.png"]
    assert "predict.limit = 1 leaves out 2 of 3 images" in caplog.text


def test_an_image_is_predicted_as_viewers_show_it(config: Config, tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6: a quarter turn
    turned = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + JPEG[2:]
    predict(asked(config, folder(tmp_path / "in", stored__jpg=JPEG, turned__jpg=turned), tmp_path / "out"))
    stored, upright = ((tmp_path / "out" / f"{name}.png").read_bytes() for name in ("stored", "turned"))
    assert (codec.decode_label(stored).shape, codec.decode_label(upright).shape) == ((40, 24), (24, 40))


def test_samples_of_a_split_with_one_result_are_faults(config: Config, tmp_path: Path) -> None:
    made = untrained.make(tmp_path / "storage", folder(tmp_path / "scratch"), ids=["a", "a_overlay", "b"])
    done = predict(override(made, {"predict.output": str(tmp_path / "out")}))
    assert names(done) == ["b.png"]
    assert done.faults[0] == "ten val a: its result would be that of ten val a_overlay too: rename one of the two"


def test_names_are_text(config: Config, tmp_path: Path) -> None:
    odd = ["a[1]", "a*", "a?", "b {x,y}", "c#1 %20+&'", "d.e.f", "道路", "{}", "-x", "sub/[!a]"]
    images = folder(tmp_path / "in [1]*", **{f"{name}.jpg": JPEG for name in odd})
    done = predict(asked(config, images, tmp_path / "out {}#1"))
    assert done.faults == []
    assert set(held(tmp_path / "out {}#1")) == {f"{name}{end}" for name in odd for end in (".png", "_overlay.png")}
    assert len(held(images)) == len(odd)


def test_a_name_that_is_no_text_is_predicted(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = folder(tmp_path / "in")
    Path(os.fsdecode(os.fsencode(images) + b"/\xff\xe9.jpg")).write_bytes(JPEG)
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(asked(config, images, tmp_path / "out").record()))
    assert cli.main(verb.run, [str(file)]) == 0
    assert len(held(tmp_path / "out")) == 2
    assert r"out/\udcff\udce9.png" in capsys.readouterr().out


def test_a_bucket_is_treated_like_a_folder(config: Config, endpoint: str, credentials: None, tmp_path: Path) -> None:
    fs = s3fs.S3FileSystem(endpoint_url=endpoint)
    fs.mkdir("predict")
    for key in ("in/a.png", "in/._a.png", "in/sub/b.png"):
        fs.pipe_file(f"predict/{key}", PNG)
    there = override(config, {"storage.endpoint": endpoint})
    for output in ("s3://predict/in", "s3://predict/in/masks"):
        with pytest.raises(ConfigError, match=r"results would lie in predict\.images = s3://predict/in"):
            predict(asked(there, "s3://predict/in", output))
    done = predict(asked(there, "s3://predict/in", "s3://predict/inside"))
    assert [each.mask_url for each in done.done] == ["s3://predict/inside/a.png", "s3://predict/inside/sub/b.png"]
    assert predict(asked(there, "s3://predict/in/a.png", tmp_path / "out")).faults == []
    assert np.array_equal(codec.decode_image(fs.cat_file("predict/in/a.png")), IMAGE)


@pytest.mark.slow
def test_tasks_name_bad_images_too(config: Config, local_ray: None, tmp_path: Path) -> None:
    images = folder(tmp_path / "in", a__jpg=JPEG, m__jpg=b"", z__jpg=JPEG)
    done = predict(asked(config, images, tmp_path / "out", **{"train.workers": 2, "train.cpus_per_worker": 0.5}))
    assert (names(done), done.faults) == (["a.png", "z.png"], [f"{images}/m.jpg: empty file: copy it again"])

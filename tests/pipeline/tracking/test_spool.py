"""Where records wait: in a folder of this user alone, or in memory; files that nobody needs are removed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import TrackingError
from pipeline.tracking import spool
from pipeline.tracking.metric_log import MetricLog

NOWHERE = "http://127.0.0.1:9"
RUN = "c" * 32
POINT: spool.Row = (1, 2, "loss", 0.5, None)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"ccnet-metrics-{os.getuid()}"


def store(folder: Path, run_id: str, sent: int) -> Path:
    """A file of records as a killed process leaves it."""
    opened = spool.open_spool(run_id, folder)
    with opened.records:
        opened.records.execute(spool.INSERT, POINT)
        opened.records.execute("UPDATE record SET sent = ?", (sent,))
    opened.records.close()
    assert opened.lock
    assert opened.file
    opened.lock.close()
    return opened.file


def test_the_default_folder_is_in_the_temporary_one_and_only_this_user_may_enter_it(temporary: Path) -> None:
    log = MetricLog(NOWHERE, RUN)
    log.metrics({"loss": 1.0}, 1)
    log.close(timeout_s=0)
    assert (temporary / f"{RUN}.db").is_file()
    assert temporary.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("made", ["link", "file", "another user"])
def test_a_folder_that_cannot_be_ones_own_is_not_used(temporary: Path, made: str, caplog: pytest.LogCaptureFixture) -> None:
    other = temporary.parent / "other"
    other.mkdir()
    if made == "link":
        temporary.symlink_to(other)
    elif made == "file":
        temporary.write_bytes(b"")
    elif os.getuid():
        pytest.skip("only root can make another user's folder")
    else:
        temporary.mkdir()
        os.chown(temporary, 12345, 12345)
    log = MetricLog(NOWHERE, RUN, keep=lambda kind, data: f"s3://kept/{kind}")
    log.metrics({"loss": 1.0}, 1)
    assert log.close(timeout_s=0.1) == 1
    assert "wait in memory, where a killed process loses them" in caplog.text
    assert "set TMPDIR" in caplog.text
    assert "are kept in s3://kept/unsent" in caplog.text
    assert not list(other.iterdir())


def test_records_that_nothing_could_keep_are_called_lost(temporary: Path, caplog: pytest.LogCaptureFixture) -> None:
    temporary.write_bytes(b"")
    log = MetricLog(NOWHERE, RUN)
    log.metrics({"loss": 1.0}, 1)
    assert log.close(timeout_s=0.1) == 1
    assert "1 metric points and pictures of run" in caplog.text
    assert "are not sent to MLflow yet and are lost" in caplog.text


def test_the_next_start_removes_what_killed_processes_left_unless_something_waits(tmp_path: Path) -> None:
    done = store(tmp_path, "1" * 32, sent=1)
    waits = store(tmp_path, "2" * 32, sent=0)
    refused = store(tmp_path, "3" * 32, sent=2)
    spool.close_spool(spool.open_spool(RUN, tmp_path))
    assert not done.exists()
    assert {path.name for path in tmp_path.glob("*.db")} == {waits.name, refused.name}


def test_the_files_of_a_running_process_stay(tmp_path: Path) -> None:
    code = (
        f"from pipeline.tracking.spool import *; s = open_spool({RUN!r}, {str(tmp_path)!r}); print('open', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == b"open\n"
        spool.remove_sent(tmp_path)
        spool.close_spool(spool.open_spool(RUN, tmp_path))  # a second process of the same run ends
        assert (tmp_path / f"{RUN}.db").exists()
        child.communicate(b"\n")
    spool.remove_sent(tmp_path)
    assert not list(tmp_path.iterdir())


def test_packed_records_come_back_and_other_bytes_are_an_error() -> None:
    rows: list[spool.Row] = [POINT, (3, 4, "panel", None, b"png"), (5, 6, "nan", None, None)]
    assert spool.unpack(spool.pack(rows)) == rows
    with pytest.raises(TrackingError, match="no metric records"):
        spool.unpack(b"no database" * 100)

"""The local stack, really started: its addresses, restarts, access, and that `down` leaves no process."""

import json
import os
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import botocore.session
import pytest

from infra import processes
from infra.processes import Identity
from infra.services import S3_VENV
from infra.stack_env import environment

pytestmark = pytest.mark.slow
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def root_of(stack: dict[str, str]) -> Path:
    return Path(stack["RAY_AUTH_TOKEN_PATH"]).parent


def state(root: Path) -> dict:
    return json.loads((root / "state.json").read_text())


def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=300)


def members(root: Path) -> set[Identity]:
    records = state(root)["processes"].values()
    return set().union(*(processes.members(Identity(r["pid"], r["started"]), r["mark"]) for r in records))


def bucket(stack: dict[str, str]):
    return botocore.session.Session().create_client(
        "s3",
        endpoint_url=stack["AWS_ENDPOINT_URL"],
        region_name=stack["AWS_DEFAULT_REGION"],
        aws_access_key_id=stack["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=stack["AWS_SECRET_ACCESS_KEY"],
    )


JOB = """
import sys
from pathlib import Path
from jobs import submit
client = submit.connect()
sys.exit(submit.follow(client, submit.submit(client, sys.argv[1], working_dir=sys.argv[2])))
"""

LEAVES_A_PROCESS = """
import subprocess, time
subprocess.Popen(["sleep", "600"], start_new_session=True)
print("go", flush=True)
time.sleep(600)
"""


def test_status_names_three_living_services(stack: dict[str, str]) -> None:
    result = run("-m", "infra.stack", "status", "--root", root_of(stack))
    assert result.returncode == 0, result.stderr
    assert [line.split()[::2] for line in result.stdout.splitlines()[:3]] == [["s3", "up"], ["mlflow", "up"], ["ray", "up"]]


def test_a_second_up_changes_nothing(stack: dict[str, str]) -> None:
    before = state(root_of(stack))
    assert run("-m", "infra.stack", "up", "--root", root_of(stack)).returncode == 0
    assert state(root_of(stack)) == before


def test_every_socket_listens_on_loopback_alone(stack: dict[str, str]) -> None:
    inodes = set()
    for member in members(root_of(stack)):
        for descriptor in Path(f"/proc/{member.pid}/fd").iterdir():
            target = os.readlink(descriptor) if descriptor.is_symlink() else ""
            inodes.add(target.removeprefix("socket:[").removesuffix("]"))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listening = {row[1] for row in rows if row[3] == "0A" and row[9] in inodes}
    assert len(listening) >= 4  # the four addresses that the stack prints and uses
    assert {address.split(":")[0] for address in listening} <= LOOPBACK


def test_secrets_are_readable_by_their_owner_alone(stack: dict[str, str]) -> None:
    root = root_of(stack)
    files = ["ray.token", "s3.json", "env", "state.json"]
    assert [stat.S_IMODE((root / name).stat().st_mode) for name in files] == [0o600] * 4
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_objects_survive_a_killed_store_and_only_the_store_restarts(stack: dict[str, str]) -> None:
    root = root_of(stack)
    before = state(root)
    bucket(stack).put_object(Bucket="ccnet", Key="kept/object", Body=b"checkpoint")
    os.kill(before["processes"]["s3"]["pid"], signal.SIGKILL)
    assert run("-m", "infra.stack", "up", "--root", root).returncode == 0
    after = state(root)
    assert bucket(stack).get_object(Bucket="ccnet", Key="kept/object")["Body"].read() == b"checkpoint"
    assert after["processes"]["s3"] != before["processes"]["s3"]
    assert after["processes"]["ray"] == before["processes"]["ray"]
    assert after["ports"] == before["ports"]


def test_a_job_ends_with_its_own_exit_code_and_only_what_git_tracks_is_sent(stack: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import os, sys\nprint(sorted(os.listdir('.')), sys.executable, os.environ['AWS_ENDPOINT_URL'])\nsys.exit(7)\n"
    )
    (tmp_path / ".gitignore").write_text("data/\n")
    for folder in ("data", ".stack", "outputs", ".venv-s3"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "large").touch()
    result = run("-c", JOB, "python script.py", tmp_path, **stack)
    assert result.returncode == 7, result.stderr
    assert f"['.gitignore', 'script.py'] {sys.executable}" in result.stdout
    assert stack["AWS_ENDPOINT_URL"] in result.stdout


def test_an_interrupt_stops_the_job(stack: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import time\nprint('running', flush=True)\ntime.sleep(600)\n")
    command = [sys.executable, "-c", JOB, "python script.py", str(tmp_path)]
    with subprocess.Popen(
        command, env=os.environ | stack, stdout=subprocess.PIPE, text=True,
        # a shell's background jobs ignore SIGINT, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert any("running" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        try:
            rest = process.communicate(timeout=60)[0]
        finally:
            process.kill()
    assert process.returncode == 130
    assert "stopping raysubmit_" in rest


def test_a_wrong_token_is_refused(stack: dict[str, str], tmp_path: Path) -> None:
    request = urllib.request.Request(f"{stack['RAY_API_SERVER_ADDRESS']}/api/jobs/", headers={"Authorization": "Bearer 00"})
    with pytest.raises(urllib.error.HTTPError, match=r"40[13]"):
        urllib.request.urlopen(request)
    wrong = tmp_path / "token"
    wrong.write_text("00")
    result = run("-m", "jobs.submit", "train", "jobs/configs/demo.yaml", **stack | {"RAY_AUTH_TOKEN_PATH": str(wrong)})
    assert result.returncode == 2
    assert "accepts no jobs" in result.stderr
    assert "RAY_AUTH_TOKEN_PATH" in result.stderr


def test_down_leaves_no_process_and_keeps_the_data(stack: dict[str, str], tmp_path: Path) -> None:
    root, work = tmp_path / "root", tmp_path / "work"
    work.mkdir()
    (work / "script.py").write_text(LEAVES_A_PROCESS)
    result = run("-m", "infra.stack", "up", "--root", root)
    try:
        assert result.returncode == 0, result.stdout + result.stderr
        own = environment(root)
        assert own["AWS_ENDPOINT_URL"] != stack["AWS_ENDPOINT_URL"]  # that port was taken
        bucket(own).put_object(Bucket="ccnet", Key="kept", Body=b"1")
        command = [sys.executable, "-c", JOB, "python script.py", str(work)]
        with subprocess.Popen(command, env=os.environ | own, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert any("go" in line for line in process.stdout)
            before = members(root)
            temporary = state(root)["temporary"]
            assert len(before) > 10
            assert run("-m", "infra.stack", "down", "--root", root).returncode == 0
            assert "lost the connection to" in process.communicate(timeout=60)[0]
        assert not any(processes.alive(member) for member in before)
        assert not Path(temporary).exists()
        assert list((root / "s3").rglob("kept*"))
        assert run("-m", "infra.stack", "status", "--root", root).returncode == 1
        assert run("-m", "infra.stack", "status", "--root", root_of(stack)).returncode == 0  # the other stack still runs
    finally:
        run("-m", "infra.stack", "down", "--root", root)


def test_a_service_that_dies_is_named_with_its_log_and_nothing_stays(tmp_path: Path) -> None:
    broken = tmp_path / "venv" / "bin" / "ministack"
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/bin/sh\nsleep 1; echo out of luck; exit 3\n")
    broken.chmod(0o700)
    root = tmp_path / "root"
    result = run("-m", "infra.stack", "up", "--root", root, **{S3_VENV: str(tmp_path / "venv")})
    assert result.returncode == 1
    assert "s3 ended while starting" in result.stderr
    assert "out of luck" in result.stderr
    assert state(root)["processes"] == {}
    run("-m", "infra.stack", "down", "--root", root)

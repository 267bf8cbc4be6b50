"""The local stack, really started: its addresses, restarts, access, and that `down` leaves no process."""

import json
import os
import re
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
from pipeline.cluster.job_server import TOKEN_FIX, UNKNOWN
from tests.support.breaking_proxy import BreakingProxy

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
from jobs.submit import connect, follow
server = connect(None)
from pipeline.cluster import job_server
job_server.GIVE_UP_S = 5.0
sys.exit(follow(server, server.submit(sys.argv[1], "test", sys.argv[2], {}, alone=False)))
"""

TWICE = """
import sys
from jobs.submit import connect
server = connect(None)
from pipeline.errors import ClusterError
work = ("python script.py", "once", sys.argv[1], {})
print(server.submit(*work, alone=True))
try:
    server.submit(*work, alone=True)
except ClusterError as error:
    print(error)
print(server.submit(*work, alone=False))
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


def test_a_job_ends_with_its_own_exit_code_and_says_where_it_runs(stack: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import os, sys\nprint(sorted(os.listdir('.')), sys.executable, os.environ['AWS_ENDPOINT_URL'])\nsys.exit(7)\n"
    )
    result = run("-c", JOB, "python script.py", tmp_path, **stack)
    assert result.returncode == 7, result.stderr
    assert f"['script.py'] {sys.executable}" in result.stdout
    assert f"cluster {stack['RAY_API_SERVER_ADDRESS']} (RAY_API_SERVER_ADDRESS)\n" in result.stdout
    assert stack["AWS_ENDPOINT_URL"] in result.stdout


def test_a_log_over_a_connection_that_breaks_again_and_again_is_whole(stack: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import sys, time\n"
        "for n in range(300):\n    print('line', n, 'x' * (n % 50), flush=True)\n    time.sleep(0.03)\n"
        "sys.exit(5)\n"
    )
    with BreakingProxy(stack["RAY_API_SERVER_ADDRESS"], 1.5) as proxy:
        result = run("-c", JOB, "python script.py", tmp_path, **stack | {"RAY_API_SERVER_ADDRESS": proxy.url})
    assert result.returncode == 5, result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith("line")] == [
        f"line {n} {'x' * (n % 50)}" for n in range(300)
    ]
    assert proxy.broken >= 3


def test_an_interrupt_stops_the_job(stack: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import time\nprint('running', flush=True)\ntime.sleep(600)\n")
    command = [sys.executable, "-c", JOB, "python script.py", str(tmp_path)]
    with subprocess.Popen(
        command, env=os.environ | stack, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
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
    assert re.search(r"^stopping test-\d+; Ctrl-C again leaves it to itself$", rest, re.MULTILINE)


def test_a_wrong_token_is_refused(stack: dict[str, str], tmp_path: Path) -> None:
    request = urllib.request.Request(f"{stack['RAY_API_SERVER_ADDRESS']}/api/jobs/", headers={"Authorization": "Bearer 00"})
    with pytest.raises(urllib.error.HTTPError, match=r"40[13]"):
        urllib.request.urlopen(request)
    wrong = tmp_path / "token"
    wrong.write_text("00")
    refused = {"refuses the token": {"RAY_AUTH_TOKEN_PATH": str(wrong)}, "requires a token": {"RAY_AUTH_MODE": "disabled"}}
    for reason, variables in refused.items():
        result = run("-m", "jobs.submit", "train", "jobs/configs/demo.yaml", **stack | variables)
        assert result.returncode == 2
        assert result.stderr == f"{stack['RAY_API_SERVER_ADDRESS']}: {reason}: {TOKEN_FIX}\n"


def test_a_work_runs_once_at_a_time_and_can_be_followed_and_stopped(stack: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import time\nprint('running', flush=True)\ntime.sleep(600)\n")
    begun = run("-c", TWICE, tmp_path, **stack)
    assert begun.returncode == 0, begun.stderr
    _, first, refused, beside = begun.stdout.splitlines()
    assert refused == f"{first} runs already: `python -m jobs.submit logs {first}` follows it"
    assert beside != first
    listed = run("-m", "jobs.submit", "list", **stack).stdout
    assert re.search(rf"^{first} +(PENDING|RUNNING) .*python script\.py$", listed, re.MULTILINE)
    for job in (first, beside):
        assert run("-m", "jobs.submit", "stop", job, **stack).stdout.endswith(f"{job}: STOPPED\n")
    assert f"{first}: STOPPED, started 20" in run("-m", "jobs.submit", "status", first, **stack).stdout
    log = run("-m", "jobs.submit", "logs", first, **stack)
    assert (log.returncode, "STOPPED" in log.stderr) == (1, True)
    nobody = run("-m", "jobs.submit", "logs", "nobody-1", **stack)
    assert nobody.returncode == 2
    assert f"nobody-1: no such job on {stack['RAY_API_SERVER_ADDRESS']}: `python -m jobs.submit list`" in nobody.stderr


@pytest.mark.parametrize("service", ["AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI"])
def test_another_server_at_the_address_is_no_job_server(stack: dict[str, str], service: str) -> None:
    result = run("-m", "jobs.submit", "list", "--address", stack[service], **stack)
    assert result.returncode == 2
    assert result.stderr.startswith(f"{stack[service]}: no job server of Ray answers (")
    assert "Traceback" not in result.stderr


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
        with subprocess.Popen(
            command, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            assert any("go" in line for line in process.stdout)
            before = members(root)
            temporary = state(root)["temporary"]
            assert len(before) > 10
            assert run("-m", "infra.stack", "down", "--root", root).returncode == 0
            assert "connection lost, trying again" in (rest := process.communicate(timeout=90)[0])
            assert "it may still run: `python -m jobs.submit logs test-1` follows it again" in rest
        assert process.returncode == UNKNOWN
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

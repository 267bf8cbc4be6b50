"""The local stack: `python -m infra.stack up|down|status [--root DIR]`. Ray head, MLflow server and S3 store, on loopback only.

Data, ports, secrets and logs are in the root (`.stack`). `up` starts the services that do not run; `down` ends what `up` started
and keeps the data. After `source ROOT/env`, commands reach the stack.
"""

import argparse
import contextlib
import fcntl
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infra import processes
from infra.processes import Identity
from infra.services import HOST, PREFERRED, Ports, Secrets, Service, client_environment, install_s3, make_bucket, services
from infra.stack_env import DEFAULT_ROOT

READY_SECONDS = 180.0
"""Longest wait for the three services: MLflow took over 60 s on a machine at load 27."""


class StackError(RuntimeError):
    """The stack could not be started; the services that this call started have been ended."""


def up(root: Path) -> None:
    """Starts the services that do not run yet and returns when all three answer. Raises StackError."""
    root = root.absolute()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    install_s3(root)
    with _locked(root):
        state = _load(root)
        known = _secrets(root)
        _place(root, state)
        ports = Ports(**state["ports"])
        _write(root / "env", _shell(client_environment(root, ports, known)))
        parts = services(root, ports, known, Path(state["temporary"]))
        fresh: list[str] = []
        try:
            for part in parts:
                if not _running(state, part.name):
                    fresh.append(part.name)
                    _start(root, state, part)
            _wait(root, state, parts)
            make_bucket(parts[0].address)
        except BaseException:
            for name in fresh:
                _stop(root, state, name)
            raise


def down(root: Path) -> None:
    """Ends the services and their child processes; data, ports and secrets are kept."""
    root = root.absolute()
    if not (root / "state.json").exists():
        return
    with _locked(root):
        state = _load(root)
        for name in list(state["processes"]):
            _stop(root, state, name)
        if state["temporary"]:
            shutil.rmtree(state["temporary"], ignore_errors=True)
            state["temporary"] = None
        _save(root, state)


def status(root: Path) -> dict[str, tuple[str, str]]:
    """Service -> (address, "up" | "not answering" | "down"); empty if no stack was ever started here."""
    root = root.absolute()
    if not (root / "state.json").exists():
        return {}
    state = _load(root)
    parts = services(root, Ports(**state["ports"]), _secrets(root), Path(state["temporary"] or "-"))
    return {part.name: (part.address, _condition(state, part)) for part in parts}


def _condition(state: dict[str, Any], part: Service) -> str:
    if not _running(state, part.name):
        return "down"
    return "up" if part.healthy() else "not answering"


def _place(root: Path, state: dict[str, Any]) -> None:
    """Chooses Ray's temporary folder and ports for services that do not run: those of last time if they are free."""
    ports, before = state["ports"], dict(state["ports"])
    for service, keys in {"s3": ["s3"], "mlflow": ["mlflow"], "ray": ["gcs", "dashboard", "client"]}.items():
        if not _running(state, service):
            for key in keys:
                ports[key] = processes.free_port(ports[key], [port for other, port in ports.items() if other != key])
    if ports != before and _running(state, "ray"):
        print("restarting Ray: its jobs inherit the addresses of s3 and mlflow, and one of them has changed", flush=True)
        _stop(root, state, "ray")
    if not state["temporary"] or not Path(state["temporary"]).is_dir():
        # Ray's socket paths add about 60 bytes, and the limit is 107. mkdtemp makes a folder that only this user may enter.
        base = tempfile.gettempdir()
        state["temporary"] = tempfile.mkdtemp(prefix="ccnet-", dir=base if len(base) < 30 else "/tmp")
    _save(root, state)


def _start(root: Path, state: dict[str, Any], part: Service) -> None:
    if part.name in state["processes"]:  # the leader died: end its children
        _stop(root, state, part.name)
    mark = secrets.token_hex(8)
    identity = processes.start(
        part.command, environment=part.environment | {processes.MARK: mark}, log=_log(root, part.name), cwd=root
    )
    state["processes"][part.name] = {"pid": identity.pid, "started": identity.started, "mark": mark}
    _save(root, state)


def _stop(root: Path, state: dict[str, Any], name: str) -> None:
    record = state["processes"].get(name)
    if record is None:
        return
    processes.stop(Identity(record["pid"], record["started"]), record["mark"])
    del state["processes"][name]
    _save(root, state)


def _running(state: dict[str, Any], name: str) -> bool:
    record = state["processes"].get(name)
    return record is not None and processes.alive(Identity(record["pid"], record["started"]))


def _wait(root: Path, state: dict[str, Any], parts: list[Service]) -> None:
    begun = time.monotonic()
    waiting = parts
    while True:
        left = [part for part in waiting if not part.healthy()]
        seconds = time.monotonic() - begun
        if left != waiting and left:
            print(f"{seconds:4.0f} s: waiting for {', '.join(part.name for part in left)}", flush=True)
        waiting = left
        dead = next((part for part in parts if not _running(state, part.name)), None)
        if dead:
            raise StackError(f"{dead.name} ended while starting; the end of {_log(root, dead.name)}:\n{_tail(root, dead.name)}")
        if not waiting:
            return
        if seconds > READY_SECONDS:
            name = waiting[0].name
            raise StackError(
                f"{name} does not answer after {READY_SECONDS:.0f} s (`down`, then `up`, restarts it); "
                f"the end of {_log(root, name)}:\n{_tail(root, name)}"
            )
        time.sleep(0.3)


def _secrets(root: Path) -> Secrets:
    """The token and the keys of this root, created on first use."""
    if not (root / "s3.json").exists():
        keys = {"access_key": "AK" + secrets.token_hex(9).upper(), "secret_key": secrets.token_urlsafe(30)}
        _write(root / "s3.json", json.dumps(keys))
    if not (root / "ray.token").exists():
        _write(root / "ray.token", secrets.token_hex(32))
    return Secrets(**json.loads((root / "s3.json").read_text()), token=(root / "ray.token").read_text())


def _load(root: Path) -> dict[str, Any]:
    if (root / "state.json").exists():
        return dict(json.loads((root / "state.json").read_text()))
    return {"ports": asdict(PREFERRED), "temporary": None, "processes": {}}


def _save(root: Path, state: dict[str, Any]) -> None:
    _write(root / "state.json", json.dumps(state, indent=1))


def _write(path: Path, text: str) -> None:
    """Replaces the file atomically; only this user can read it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    with (root / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _shell(variables: dict[str, str]) -> str:
    return "".join(f"export {key}={shlex.quote(value)}\n" for key, value in variables.items())


def _log(root: Path, name: str) -> Path:
    return root / f"{name}.log"


def _tail(root: Path, name: str) -> str:
    return "\n".join(_log(root, name).read_text(errors="replace").splitlines()[-20:])


def _print_status(root: Path) -> int:
    rows = status(root)
    if not rows:
        print(f"no stack at {root}: python -m infra.stack up")
        return 1
    for name, (address, condition) in rows.items():
        print(f"{name:7} {address:24} {condition}")
    ready = all(condition == "up" for _, condition in rows.values())
    print(f"reach it: source {shlex.quote(str(root / 'env'))}" if ready else "start it: python -m infra.stack up")
    return 0 if ready else 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.stack", description="The local stack.")
    parser.add_argument("action", choices=["up", "down", "status"])
    parser.add_argument(
        "--root", type=Path, default=DEFAULT_ROOT, help="folder of data, ports, secrets and logs (default: .stack)"
    )
    arguments = parser.parse_args(argv)
    try:
        if arguments.action == "up":
            print("starting Ray, MLflow and the S3 store on", HOST, flush=True)
            up(arguments.root)
        elif arguments.action == "down":
            down(arguments.root)
            print(f"stopped; the data are kept in {arguments.root}")
            return 0
        return _print_status(arguments.root)
    except (StackError, OSError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

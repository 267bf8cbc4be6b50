"""Hosts of a cluster on this machine: each has its own network, name, /tmp, /dev/shm and processes, as a computer of its own.

    with Bed(folder) as bed:
        head = bed.host("head")
        process = head.start("ray", "start", "--head", "--block", f"--node-ip-address={head.address}")
        head.cut()       # as if its cable were pulled
        head.kill()      # as if its plug were

Hosts share the disk, apart from /tmp. Needs root on Linux, with `unshare`, `nsenter` and `ip` (iproute2).
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
NETWORK = "10.83.0"
"""Of the hosts' addresses. No other process sees them, so two beds do not disturb each other."""
NEEDED = ("unshare", "nsenter", "ip", "mount")
KEPT = ("PATH", "LANG", "LC_ALL", "VIRTUAL_ENV")
"""Variables of this process that hosts have too."""


def unavailable() -> str | None:
    """Why there can be no bed here; None if there can."""
    if sys.platform != "linux" or os.geteuid():
        return "hosts of a cluster need root on Linux"
    if missing := [name for name in NEEDED if not shutil.which(name)]:
        return f"hosts of a cluster need {missing[0]}"
    tried = subprocess.run(["unshare", "--net", "ip", "link", "add", "probe", "type", "bridge"], capture_output=True, text=True)
    return f"hosts of a cluster need network namespaces with bridges ({tried.stderr.strip()})" if tried.returncode else None


class Host:
    """A host of a bed. What it starts ends with it."""

    def __init__(self, bed: "Bed", name: str, number: int) -> None:
        self.name, self.address, self.folder = name, f"{NETWORK}.{number}", bed.folder / name
        self._bed, self._link, self._started = bed, f"link{number}", list[subprocess.Popen[str]]()
        (self.folder / "tmp").mkdir(parents=True)
        self._holder, self._pid = _namespaces(["--net", "--uts", "--mount", "--pid", "--ipc"])
        self._root("ip", "link", "add", self._link, "netns", str(bed.switch), "type", "veth",
                   "peer", "name", "eth0", "netns", str(self._pid))  # fmt: skip
        bed.in_switch("ip", "link", "set", self._link, "master", "switch", "up")
        for words in (
            ("ip", "link", "set", "lo", "up"),
            ("ip", "address", "add", f"{self.address}/24", "dev", "eth0"),
            ("ip", "link", "set", "eth0", "up"),
            ("hostname", name),
        ):
            self._inside(*words)
        self._own_files()

    def _own_files(self) -> None:
        """Mounts /proc, /dev/shm, a /tmp with the project in it if it lies there, and an /etc/hosts with this host alone."""
        hosts, own = self.folder / "hosts", self.folder / "tmp"
        hosts.write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        seen = [path for path in {ROOT, Path(sys.prefix), self._bed.folder} if path.is_relative_to("/tmp")]
        inner = " && ".join(f"mkdir -p {own / path.relative_to('/tmp')} && mount --rbind {path} {own / path.relative_to('/tmp')}"
                            for path in sorted(seen, key=lambda path: len(path.parts)))  # fmt: skip
        steps = [
            "mount --make-rprivate /", "mount -t proc proc /proc", "mount -t tmpfs -o size=2g shm /dev/shm",
            f"mount --bind {hosts} /etc/hosts", inner, f"mount --rbind {own} /tmp",
        ]  # fmt: skip
        self._inside("sh", "-ec", " && ".join(filter(None, steps)))

    def start(self, *words: str, environment: Mapping[str, str] | None = None, log: str | None = None) -> subprocess.Popen[str]:
        """Starts a command on the host, in the project's folder; its output goes to `log` in the host's folder or to a pipe."""
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        variables = kept | {"HOME": "/tmp", "PYTHONUNBUFFERED": "1"} | dict(environment or {})
        variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), variables.get("PATH", os.defpath)])
        command = ["nsenter", "--target", str(self._pid), "--all", f"--wd={ROOT}", *words]
        with open(self.folder / log, "ab") if log else nullcontext(subprocess.PIPE) as output:
            process = subprocess.Popen(
                command, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, text=True
            )
        self._started.append(process)
        return process

    def python(self, *words: str, environment: Mapping[str, str] | None = None, log: str | None = None) -> subprocess.Popen[str]:
        """Starts this Python on the host."""
        return self.start(sys.executable, *words, environment=environment, log=log)

    def cut(self) -> None:
        """Takes the host off the network; its connections stay open and hear nothing."""
        self._bed.in_switch("ip", "link", "set", self._link, "down")

    def mend(self) -> None:
        """Connects the host again."""
        self._bed.in_switch("ip", "link", "set", self._link, "up")

    def kill(self) -> None:
        """Ends the host with all its processes, without a word."""
        _end(self._holder)
        for process in self._started:
            process.wait()
            if process.stdout:
                process.stdout.close()

    def _inside(self, *words: str) -> None:
        self._root("nsenter", "--target", str(self._pid), "--all", *words)

    @staticmethod
    def _root(*words: str) -> None:
        subprocess.run(words, check=True, capture_output=True)


class Bed:
    """A switch and the hosts on it; `folder` has a folder for each host, with its logs and its /tmp."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.hosts = folder, list[Host]()
        self._holder: subprocess.Popen[bytes] | None = None
        self.switch = 0
        """Process that holds the switch's network."""

    def host(self, name: str) -> Host:
        """A new host. Hosts reach each other by their addresses; each knows its own name alone."""
        made = Host(self, name, len(self.hosts) + 2)
        self.hosts.append(made)
        return made

    def in_switch(self, *words: str) -> None:
        """Runs a command in the switch's network."""
        subprocess.run(["nsenter", "--target", str(self.switch), "--net", *words], check=True, capture_output=True)

    def __enter__(self) -> Self:
        self._holder, self.switch = _namespaces(["--net"])
        self.in_switch("ip", "link", "add", "switch", "type", "bridge")
        self.in_switch("ip", "link", "set", "switch", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            host.kill()
        if self._holder:
            _end(self._holder)


def _namespaces(kinds: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    """A process that holds new namespaces, and the one in them, which ends with it."""
    holder = subprocess.Popen(["unshare", *kinds, "--fork", "--kill-child=KILL", "sleep", "infinity"], start_new_session=True)
    children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children")
    deadline = time.monotonic() + 10
    while not (found := children.read_text().split()) or Path(f"/proc/{found[0]}/comm").read_text() != "sleep\n":
        assert time.monotonic() < deadline, "no namespaces after 10 s"
        time.sleep(0.01)
    return holder, int(found[0])


def _end(holder: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.kill(holder.pid, signal.SIGKILL)
    holder.wait()

"""`python -m jobs.submit VERB CONFIG.yaml [dotted.key=value ...] [--detach]`: runs a verb on a cluster, through Ray's job API.

It sends the code of this folder and the configuration. The log is streamed, over interrupted connections too, and the exit code
is the job's (3: not known). Ctrl-C stops the job. `list`, `status JOB`, `logs JOB` and `stop JOB` instead of a verb show and stop
jobs. The cluster is `--address http://HOST:8265`, else RAY_API_SERVER_ADDRESS, else the stack of this folder.
"""

import argparse
import difflib
import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from infra.stack_env import environment
from jobs.usage import SECTIONS
from pipeline.errors import ClusterError, ConfigError
from pipeline.tracking.provenance import COMMIT, USER, describe_commit, user

if TYPE_CHECKING:
    from pipeline.cluster.job_server import JobServer
    from pipeline.config.config import Config

VERBS = tuple(SECTIONS)
USAGE = """usage: python -m jobs.submit VERB CONFIG.yaml [dotted.key=value ...] [--detach] [--address URL]
       python -m jobs.submit list | status JOB | logs JOB | stop JOB [--address URL]"""
ADDRESS = "RAY_API_SERVER_ADDRESS"
ALONE = ("prepare", "train", "tune")
"""Verbs of which one at a time may work on the same data, run or search."""


class SubmitError(ValueError):
    """The job cannot be submitted; the message names the reason and the fix."""


def entrypoint(verb: str, config: str, overrides: list[str]) -> str:
    """The shell command of the job. Raises SubmitError if the verb is unknown or the configuration is not in this folder."""
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        raise SubmitError(f"{verb}: no such verb{f' (did you mean {near[0]}?)' if near else ''}; legal: {', '.join(VERBS)}")
    path, here = Path(config), Path.cwd()
    if not path.is_file():
        shipped = sorted(str(p) for p in path.parent.glob("*.yaml"))
        near = difflib.get_close_matches(config, shipped, n=1)
        raise SubmitError(f"{config}: no such file{f' (did you mean {near[0]}?)' if near else ''}")
    if not path.resolve().is_relative_to(here.resolve()):
        raise SubmitError(f"{config}: must be under {here}, the folder that is sent to the cluster; copy it there")
    return shlex.join(["python", "-m", f"jobs.{verb}", path.resolve().relative_to(here.resolve()).as_posix(), *overrides])


def job_name(verb: str, config: "Config") -> str:
    """What the jobs of the same work are called: the run key, or the key of the search."""
    key = config.search_key if verb == "tune" else config.run_key
    return key if verb in ("train", "tune") else f"{key}-{verb}"


def connect(address: str | None) -> "JobServer":
    """The job server of `address`, of the environment, or of the stack in this folder; prints which. Raises SubmitError."""
    why = "--address"
    if address is None and ADDRESS in os.environ:
        address, why = os.environ[ADDRESS], ADDRESS
    if address is None:
        try:
            os.environ.update(environment())
        except FileNotFoundError:
            raise SubmitError(
                "no cluster to submit to: start one here with `python -m infra.stack up`, "
                "or set RAY_API_SERVER_ADDRESS=http://HOST:8265 of a running one"
            ) from None
        address, why = os.environ[ADDRESS], "the stack of this folder"
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from pipeline.cluster.job_server import JobServer  # only now: Ray reads RAY_AUTH_MODE at its first import

    server = JobServer(address, f"--address {address}" if why == "--address" else "")
    print(f"cluster {address} ({why})", flush=True)
    return server


def submit(server: "JobServer", command: str, verb: str, config: str, overrides: list[str]) -> str:
    """Sends code and configuration and starts the verb's command; returns the job's id. Raises ClusterError, ConfigError."""
    from pipeline.cluster.job_files import gather
    from pipeline.config.load import load
    from pipeline.formatting import size

    made = load(config, overrides)
    modules = [made.data.augment.partition(":")[0]] if made.data.augment else []
    # The copy has no .git, and the cluster another user: both are passed on for the run in MLflow.
    variables = {COMMIT: describe_commit(), USER: user()}
    with tempfile.TemporaryDirectory() as folder:
        sent = gather(Path.cwd(), Path.cwd() / config, modules, Path(folder))
        job = server.submit(command, job_name(verb, made), folder, variables, alone=verb in ALONE)
    print(f"sent {sent.num_files} files, {size(sent.num_bytes)}\n{job}: {command}", flush=True)
    return job


def follow(server: "JobServer", job: str) -> int:
    """Shows the job's log until the job has ended; returns its exit code. Ctrl-C stops the job and returns 130."""

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        ended = server.follow(job, write, tell)
    except KeyboardInterrupt:
        tell(f"\nstopping {job}; Ctrl-C again leaves it to itself")
        server.stop(job)
        return 130
    if ended.note:
        tell(f"{job}: {ended.note}")
    return ended.code


def show_jobs(server: "JobServer") -> int:
    """Prints a line for each job."""
    jobs = server.jobs()
    width = max((len(job.submission_id or "") for job in jobs), default=0)
    for job in jobs:
        print(f"{job.submission_id or '':<{width}}  {job.status:<9}  {_since(job.start_time):<19}  {job.entrypoint}")
    if not jobs:
        print("no job was submitted to this cluster")
    return 0


def show_status(server: "JobServer", job: str) -> int:
    """Prints the state of a job."""
    found = server.details(job)
    code = "" if found.driver_exit_code is None else f", exit code {found.driver_exit_code}"
    print(f"{job}: {found.status}{code}, started {_since(found.start_time)}\n{found.entrypoint}\n{found.message or ''}".rstrip())
    return 0


def stop(server: "JobServer", job: str) -> int:
    """Stops a job and waits for its end."""
    print(f"{job}: {server.stop(job).status}")
    return 0


ABOUT_JOBS: "dict[str, Callable[[JobServer, str], int]]" = {"status": show_status, "logs": follow, "stop": stop}


def _since(milliseconds: int | None) -> str:
    return datetime.fromtimestamp(milliseconds / 1000).strftime("%Y-%m-%d %H:%M:%S") if milliseconds else "-"


def command(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the job's exit code, 2 if it could not be submitted."""
    arguments = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & {*arguments}:
        print(__doc__)
        return 0
    parser = argparse.ArgumentParser(usage=USAGE.removeprefix("usage: "), add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="+")
    parser.add_argument("--detach", action="store_true")
    parser.add_argument("--address")
    try:
        options = parser.parse_intermixed_args(arguments)
    except SystemExit:  # it has printed the usage
        return 2
    words = options.words
    try:
        if words == ["list"]:
            return show_jobs(connect(options.address))
        if words[0] in ABOUT_JOBS and len(words) == 2:
            return ABOUT_JOBS[words[0]](connect(options.address), words[1])
        if len(words) < 2:
            print(USAGE, file=sys.stderr)
            return 2
        verb, config, *overrides = words
        line = entrypoint(verb, config, overrides)  # mistakes are answered before a cluster is looked for
        server = connect(options.address)
        job = submit(server, line, verb, config, overrides)
        if options.detach:
            print(f"follow it:  {server.hint('logs', job)}\nstop it:    {server.hint('stop', job)}")
            return 0
        return follow(server, job)
    except (SubmitError, ClusterError) as error:
        print(error, file=sys.stderr)
        return 2
    except ConfigError as error:
        print("\n".join(error.mistakes), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(command())

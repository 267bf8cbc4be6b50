"""`python -m jobs.submit VERB CONFIG.yaml [dotted.key=value ...] [--detach]`: runs a verb on a cluster, through Ray's job API.

This folder is sent as the job's working directory, without what .gitignore names. The log is streamed, and the exit code is the
job's. Ctrl-C stops the job.
"""

import asyncio
import difflib
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from infra.stack_env import environment
from jobs.usage import SECTIONS
from pipeline.tracking.provenance import COMMIT, USER, describe_commit, user

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

VERBS = tuple(SECTIONS)
USAGE = "usage: python -m jobs.submit VERB CONFIG.yaml [dotted.key=value ...] [--detach]"
EXCLUDES = ["/.stack", "/outputs", "/.venv-s3"]
"""Folders that are never sent, even if .gitignore does not name them; Ray itself excludes .git and .venv."""


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


def connect() -> "JobSubmissionClient":
    """A client of RAY_API_SERVER_ADDRESS, else of the stack in this folder. Raises SubmitError if neither is available."""
    if "RAY_API_SERVER_ADDRESS" not in os.environ:
        try:
            os.environ.update(environment())
        except FileNotFoundError:
            raise SubmitError(
                "no cluster to submit to: start one here with `python -m infra.stack up`, "
                "or set RAY_API_SERVER_ADDRESS=http://HOST:8265 of a running one"
            ) from None
    # Imported only now: Ray reads RAY_AUTH_MODE at its first import.
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.ERROR)  # otherwise Ray logs a line for each file that is not sent
    address = os.environ["RAY_API_SERVER_ADDRESS"]
    try:
        return JobSubmissionClient(address)
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise SubmitError(
            f"{address} (RAY_API_SERVER_ADDRESS) accepts no jobs: {reason}\n"
            "if it is the local stack, `python -m infra.stack up` starts it; if it requires a token, set RAY_AUTH_TOKEN_PATH"
        ) from error


def submit(client: "JobSubmissionClient", command: str, *, working_dir: str = ".") -> str:
    """Sends the folder and starts the shell command in it; returns the job's id."""
    # The copy has no .git, and the cluster another user: both are passed on for the run in MLflow.
    variables = {COMMIT: describe_commit(), USER: user()}
    return client.submit_job(
        entrypoint=command, runtime_env={"working_dir": working_dir, "excludes": EXCLUDES, "env_vars": variables}
    )


def follow(client: "JobSubmissionClient", job: str, write: Callable[[str], object] = sys.stdout.write) -> int:
    """Writes the job's log until the job has ended; returns its exit code.

    Ctrl-C stops the job and returns 130. If the connection is lost, writes that and returns 1; the job is not stopped.
    """
    try:
        asyncio.run(_stream(client, job, write))
        return _exit_code(client, job, write)
    except KeyboardInterrupt:
        write(f"\nstopping {job}\n")
        client.stop_job(job)
        _wait(client, job)
        return 130
    except (ConnectionError, RuntimeError) as error:
        write(f"\nlost the connection to {job}: {error}\nit may still run: ray job status {job}\n")
        return 1


async def _stream(client: "JobSubmissionClient", job: str, write: Callable[[str], object]) -> None:
    async for text in client.tail_job_logs(job):
        write(text)
        if write == sys.stdout.write:
            sys.stdout.flush()


def _exit_code(client: "JobSubmissionClient", job: str, write: Callable[[str], object]) -> int:
    _wait(client, job)
    info = client.get_job_info(job)
    if info.driver_exit_code is not None:
        return int(info.driver_exit_code)
    write(f"{job}: {info.status}: {info.message}\n")  # it never ran, or its supervisor died with the node
    return 1


def _wait(client: "JobSubmissionClient", job: str) -> None:
    while not client.get_job_status(job).is_terminal():
        time.sleep(0.2)


def command(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the job's exit code, 2 if it could not be submitted."""
    arguments = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & {*arguments}:
        print(__doc__)
        return 0
    detach = "--detach" in arguments
    words = [word for word in arguments if word != "--detach"]
    if len(words) < 2 or any(word.startswith("-") for word in words):
        print(USAGE, file=sys.stderr)
        return 2
    try:
        command = entrypoint(words[0], words[1], words[2:])
        client = connect()
        job = submit(client, command)
    except SubmitError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{job}: {command}", flush=True)
    if detach:
        print(f"follow it:  ray job logs --follow {job}\nstop it:    ray job stop {job}")
        return 0
    return follow(client, job)


if __name__ == "__main__":
    sys.exit(command())

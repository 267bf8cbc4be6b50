"""The job server of a Ray cluster: jobs are submitted, followed over interrupted connections, listed and stopped.

Ray's own client waits for ever for a host that is gone, and its log ends where a proxy closes the connection. Here each request
has a limit, and the log is read again from where it was.
"""

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import aiohttp
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from pipeline.errors import ClusterError

CONNECT_S, ANSWER_S, UPLOAD_S = 10.0, 60.0, 600.0
"""Seconds until a connection stands, until a request is answered, until the files are sent."""
HEARTBEAT_S = 30.0
"""Seconds between two signs of life of a log's connection; one without an answer for half of that is lost. A busy head has not
answered for 5 s."""
GIVE_UP_S = 600.0
"""Seconds without an answer of the job server after which a job is not followed any further."""
UNREADABLE_S = 30.0
"""Seconds after which the log of a job that has ended is left: the node that has it may be gone."""
PAUSE_S = 2.0
"""Seconds between two attempts."""
FAULTS = (aiohttp.ClientError, ConnectionError, RuntimeError, TimeoutError, requests.RequestException)
"""What a request raises if the server does not answer it; RuntimeError for an answer such as 502."""
UNKNOWN = 3
"""Exit code if the end of a job is not known."""
TOKEN_FIX = "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with the cluster's token"
MISSING_PACKAGE = re.compile(r"^(?:\(.*\) )?ModuleNotFoundError: No module named '([\w.]+)'", re.MULTILINE)


for _name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
    logging.getLogger(f"ray.{_name}").setLevel(logging.ERROR)  # they say how they pack the files, some at a level of their own


class Ended(NamedTuple):
    """How a job ended."""

    code: int
    """Exit code of its command; 1 if it never ran, `UNKNOWN` if that is not known."""
    note: str = ""
    """What to tell beside its log."""


class JobServer:
    """A connection to the job server at `address`, as `http://HOST:8265`. Raises ClusterError, which names the fix."""

    def __init__(self, address: str, option: str = "") -> None:
        """`option`: what the commands that it suggests need to reach it."""
        self.address, self._option = address, option
        if not re.match(r"https?://[^/]", address):
            raise ClusterError(
                f"{address}: is no address of a job server: write http://HOST:8265, the port of the dashboard (6379 and 10001 "
                "are other ports of Ray)"
            )
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray's client would take another one from there
        try:
            self._client = _Client(address)
        except AuthenticationError as error:
            raise ClusterError(_about_token(address, str(error))) from error
        except (ConnectionError, RuntimeError, requests.RequestException, ValueError) as error:
            raise ClusterError(
                f"{address}: no job server of Ray answers ({_first_line(error)}): correct the address (http://HOST:8265, the "
                "port of the dashboard), or start the cluster"
            ) from error
        theirs = self._client.server_version()
        if theirs.split(".")[:2] != ray.__version__.split(".")[:2]:
            raise ClusterError(
                f"{address}: runs Ray {theirs}, and this command Ray {ray.__version__}: build the nodes' image from "
                "infra/Dockerfile, or install that version there"
            )

    def jobs(self) -> list[JobDetails]:
        """The submitted jobs, the newest first."""
        found = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(found, key=lambda job: -(job.start_time or 0))

    def submit(self, command: str, name: str, folder: str, variables: Mapping[str, str], alone: bool) -> str:
        """Sends the folder and starts the shell command in it; returns the job's id, `NAME-NUMBER`.

        Raises ClusterError if a job of this name runs and must be `alone`, or the files are not taken.
        """
        mine = re.compile(rf"{re.escape(name)}-(\d+)")
        numbers = {int(found[1]): job for job in self.jobs() if (found := mine.fullmatch(job.submission_id or ""))}
        running = [job for job in numbers.values() if not job.status.is_terminal()]
        if running and alone:
            raise ClusterError(
                f"{running[0].submission_id} runs already: {self.hint('logs', running[0].submission_id)} follows it"
            )
        job = f"{name}-{max(numbers, default=0) + 1}"
        try:
            self._client.submit_job(
                entrypoint=command, submission_id=job, runtime_env={"working_dir": folder, "env_vars": dict(variables)}
            )
        except RuntimeError as error:
            if "already exists" in str(error):  # another one was submitted at the same time
                raise ClusterError(f"{job} runs already: {self.hint('logs', job)} follows it") from error
            if "status code 413" in str(error):
                raise ClusterError(
                    f"{self.address}: does not take the files (413, too large): raise the limit of the proxy in front of it"
                ) from error
            raise ClusterError(f"{self.address}: does not take the job: {_first_line(error)}") from error
        return job

    def follow(self, job: str, write: Callable[[str], object], tell: Callable[[str], object]) -> Ended:
        """Writes the job's log until the job has ended; every character once, whatever happens to the connection.

        `tell` receives a line when the connection is lost and when it is back. Raises ClusterError if there is no such job.
        """
        seen, contact, found, ended = _Seen(), _Contact(tell), None, 0.0
        while True:
            try:
                found = self.details(job)
                contact.answered()
                if found.status.is_terminal():
                    ended = ended or time.monotonic()
                    log = self._client.get_job_logs(job)  # whole now, which a stream that ends does not show
                    write(log[seen.characters :])
                    return _ended(found, log)
                asyncio.run(self._client.read_log(job, seen, write, contact.connected))
            except FAULTS as error:
                silent = contact.lost(error)
                if found and ended and time.monotonic() > ended + UNREADABLE_S:
                    return _ended(found, "")._replace(note="the end of its log could not be read")
                if silent > GIVE_UP_S:
                    after = f"no answer for {GIVE_UP_S / 60:g} min; it may still run: {self.hint('logs', job)} follows it again"
                    return Ended(UNKNOWN, after)
            time.sleep(PAUSE_S)

    def details(self, job: str) -> JobDetails:
        """Raises ClusterError if there is no such job."""
        try:
            return self._client.get_job_info(job)
        except RuntimeError as error:
            if "status code 404" not in str(error):
                raise
            raise ClusterError(f"{job}: no such job on {self.address}: {self.hint('list')} names them") from error

    def stop(self, job: str) -> JobDetails:
        """Stops a job and waits until it has ended, which takes as long as its checkpoint. Raises ClusterError."""
        self.details(job)
        contact, asked = _Contact(lambda text: None), False
        while True:
            try:
                if not asked:
                    self._client.stop_job(job)
                    asked = True
                if (found := self.details(job)).status.is_terminal():
                    return found
                contact.answered()
            except FAULTS as error:
                if contact.lost(error) > GIVE_UP_S:
                    raise ClusterError(f"{self.address}: no answer while {job} stops: {_first_line(error)}") from error
            time.sleep(0.5)

    def hint(self, verb: str, job: str | None = None) -> str:
        """The command that does something with a job."""
        return f"`{' '.join(filter(None, ['python -m jobs.submit', verb, job, self._option]))}`"


class _Seen:
    """How much of a log was written."""

    def __init__(self) -> None:
        self.characters = 0


class _Contact:
    """How long the job server has not answered, and what was told of it."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._tell, self._told, self._since = tell, False, 0.0

    def answered(self) -> None:
        """The server has answered a request."""
        self._since = 0.0

    def connected(self) -> None:
        """The log's connection stands."""
        if self._told:
            self._tell("connected again")
        self._told = False

    def lost(self, error: BaseException) -> float:
        """Seconds since the first fault after an answer."""
        self._since = self._since or time.monotonic()
        if not self._told:
            self._tell(f"connection lost, trying again: {_first_line(error)}")
        self._told = True
        return time.monotonic() - self._since


class _Client(JobSubmissionClient):
    """Ray's client with a limit for each request."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        answer_s = UPLOAD_S if options.get("data") else ANSWER_S
        return super()._do_request(method, endpoint, **{"timeout": (CONNECT_S, answer_s), **options})

    def server_version(self) -> str:
        """The Ray version of the cluster, which the connection has asked for."""
        return str(self._server_ray_version)

    async def read_log(self, job: str, seen: _Seen, write: Callable[[str], object], connected: Callable[[], object]) -> None:
        """Writes what is new in the log while its connection lasts. Raises ConnectionError if that ends with an error."""
        address, skip = f"{self._address}/api/jobs/{job}/logs/tail", seen.characters
        limit = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
        async with (
            aiohttp.ClientSession(cookies=self._cookies, headers=self._headers, timeout=limit) as session,
            session.ws_connect(address, ssl=self._ssl_context, heartbeat=HEARTBEAT_S) as socket,
        ):
            connected()
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                text, skip = message.data[skip:], max(0, skip - len(message.data))
                if text:
                    write(text)
                    seen.characters += len(text)
            if socket.close_code != aiohttp.WSCloseCode.OK:
                raise ConnectionError(f"the log's connection ended ({socket.close_code})")


def _ended(job: JobDetails, log: str) -> Ended:
    if job.driver_exit_code is None:
        return Ended(1, f"{job.status}: {job.message}")  # it never ran, or its supervisor died with the node
    code = int(job.driver_exit_code)
    if code and (missing := MISSING_PACKAGE.findall(log)):
        return Ended(code, f"the nodes lack the package {missing[-1]}: use the image of infra/Dockerfile there, or install it")
    return Ended(code)


def _about_token(address: str, text: str) -> str:
    invalid = "invalid" in text.lower()
    reason = "refuses the token" if invalid else "requires a token"
    return f"{address}: {reason}: {TOKEN_FIX}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")

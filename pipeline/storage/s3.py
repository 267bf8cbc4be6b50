"""The S3 client: one try per request, and no wait without a limit."""

import asyncio
import copy
import io
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import s3fs
from aiobotocore.httpsession import AIOHTTPSession
from botocore.handlers import add_expect_header

from pipeline.storage.s3_errors import TooSlow

PART_BYTES = 8 * 2**20
"""Bytes of one part of a multipart upload, and of the read-ahead of files opened through `Store.arrow`."""
PIECE_BYTES, PIECE_S = 128 * 2**10, 60.0
"""Each piece of a body must pass within PIECE_S seconds, and so must a body that is smaller: 2.1 KiB/s. A silent store is noticed
by `read_timeout`, but one that trickles would hold a checkpoint for days. The floor is low because a process has up to ten
requests at a time: over a link of 50 KB/s each of them gets 5."""
UNSENT_BYTES = 64 * 2**10
"""Bytes of a request that the kernel holds besides those on their way. By default it takes megabytes at once, and a slow network
would look like a store that is silent after the last one."""


@asynccontextmanager
async def _one_piece() -> AsyncIterator[asyncio.Timeout]:
    """Wraps the transfer of one piece. Raises TooSlow."""
    try:
        async with asyncio.timeout(PIECE_S) as limit:
            yield limit
    except TimeoutError as error:
        if limit.expired():
            raise TooSlow(f"less than {PIECE_BYTES // 1024} KiB in {PIECE_S:g} s") from error
        raise


class _PacedUpload(aiohttp.BytesIOPayload):
    """The body of a request, sent in pieces."""

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        self._value.seek(0)
        while piece := self._value.read(PIECE_BYTES):
            async with _one_piece():
                await writer.write(piece)


class _PacedDownload:
    """The body of a reply, received in pieces; s3fs reads bodies as a whole."""

    def __init__(self, stream: aiohttp.StreamReader) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def read(self, size: int = -1) -> bytes:
        if size >= 0:
            return await self._stream.read(size)
        pieces: list[bytes] = []
        while True:
            async with _one_piece():
                try:
                    pieces.append(await self._stream.readexactly(PIECE_BYTES))
                except asyncio.IncompleteReadError as end:
                    return b"".join([*pieces, end.partial])


def _restart(limit: asyncio.Timeout) -> None:
    with suppress(RuntimeError):  # the reply was faster than the rest of the request
        limit.reschedule(asyncio.get_running_loop().time() + PIECE_S)


class _PacedReply(aiohttp.ClientResponse):
    """A reply whose head must arrive within PIECE_S seconds after the request is sent, and whose body is paced."""

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        async with _one_piece() as limit:
            if sending := self._writer:  # each piece of the request has a limit of its own
                limit.reschedule(None)
                sending.add_done_callback(lambda _: _restart(limit))
            await super().start(connection)
        self.content: Any = _PacedDownload(self.content)
        return self


def open_socket(address: Any) -> socket.socket:
    """A socket for an address of `getaddrinfo`, whose kernel takes few bytes that it cannot send yet."""
    opened = socket.socket(*address[:3])
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    return opened


class PacedSession(AIOHTTPSession):  # type: ignore[misc]
    """Ends a request whose bytes trickle."""

    async def _get_session(self, proxy_url: Any) -> Any:
        session = await super()._get_session(proxy_url)
        session._response_class = _PacedReply
        return session

    async def send(self, request: Any) -> Any:
        if isinstance(request.body, io.BytesIO):
            request = copy.copy(request)  # botocore may send the original again
            request.body = _PacedUpload(request.body)
        return await super().send(request)


class OneTrySession(PacedSession):
    async def _get_session(self, proxy_url: Any) -> Any:
        session = await super()._get_session(proxy_url)
        # aiohttp repeats an idempotent request once if its connection is reset. It logs nothing, so our log would miss the fault.
        session._retry_connection = False
        return session


class S3FileSystem(s3fs.S3FileSystem):  # type: ignore[misc]
    """Takes every path as the text `bucket/key`: no character of it has a meaning, except the first slash."""

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return path  # s3fs would also cut off slashes at the end, which belong to the key

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, key = self._find_bucket_key(path)
        return bucket, key, None  # s3fs would cut off what follows `?versionId=` in a key

    async def _expand_path(self, path: str | list[str], recursive: bool = False, **_: Any) -> list[str]:
        # s3fs would take `*`, `?` and `[...]` in a path for a pattern: deleting `ex[1]` would delete `ex1`.
        paths = [path] if isinstance(path, str) else path
        below = [key for each in paths for key in await self._find(each)] if recursive else []
        return list(dict.fromkeys([*paths, *below]))

    def mkdir(self, path: str, **options: Any) -> None:
        # S3 has no folders. s3fs would create the bucket of a folder if it may not look whether the bucket exists.
        if not self.split_path(path)[1]:
            super().mkdir(path, **options)

    @property
    def retries(self) -> int:
        # s3fs tries each request this many times, besides botocore. With 2, `Store.arrow` also repeats reads cut off in the body.
        return 1 if self.config_kwargs["retries"]["total_max_attempts"] == 1 else 2

    async def set_session(self, *args: Any, **kwargs: Any) -> Any:
        client = await super().set_session(*args, **kwargs)
        # aiohttp waits for the answer to `Expect: 100-continue` without a limit: a PUT to a silent server would hang forever.
        client.meta.events.unregister("before-call.s3", add_expect_header)
        return client


ALWAYS = {"http_session_cls": PacedSession, "connector_args": {"socket_factory": open_socket}}
RETRIED = {**ALWAYS, "connect_timeout": 5, "read_timeout": 20, "retries": {"mode": "standard", "total_max_attempts": 5}}
"""botocore's own retries for `Store.arrow`, whose requests come from Ray and pyarrow and do not pass through our retries."""


def tried_once(silence_s: float) -> dict[str, Any]:
    """The client's settings for one try per request, which fails after `silence_s` seconds without a byte."""
    retries = {"mode": "standard", "total_max_attempts": 1}
    timeouts = {"read_timeout": silence_s, "connect_timeout": min(5, silence_s)}
    return {**ALWAYS, **timeouts, "retries": retries, "http_session_cls": OneTrySession}

"""A faulty store: an HTTP proxy on loopback before a real S3 or MLflow server, which injects chosen or seeded random faults.

    with FaultyStore("http://127.0.0.1:9000", seed=1, probability=0.1) as proxy:
        store = open_store("s3://bucket/prefix", Storage(path="unused", endpoint=proxy.endpoint))
        ...
    assert proxy.injected["reset"] > 0

Requests are numbered from 0 in the order of arrival; which of them fail, and how, depends on the seed and the number alone.
Bytes pass unchanged, also the Host header, so that signatures stay valid. A connection carries one request.
"""

import asyncio
import contextlib
import hashlib
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

FAULTS = ("slow_down", "reset", "reset_body", "stall", "stall_body", "truncate")
"""503 SlowDown; connection reset before the answer, or in its body; silence before the answer, or in its body; an answer that
ends in its body. Never drawn by default: `full` (507, as from a store without space), `forbid` (403 SignatureDoesNotMatch) and
`length_required` (411, as older stores answer to parts without a length), which no retry fixes, and LIES."""
LIES = ("forget", "shorten", "flip")
"""The answer is a success, but the store keeps nothing, half of the body, or the body with one bit changed."""
REPLIES = {
    "slow_down": (503, "Slow Down", "SlowDown"),
    "full": (507, "Insufficient Storage", "XMinioStorageFull"),
    "forbid": (403, "Forbidden", "SignatureDoesNotMatch"),
    "length_required": (411, "Length Required", "MissingContentLength"),
}


class FaultyStore:
    """`endpoint` is its URL. `requests` counts the requests and `injected` the faults (fault -> number); `lines` are the
    requests' first lines, such as `GET /bucket/key HTTP/1.1`, and `fields` their header fields, names in small letters.

    `chosen` maps request numbers to faults; `aimed` maps regular expressions, searched in a request's line, to faults. Any other
    request fails with `probability`, by a fault drawn from `weights` (fault -> weight); with `only_gets`, only GET requests fail.
    A stall lasts `stall_s` seconds, then the connection is closed. `rate`: bytes per second that each connection carries in each
    direction, for requests that begin from then on; None does not slow them.
    All but `upstream`, `requests`, `injected`, `lines` and `fields` may be set while it runs.
    """

    def __init__(
        self,
        upstream: str,
        *,
        seed: int = 0,
        probability: float = 0.0,
        weights: Mapping[str, float] | None = None,
        chosen: Mapping[int, str] | None = None,
        aimed: Mapping[str, str] | None = None,
        only_gets: bool = False,
        stall_s: float = 60.0,
        rate: float | None = None,
        port: int = 0,
    ) -> None:
        address = urlsplit(upstream)
        self.upstream = (address.hostname or "127.0.0.1", address.port or 80)
        self.random = random.Random(seed)
        self.probability = probability
        self.weights = dict(weights or dict.fromkeys(FAULTS, 1.0))
        self.chosen = dict(chosen or {})
        self.aimed = dict(aimed or {})
        self.only_gets = only_gets
        self.stall_s = stall_s
        self.rate = rate
        self.requests = 0
        self.lines: list[str] = []
        self.fields: list[dict[str, str]] = []
        self.injected: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)  # otherwise the kernel takes megabytes at any rate
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), name="faulty-store")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, sock=self._listener)
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await server.wait_closed()
        await asyncio.sleep(0.01)  # transports close in the next iterations of the loop

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._answer(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()

    def _draw(self, line: str) -> str | None:
        number, self.requests = self.requests, self.requests + 1
        self.lines.append(line)
        aimed = (fault for pattern, fault in self.aimed.items() if re.search(pattern, line))
        fault = self.chosen.get(number) or next(aimed, None)
        if fault is None and self.random.random() < self.probability and not (self.only_gets and not line.startswith("GET ")):
            fault = self.random.choices(list(self.weights), list(self.weights.values()))[0]
        if fault:
            self.injected[fault] += 1
        return fault

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        line = head.split(b"\r\n", 1)[0].decode("latin-1")
        fields = _fields(head)
        if fields.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await _body(partial(self._receive, reader), reader, fields)
        self.fields.append(fields)
        fault = self._draw(line)
        if fault in REPLIES:
            writer.write(_reply(fault, line.split(" ", 1)[0]))
            await writer.drain()
        elif fault == "reset":
            _reset(writer)
        elif fault == "forget":
            writer.write(_answer_of_nothing(body, fields.get("content-type", "")))
            await writer.drain()
        elif fault == "stall":
            await asyncio.sleep(self.stall_s)
        else:
            reply = await self._forward(*_spoilt(fault, head, body))
            if fault and fault not in LIES:  # at least one byte is missing; an answer without body ends in its head
                start = reply.index(b"\r\n\r\n") + 4
                reply = reply[: start + (len(reply) - start) // 2 if len(reply) > start else start - 4]
            await self._send(writer, reply)
            if fault == "stall_body":
                await asyncio.sleep(self.stall_s)
            elif fault == "reset_body":
                _reset(writer)

    async def _receive(self, reader: asyncio.StreamReader, size: int) -> bytes:
        pieces = []
        async for start, end in self._pieces(size):
            pieces.append(await reader.readexactly(end - start))
        return b"".join(pieces)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        async for start, end in self._pieces(len(data)):
            writer.write(data[start:end])
            await writer.drain()

    async def _pieces(self, size: int) -> AsyncIterator[tuple[int, int]]:
        """(start, end) of the pieces in which bytes pass at `rate`, ten a second; one piece if there is no rate."""
        rate, began = self.rate, self._loop.time()
        step = max(1, int(rate / 10) if rate else size)
        for start in range(0, size, step):
            yield start, min(start + step, size)
            if rate:
                await asyncio.sleep(began + (start + step) / rate - self._loop.time())

    async def _forward(self, head: bytes, body: bytes) -> bytes:
        """The whole answer. The request makes the server close the connection after it."""
        reader, writer = await asyncio.open_connection(*self.upstream)
        lines = [line for line in head.split(b"\r\n") if line.split(b":")[0].lower() not in (b"connection", b"expect")]
        try:
            writer.write(b"\r\n".join([lines[0], b"Connection: close", *lines[1:]]) + body)
            return _closing(await reader.read(-1))
        finally:
            writer.transport.abort()  # `close` would wait until a slow server has read the whole body


def _fields(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name}


async def _body(receive: Callable[[int], Awaitable[bytes]], reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
    """The body as it came, chunk sizes included."""
    if fields.get("transfer-encoding", "").lower() != "chunked":
        return await receive(int(fields.get("content-length", 0)))
    body = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        body += line
        if size:
            body += await receive(size + 2)
            continue
        while line != b"\r\n":  # trailers, then an empty line
            line = await reader.readuntil(b"\r\n")
            body += line
        return body


def _spoilt(fault: str | None, head: bytes, body: bytes) -> tuple[bytes, bytes]:
    """The request with half of its body, or with one bit changed: the store keeps that."""
    middle = len(body) // 2
    if fault == "shorten":
        return re.sub(rb"(?i)(\r\ncontent-length:) *\d+", rb"\1 %d" % middle, head), body[:middle]
    if fault == "flip":
        return head, body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
    return head, body


def _answer_of_nothing(body: bytes, kind: str) -> bytes:
    """S3's answer after it has stored an object; to JSON, that of MLflow."""
    if "json" in kind:
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    tag = hashlib.md5(body).hexdigest().encode()
    return b'HTTP/1.1 200 OK\r\nETag: "' + tag + b'"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n'


def _closing(reply: bytes) -> bytes:
    """The answer with `Connection: close`, which servers may omit even if the request had it."""
    head, _, body = reply.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([lines[0], b"Connection: close", *lines[1:]]) + b"\r\n\r\n" + body


def _reply(fault: str, method: str) -> bytes:
    status, reason, code = REPLIES[fault]
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>Injected.</Message></Error>'.encode()
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close"
    return head.encode() + b"\r\n\r\n" + (b"" if method == "HEAD" else body)


def _reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def refused(code: str, status: int, message: str = "No.", **headers: str) -> Exception:
    """The exception of a reply, as s3fs raises it."""
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    reply = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers}}
    error: Exception = translate_boto_error(ClientError(reply, "GetObject"))
    return error

"""What is turned away before it is read into memory: bodies that are too large, and requests without the token."""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.serving import guard
from pipeline.serving.guard import Guard

LIMIT, TOKEN = 100, "open sesame"


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(guard.MAX_BYTES, str(LIMIT))
    monkeypatch.delenv(guard.TOKEN_SHA256, raising=False)


class Application:
    """Answers with the number of bytes of the body, or 500 if the client leaves, as frameworks do."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                await send({"type": "http.response.start", "status": 500, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                raise ConnectionError("the client has left")
            size, more = size + len(message["body"]), message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(size).encode()})


def ask(
    chunks: Sequence[bytes], headers: Sequence[tuple[bytes, bytes]] = (), path: str = "/predict"
) -> tuple[int, str, int, int]:
    """(status, error or body, chunks that were read, times that the application was asked)."""
    application, sent, read = Application(), [], 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": chunks[read - 1], "more_body": read < len(chunks)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(application)({"type": "http", "path": path, "headers": list(headers)}, receive, send))
    start, body = sent
    text = body["body"].decode()
    return start["status"], json.loads(text)["error"] if start["status"] != 200 else text, read, application.calls


def length(size: int) -> tuple[bytes, bytes]:
    return b"content-length", str(size).encode()


def test_a_body_up_to_the_limit_arrives_whole() -> None:
    assert ask([b"x" * LIMIT], [length(LIMIT)]) == (200, str(LIMIT), 1, 1)
    assert ask([b"x" * 60, b"x" * 40]) == (200, str(LIMIT), 2, 1)


def test_a_larger_body_is_refused_by_its_length_and_read_to_its_end_so_that_the_client_sees_the_answer() -> None:
    status, error, read, asked = ask([b"x" * 60] * 5, [length(300)])
    assert (status, read, asked) == (413, 5, 0)
    assert error.startswith("at most 100 bytes are taken")


def test_a_client_that_waits_for_a_sign_is_refused_at_once() -> None:
    assert ask([b"x" * 60] * 5, [length(300), (b"expect", b"100-continue")])[::2] == (413, 0)


@pytest.mark.parametrize("headers", [[], [length(10)]], ids=["no length", "a wrong length"])
def test_a_body_is_counted_whatever_its_length_says(headers: list[tuple[bytes, bytes]]) -> None:
    status, error, read, asked = ask([b"x" * 60] * 5, headers)
    assert (status, read, asked) == (413, 5, 1)
    assert error.startswith("at most 100 bytes are taken")


def test_a_body_without_end_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "DISCARDED", 1000)
    assert ask([b"x" * 100] * 10_000, [length(10**9)])[::2] == (413, 10)


def test_a_fault_of_the_application_is_not_hidden() -> None:
    async def faulty(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(Guard(faulty)({"type": "http", "path": "/predict", "headers": []}, None, None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("headers", "path", "status"),
    [
        ([(b"authorization", f"Bearer {TOKEN}".encode())], "/predict", 200),
        ([(b"authorization", f"bearer {TOKEN}".encode())], "/model", 200),
        ([], "/predict", 401),
        ([], "/model", 401),
        ([], "/openapi.json", 401),
        ([], "//", 401),
        ([(b"authorization", b"Bearer ")], "/predict", 401),
        ([(b"authorization", b"Bearer \xff\xfe")], "/predict", 401),
        ([(b"authorization", f"Basic {TOKEN}".encode())], "/predict", 401),
        ([], "/", 200),
        ([], "/healthz", 200),
    ],
)
def test_with_a_token_only_the_page_and_the_health_are_open(
    headers: list[tuple[bytes, bytes]], path: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(guard.TOKEN_SHA256, hashlib.sha256(TOKEN.encode()).hexdigest())
    assert ask([b"x"], headers, path)[0] == status

"""Turns away requests without a token and bodies that are too large, before they are read into memory.

It stands in Serve's proxy, where requests wait, and in the replicas, which a cluster's own proxy reaches too.
"""

import hashlib
import hmac
import json
import os
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp, Receive, Scope, Send

MAX_BYTES, TOKEN_SHA256 = "CCNET_SERVE_MAX_BYTES", "CCNET_SERVE_TOKEN_SHA256"
"""Environment variables of the processes that answer: the largest body, and the hash of the token if one is needed."""
LARGEST_BODY, LARGEST_IMAGE = 2**25, 2**24
"""Bytes of a request and pixels of an image (4096 x 4096), where nothing else is set."""
OPEN = ("/", "/healthz", "/-/healthz")
"""Paths that need no token: the page asks for it, and the health says nothing about the model."""
DISCARDED = 2**30
"""Bytes of a body that is too large which are read and thrown away: a client that still sends would not see the answer."""


class Guard:
    """ASGI middleware. It answers 401 and 413 itself, with a JSON object whose `error` is a sentence."""

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app
        self._max_bytes = int(os.environ.get(MAX_BYTES, LARGEST_BODY))
        self._token_sha256 = os.environ.get(TOKEN_SHA256)

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        if scope["path"] not in OPEN and not self._may_enter(headers.get(b"authorization", b"")):
            return await _answer(send, 401, "send the header `Authorization: Bearer TOKEN`, with the token of this service")
        body, begun = _Body(receive, self._max_bytes), False

        async def passed_on(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            if begun or not body.too_large:
                begun = True
                await send(message)

        if int(headers.get(b"content-length", b"0")) > self._max_bytes:
            body.too_large = True
        else:
            try:
                await self._app(scope, body.receive, passed_on)
            except Exception:  # what the application says about a body that was cut short is not the client's answer
                if not body.too_large:
                    raise
        if body.too_large and not begun:
            if headers.get(b"expect", b"").lower() != b"100-continue":  # such a client sends nothing before it is asked to
                await body.discard()
            await _answer(send, 413, f"at most {self._max_bytes} bytes are taken: send a smaller or more compressed image")

    def _may_enter(self, authorization: bytes) -> bool:
        if self._token_sha256 is None:
            return True
        scheme, _, token = authorization.partition(b" ")
        found = hashlib.sha256(token.strip()).hexdigest()
        return scheme.lower() == b"bearer" and hmac.compare_digest(found, self._token_sha256)


class _Body:
    """The body of a request; at the limit it looks to the application as if the client had left."""

    def __init__(self, receive: "Receive", limit: int) -> None:
        self._receive, self._limit = receive, limit
        self._bytes, self._more = 0, True
        self.too_large = False

    async def receive(self) -> MutableMapping[str, Any]:
        message = await self._next()
        self.too_large = self.too_large or self._bytes > self._limit
        return {"type": "http.disconnect"} if self.too_large else message

    async def discard(self) -> None:
        """Reads to the end without keeping anything; gives up at DISCARDED bytes."""
        while self._more and self._bytes < DISCARDED:
            await self._next()

    async def _next(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        self._more = message["type"] == "http.request" and message.get("more_body", False)
        return message


async def _answer(send: "Send", status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def middlewares() -> "list[Middleware]":
    """What Serve's proxy puts around its answers (its RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH)."""
    from starlette.middleware import Middleware

    return [Middleware(Guard)]

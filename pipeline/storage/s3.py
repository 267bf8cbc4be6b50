"""The S3 client: one try per request, and no wait without a limit."""

from typing import Any

import s3fs
from aiobotocore.httpsession import AIOHTTPSession
from botocore.handlers import add_expect_header

PART_BYTES = 8 * 2**20
"""Bytes of one part of a multipart upload, and of the read-ahead of files opened through `Store.arrow`."""
RETRIED = {"connect_timeout": 5, "read_timeout": 20, "retries": {"mode": "standard", "total_max_attempts": 5}}
"""botocore's own retries for `Store.arrow`, whose requests come from Ray and pyarrow and do not pass through our retries."""


class OneTrySession(AIOHTTPSession):  # type: ignore[misc]
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

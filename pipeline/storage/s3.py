"""The S3 client: one try a request, no wait without a limit."""

from typing import Any

import s3fs
from aiobotocore.httpsession import AIOHTTPSession
from botocore.handlers import add_expect_header

# Without these two, pyarrow and botocore send trailing checksums which older stores answer with 411; pyarrow.fs.copy_files
# then returns normally and stores nothing: checkpoints lost in silence.
CHECKSUMS = {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required"}
PART_BYTES = 8 * 2**20
"""Part of a multipart upload, and read-ahead of `Store.arrow`'s files."""
RETRIED = {"connect_timeout": 5, "read_timeout": 20, "retries": {"mode": "standard", "total_max_attempts": 5}}
"""botocore's own budget behind `Store.arrow`, whose calls come from Ray and pyarrow and not through our retries."""


class _OneTry(AIOHTTPSession):  # type: ignore[misc]
    async def _get_session(self, proxy_url: Any) -> Any:
        session = await super()._get_session(proxy_url)
        # aiohttp sends an idempotent request whose connection was reset once more, unseen: a fault would be missing in the log.
        session._retry_connection = False
        return session


class _S3(s3fs.S3FileSystem):  # type: ignore[misc]
    @property
    def retries(self) -> int:
        # s3fs tries each request so often besides botocore. 2 leaves `Store.arrow` the reads cut off in the body.
        return 1 if self.config_kwargs["retries"]["total_max_attempts"] == 1 else 2

    async def set_session(self, *args: Any, **kwargs: Any) -> Any:
        client = await super().set_session(*args, **kwargs)
        # aiohttp waits without any limit for the answer to `Expect: 100-continue`: a PUT to a silent server hangs for ever.
        client.meta.events.unregister("before-call.s3", add_expect_header)
        return client

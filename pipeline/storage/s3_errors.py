"""What a failed request to a store means: whether a retry may succeed, a line for the log, and the error with its fix.

Exceptions are recognised by the names of their classes and by the reply that they carry, so this file imports none of s3fs,
botocore and aiohttp.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import DiskError, StorageError
from pipeline.storage import disk
from pipeline.storage.retry import Failed

if TYPE_CHECKING:
    from pipeline.storage.store import Store

# "ConnectionError" means both botocore's class and Python's own.
_UNREACHABLE = {"ConnectionError", "HTTPClientError", "ClientConnectionError", "TimeoutError"}
_TORN = {"ClientPayloadError", "IncompleteReadError", "ResponseParserError", "ShortBody"}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}
_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "403", "ExpiredToken", "InvalidToken", "AuthFailure"}


class ShortBody(OSError):
    """The reply has fewer bytes than the object holds in the requested range."""


def codes(error: BaseException) -> set[str]:
    """S3 error codes of the replies behind an exception, such as {"SlowDown"}; for HEAD replies the status as text."""
    return {_reply(e)[1] for e in _chain(error) if _reply(e)[1]}


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later. The store's reply decides if there is one, otherwise the kind of failure."""
    replies = [_reply(e) for e in _chain(error) if _reply(e)[1]]
    if replies:
        return is_transient_reply(*replies[0])
    return bool(_kinds(error) & (_UNREACHABLE | _TORN))


def describe(error: BaseException) -> str:
    """One line: `503 SlowDown` for a reply, otherwise the kind of failure and its message."""
    for link in _chain(error):
        status, code = _reply(link)
        if code:
            # HEAD replies have no body, so the status is their only code.
            words = getattr(link, "response")["Error"].get("Message", "") if code == str(status) else code  # noqa: B009
            return _one_line(status or "", words)
    first = next(link for link in _chain(error) if not isinstance(link, Failed | StorageError))
    return f"{type(first).__name__}: {_one_line(first)}"


def explain(store: "Store", error: Exception, key: str = "", *, setting: str = "") -> StorageError:
    """The error for a failed request, with its fix. It names the key, or else the root, and `setting`, which gave the address."""
    tried = next((f"; {link}" for link in _chain(error) if isinstance(link, Failed) and not link.final), "")
    fault = f"{describe(error)}{tried}"
    where = store.url(key) if key else store.root
    writes = setting == "storage.path"
    if fault_of_disk := disk.sentence(error, None if store.is_s3 else Path(where).parent if key else where):
        return DiskError(fault_of_disk)
    if not store.is_s3:
        reason = next((e.strerror for e in _chain(error) if isinstance(e, OSError) and e.strerror), fault)
        if not setting:
            return StorageError(f"{where}: cannot be used ({reason}): check the path and its permissions")
        fix = f"choose another folder for {setting}" if writes else f"correct {setting}"
        return StorageError(f"{where}: cannot be {'created or written' if writes else 'read'} ({reason}): {fix}")
    bucket = store.root.removeprefix("s3://").split("/")[0]
    where = f"{where} at {store.endpoint or 'AWS S3'}"
    found = codes(error)
    if _kinds(error) & _NO_CREDENTIALS:
        return StorageError(f"{where}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role")
    if found & _REFUSED or "PermissionError" in _kinds(error):
        return StorageError(
            f"{where}: access refused ({fault}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and that they may "
            f"{'list, read, write and delete' if writes else 'list and read' if setting else 'do this'} in bucket `{bucket}`"
        )
    if "NoSuchBucket" in found:
        return StorageError(f"{where}: bucket `{bucket}` does not exist: create it, or correct {setting or 'its name'}")
    if store.endpoint and "://" not in store.endpoint:
        return StorageError(f"{where}: storage.endpoint = {store.endpoint!r}: must be a URL such as http://127.0.0.1:9000")
    if not found and _kinds(error) & _UNREACHABLE:
        return StorageError(f"{where}: cannot be reached ({fault}): is the store up, and storage.endpoint right?")
    if is_transient(error):
        return StorageError(f"{where}: does not recover ({fault}): see the store's log, or raise storage.patience_s")
    return StorageError(f"{where}: {fault}")


def _chain(error: BaseException) -> list[BaseException]:
    """The exception and its causes, the outermost first."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return chain


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for link in _chain(error) for kind in type(link).__mro__}


def _reply(error: BaseException) -> tuple[int, str]:
    """(HTTP status, S3 error code) of a botocore ClientError; (0, "") of anything else."""
    response: Any = getattr(error, "response", None)
    if not isinstance(response, dict):
        return 0, ""
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0), str(response.get("Error", {}).get("Code", ""))


def _one_line(*words: object) -> str:
    return " ".join(" ".join(str(word) for word in words).split())


# Codes of S3 and compatible stores that mean "not now". RequestTimeTooSkewed is none of them: a wrong clock stays wrong.
_NOT_NOW = {
    "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "RequestTimeoutException", "Throttling",
    "ThrottlingException", "ThrottledException", "TooManyRequests", "TooManyRequestsException", "RequestThrottled",
    "RequestLimitExceeded", "BandwidthLimitExceeded",
}  # fmt: skip


def is_transient_reply(status: int, code: str) -> bool:
    """Whether a request that was answered with this HTTP status and S3 error code may succeed when it is sent again."""
    return code in _NOT_NOW or status == 429 or (status >= 500 and status != 501)

"""What a failed request to a store means: whether a retry may succeed, a line for the log, and the error with its fix.

Exceptions are recognised by the names of their classes and by the reply that they carry, so this file imports none of s3fs,
botocore and aiohttp.
"""

import http.client
import os
import re
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
_UNTRUSTED = {"SSLError", "SSLCertVerificationError", "ClientConnectorCertificateError"}
_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "403", "AuthFailure"}
_ENCRYPTED = re.compile(r"\bkms:|KMS\.|Server.Side Encryption|customer.provided", re.IGNORECASE)
_FIXES = [
    (
        {"InvalidObjectState", "ObjectNotInActiveTierError"},
        "archived: restore it first (aws s3api restore-object --bucket {bucket} --key KEY), or copy it to the class STANDARD",
    ),
    (
        {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired", "UnauthorizedSSOTokenError",
         "SSOTokenLoadError", "TokenRetrievalError"},
        "the session token has expired: log in again (aws sso login), or set a new AWS_SESSION_TOKEN with its two keys",
    ),
    (
        {"InvalidToken", "InvalidSecurityToken"},
        "the session token is not valid here: unset AWS_SESSION_TOKEN if the keys need none, else set that of the keys",
    ),
    (
        {"RequestTimeTooSkewed", "RequestInTheFuture"},
        "the clock of this machine differs from the store's: set it (timedatectl set-ntp true)",
    ),
    (
        {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301", "Redirect"},
        "the bucket is in another region: set AWS_DEFAULT_REGION={region}, and {endpoint}, if it is set, to that region's",
    ),
    (
        {"SecondLevelDomainForbidden", "PathStyleDomainForbidden", "InvalidPathAccess", "PathStyleRequestNotAllowed"},
        "the store demands the bucket in the host name: set {own}.addressing=virtual",
    ),
    (
        {"407", "511", "ProxyAuthenticationRequired"},
        "a proxy or a login page stands before the store: log in there, set HTTPS_PROXY with user and password, or "
        "set NO_PROXY to the store's host",
    ),
    (
        {"QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull", "507"},
        "the store or the bucket's quota is full: delete what you do not need, or raise the quota of bucket `{bucket}`",
    ),
    ({"EndpointResolutionError"}, "{endpoint} must be a URL such as http://127.0.0.1:9000"),
]  # fmt: skip
"""What some codes of replies and kinds of exceptions mean, and the fix."""


WRITTEN = ("storage.path", "predict.output", "export.output")
"""Settings whose address is written to."""


class ShortBody(OSError):
    """The reply has fewer bytes than the object holds in the requested range."""


class NoListing(OSError):
    """The reply to the request for a listing has none of its fields."""


class TooSlow(TimeoutError):
    """The bytes of a request or of its reply trickle; the message is the rate."""


def codes(error: BaseException) -> set[str]:
    """S3 error codes of the replies behind an exception, such as {"SlowDown"}; for HEAD replies the status as text."""
    return {_reply(e)[1] for e in _chain(error) if _reply(e)[1]}


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later. The store's reply decides if there is one, otherwise the kind of failure."""
    replies = [_reply(e) for e in _chain(error) if _reply(e)[1]]
    if replies:
        return is_transient_reply(*replies[0])
    return not _kinds(error) & _UNTRUSTED and bool(_kinds(error) & (_UNREACHABLE | _TORN))


def describe(error: BaseException) -> str:
    """One line: `503 SlowDown` for a reply, otherwise the kind of failure and its message."""
    for link in _chain(error):
        status, code = _reply(link)
        if code:
            # HEAD replies have no body, so the status is their only code.
            words = (_message(link) or http.client.responses.get(status, "")) if code == str(status) else code
            return _one_line(status or "", words)
    links = [link for link in _chain(error) if not isinstance(link, Failed | StorageError)]
    if slow := next((link for link in links if isinstance(link, TooSlow)), None):
        return str(slow)
    first = next(iter(links), error)
    return f"{type(first).__name__}: {_one_line(first)}"


def explain(store: "Store", error: Exception, key: str = "", *, setting: str = "") -> StorageError:
    """The error for a failed request, with its fix. It names the key, or else the root, and `setting`, which gave the address."""
    tried = next((f"; {link}" for link in _chain(error) if isinstance(link, Failed) and not link.final), "")
    fault = f"{describe(error)}{tried}"
    where = store.url(key) if key else store.root
    writes = setting in WRITTEN
    if not store.is_s3:  # s3fs raises "input/output error" for replies that it does not know
        if fault_of_disk := disk.sentence(error, Path(where).parent if key else where):
            return DiskError(fault_of_disk)
        cause = next((e for e in _chain(error) if isinstance(e, OSError) and e.strerror), None)
        reason = cause.strerror if cause else fault
        if cause and not setting and str(cause.filename).startswith(f"{where}/"):  # a folder inside, while files are listed
            where = str(cause.filename)
        if not setting:
            return StorageError(f"{where}: cannot be used ({reason}): check the path and its permissions")
        fix = f"choose another folder for {setting}" if writes else f"correct {setting}"
        return StorageError(f"{where}: cannot be {'created or written' if writes else 'read'} ({reason}): {fix}")
    bucket = store.root.removeprefix("s3://").split("/")[0]
    return StorageError(f"{where} at {store.endpoint or 'AWS S3'}: {_cause(store, error, bucket, fault, setting)}")


def _cause(store: "Store", error: Exception, bucket: str, fault: str, setting: str) -> str:
    """What is wrong, and the fix."""
    found, kinds, own = codes(error), _kinds(error), f"storage.buckets.{bucket}"
    endpoint = f"{own}.endpoint" if store.bucket.endpoint else "storage.endpoint"
    writes = setting in WRITTEN
    if "ProfileNotFound" in kinds:
        return f"no profile {store.bucket.profile or os.environ.get('AWS_PROFILE')!r} in ~/.aws/config: add it on every node"
    if kinds & _NO_CREDENTIALS:
        public = "" if writes else f"; if the bucket is public, set {own}.anonymous=true"
        return f"no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role{public}"
    if "ParamValidationError" in kinds:
        return f"`{bucket}` cannot be the name of a bucket: correct {setting or 'the address'}"
    if kinds & _UNTRUSTED and "WRONG_VERSION_NUMBER" in fault:
        return f"the server there does not speak https: write http:// in {endpoint} ({fault})"
    if kinds & _UNTRUSTED:
        return f"its certificate is not trusted ({fault}): set AWS_CA_BUNDLE to a file with the certificate of its authority"
    if fix := next((fix for named, fix in _FIXES if found & named or kinds & named), None):
        return f"{fix.format(bucket=bucket, own=own, endpoint=endpoint, region=_region(error))} ({fault})"
    if _ENCRYPTED.search(said := f"{fault}: {_message(error)}"):
        fix = "allow them kms:Decrypt and kms:GenerateDataKey of it"
        return f"encrypted with a key that these credentials cannot use ({said}): {fix}"
    if found & _REFUSED or ("PermissionError" in kinds and not found):
        if store.bucket.anonymous:
            return f"access refused without credentials ({fault}): the bucket is not public: set {own}.anonymous=false"
        rights = "list, read, write and delete" if writes else "list and read" if setting else "do this"
        pays = "" if writes or store.bucket.requester_pays else f"; if its readers pay, set {own}.requester_pays=true"
        return (
            f"access refused ({fault}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and that they may {rights} in bucket "
            f"`{bucket}`{pays}"
        )
    if "NoSuchBucket" in found:
        return f"bucket `{bucket}` does not exist: create it, or correct {setting or 'its name'}"
    if "InvalidBucketName" in found:
        return f"`{bucket}` cannot be the name of a bucket: correct {setting or 'the address'}"
    if (store.endpoint and "://" not in store.endpoint) or "Invalid endpoint" in fault:
        return f"{endpoint} = {store.endpoint!r}: must be a URL such as http://127.0.0.1:9000"
    if not found and "TooSlow" in kinds:
        return (
            f"too slow ({fault}): look for what fills the network or the store, and run the same command again; or use a store "
            "that is nearer"
        )
    if not found and kinds & _UNREACHABLE:
        return f"cannot be reached ({fault}): is the store up, and {endpoint} right?"
    if is_transient(error):
        return f"does not recover ({fault}): see the store's log, or raise storage.patience_s"
    if kinds & {"NoListing"} or any(code.isdecimal() for code in found):  # no code of S3, but HTML or another text
        return f"this is no answer of an S3 store ({fault}): is {endpoint} right, and does a proxy or login page stand before it?"
    return f"the store refuses the request ({said}): correct what it names" if found else fault


def _message(error: BaseException) -> str:
    """The words of the store's reply."""
    replies = (getattr(link, "response", None) for link in _chain(error))
    return next(
        (_one_line(reply["Error"].get("Message", "")) for reply in replies if isinstance(reply, dict) and "Error" in reply), ""
    )


def _region(error: BaseException) -> str:
    """The region that the store names as the right one."""
    for response in (getattr(link, "response", None) for link in _chain(error)):
        if isinstance(response, dict):
            headers, words = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}), response.get("Error", {})
            expected = re.search(r"expecting '([^']+)'", str(words.get("Message", "")))
            if named := headers.get("x-amz-bucket-region") or words.get("Region") or (expected and expected[1]):
                return str(named)
    return "ITS_REGION"


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
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    # A body that is no XML, such as the HTML of a proxy, gives an empty code.
    return status, str(response.get("Error", {}).get("Code", "") or status or "")


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
    return code in _NOT_NOW or status == 429 or (status >= 500 and status not in (501, 511))

"""What a store's refusals say: each has its own sentence with the fix."""

import http.server
import re
import threading
from dataclasses import replace

import pytest

from pipeline.errors import StorageError
from pipeline.storage.s3_errors import explain, is_transient
from pipeline.storage.store import Store
from tests.support.faulty_store import refused

pytestmark = pytest.mark.usefixtures("credentials")


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        (
            "InvalidObjectState",
            403,
            r"archived: restore it first \(aws s3api restore-object --bucket pictures .*InvalidObjectState",
        ),
        ("ExpiredToken", 400, r"the session token has expired: log in again .*AWS_SESSION_TOKEN"),
        ("InvalidToken", 400, r"the session token is not valid here: unset AWS_SESSION_TOKEN"),
        ("RequestTimeTooSkewed", 403, r"the clock of this machine differs from the store's: set it"),
        ("PermanentRedirect", 301, r"the bucket is in another region: set AWS_DEFAULT_REGION=eu-west-1"),
        ("AuthorizationHeaderMalformed", 400, r"the bucket is in another region: set AWS_DEFAULT_REGION=eu-west-1"),
        (
            "SecondLevelDomainForbidden",
            403,
            r"the store demands the bucket in the host name: set storage.buckets.pictures.addressing=virtual",
        ),
        (
            "AccessDenied",
            403,
            r"access refused \(403 AccessDenied\): .*; if its readers pay, set storage.buckets.pictures.requester_pays",
        ),
        ("NoSuchBucket", 404, r"bucket `pictures` does not exist"),
        ("InvalidBucketName", 400, r"`pictures` cannot be the name of a bucket: correct data.source$"),
        (
            "KMS.DisabledException",
            400,
            r"encrypted with a key that these credentials cannot use \(400 KMS.DisabledException: No.",
        ),
        ("QuotaExceeded", 403, r"the store or the bucket's quota is full: .* of bucket `pictures` \(403 QuotaExceeded"),
        ("ProxyAuthenticationRequired", 407, r"a proxy or a login page stands before the store: "),
        ("AccountProblem", 403, r"the store refuses the request \(403 AccountProblem: No\.\): correct what it names$"),
        ("AllAccessDisabled", 403, r"the store refuses the request \(403 AllAccessDisabled: No\.\)"),
        ("", 407, r"a proxy or a login page stands before the store: .*407 No\."),
        ("", 511, r"a proxy or a login page stands before the store: "),
        ("", 404, r"this is no answer of an S3 store \(404 No\.\): is storage.endpoint right"),
        ("", 413, r"this is no answer of an S3 store \(413 "),
    ],
)
def test_each_refusal_has_its_own_sentence_and_fix(code: str, status: int, words: str) -> None:
    message = "The region 'us-east-1' is wrong; expecting 'eu-west-1'" if code.startswith("Authorization") else "No."
    error = refused(code, status, message, **({"x-amz-bucket-region": "eu-west-1"} if code == "PermanentRedirect" else {}))
    explained = str(explain(Store("s3://pictures/set"), error, "a.png", setting="data.source"))
    assert re.match(rf"s3://pictures/set/a\.png at AWS S3: {words}", explained), explained
    assert "\n" not in explained
    assert not is_transient(error)


def test_a_key_that_may_not_be_used_is_no_matter_of_access_keys() -> None:
    error = refused("AccessDenied", 403, "User x is not authorized to perform: kms:Decrypt on this resource")
    explained = str(explain(Store("s3://pictures/set"), error, "a.png"))
    assert "allow them kms:Decrypt and kms:GenerateDataKey of it" in explained
    assert "AWS_ACCESS_KEY_ID" not in explained


class Page(http.server.BaseHTTPRequestHandler):
    """A login page, which answers whatever is asked."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<!DOCTYPE html><html><body>Log in</body></html>")

    def log_message(self, *_: object) -> None:
        pass


def test_a_login_page_is_no_empty_bucket() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        store = Store("s3://pictures/set", f"http://127.0.0.1:{server.server_port}", 1.0)
        with pytest.raises(StorageError, match=r"this is no answer of an S3 store .*: is storage.endpoint right"):
            store.list()
        with pytest.raises(StorageError, match=r"the server there does not speak https: write http:// in storage.endpoint"):
            replace(store, endpoint=f"https://127.0.0.1:{server.server_port}").list()
        server.shutdown()


@pytest.mark.parametrize("endpoint", ["http://", "my store", "http://127.0.0.1:99999"])
def test_an_endpoint_that_is_no_url_is_named(endpoint: str) -> None:
    with pytest.raises(StorageError, match=r"storage.endpoint.* must be a URL such as"):
        Store("s3://pictures/set", endpoint, 1.0).list()

"""A refused batch is halved until the refused items stand alone; faults that may pass are no refusals."""

from collections.abc import Callable, Sequence

import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE, PERMISSION_DENIED, TEMPORARILY_UNAVAILABLE
from mlflow.utils.request_utils import augmented_raise_for_status
from mlflow.utils.rest_utils import verify_rest_response

from pipeline.tracking.delivery import refusal, refused_items


def reply(status: int) -> requests.Response:
    response = requests.Response()
    response.status_code, response._content, response.url = status, b"<h1>a proxy's page</h1>", "http://mlflow/x"
    return response


def error_of(call: Callable[[], object]) -> Exception:
    try:
        call()
    except (MlflowException, requests.HTTPError) as error:
        return error
    raise AssertionError("no error")


@pytest.mark.parametrize("status", [400, 413])
def test_a_request_that_would_be_refused_again_is_a_refusal(status: int) -> None:
    assert refusal(error_of(lambda: verify_rest_response(reply(status), "/api/2.0/mlflow/runs/log-batch")))
    assert refusal(error_of(lambda: augmented_raise_for_status(reply(status))))  # the upload of a picture
    assert refusal(MlflowException("no", BAD_REQUEST)) == "no"
    assert refusal(MlflowException("Invalid\nvalue", INVALID_PARAMETER_VALUE)) == "Invalid"


@pytest.mark.parametrize("status", [401, 403, 404, 408, 429, 500, 502, 503])
def test_a_fault_that_may_pass_is_no_refusal(status: int) -> None:
    assert refusal(error_of(lambda: verify_rest_response(reply(status), "/api/2.0/mlflow/runs/log-batch"))) is None
    assert refusal(error_of(lambda: augmented_raise_for_status(reply(status)))) is None
    assert refusal(MlflowException("busy", TEMPORARILY_UNAVAILABLE)) is None
    assert refusal(MlflowException("may not", PERMISSION_DENIED)) is None
    assert refusal(ConnectionResetError("gone")) is None


def test_all_but_the_refused_items_are_sent_in_few_requests() -> None:
    taken: list[int] = []
    requests_made = []

    def send(items: Sequence[int]) -> None:
        requests_made.append(len(items))
        if {3, 700} & set(items):
            raise MlflowException("odd", INVALID_PARAMETER_VALUE)
        taken.extend(items)

    assert list(refused_items(range(1000), send)) == [(3, "odd"), (700, "odd")]
    assert taken == [item for item in range(1000) if item not in (3, 700)]
    assert len(requests_made) < 42


def test_a_fault_that_may_pass_is_raised() -> None:
    def send(items: Sequence[int]) -> None:
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        list(refused_items([1, 2], send))
    assert list(refused_items([], send)) == []

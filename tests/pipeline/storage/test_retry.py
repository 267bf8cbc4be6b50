"""The pauses and the budget of `retried`, with a simulated clock."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage.retry import Failed, draw_pause_s, retried
from pipeline.storage.s3_errors import is_transient_reply


class Clock:
    """A clock that advances by each sleep, and by `attempt_s` in each attempt; `attempts` lists the jobs of each."""

    def __init__(self, attempt_s: float = 0.0) -> None:
        self.now, self.attempt_s, self.pauses, self.attempts = 0.0, attempt_s, list[float](), list[list[int]]()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)

    def run(self, answers: Callable[[int, int], int | Exception], num_jobs: int = 1, patience_s: float = 10) -> list[int]:
        def attempt(jobs: list[int]) -> list[int | Exception]:
            self.now += self.attempt_s
            self.attempts.append(jobs)
            return [answers(job, len(self.attempts)) for job in jobs]

        return retried(
            num_jobs,
            attempt,
            patience_s=patience_s,
            is_transient=lambda fault: isinstance(fault, TimeoutError),
            on_fault=lambda *_: None,
            clock=lambda: self.now,
            sleep=self.sleep,
            draw=lambda _, high: high,
        )


@given(tries=st.integers(1, 10_000), share=st.floats(0, 1))
def test_a_pause_is_anywhere_between_nothing_and_a_doubling_limit(tries: int, share: float) -> None:
    limit = min(5.0, 0.1 * 2 ** min(tries - 1, 20))
    assert draw_pause_s(tries, lambda low, high: low + share * (high - low)) == pytest.approx(share * limit)


@given(patience_s=st.floats(0, 1000), attempt_s=st.floats(0.01, 30))
def test_the_whole_takes_the_budget_and_one_attempt_at_most(patience_s: float, attempt_s: float) -> None:
    clock = Clock(attempt_s)
    with pytest.raises(Failed) as failed:
        clock.run(lambda *_: TimeoutError(), patience_s=patience_s)
    assert patience_s <= clock.now + 1e-6
    assert clock.now <= patience_s + attempt_s + 1e-6
    assert (failed.value.tries, failed.value.final) == (len(clock.attempts), False)


def test_only_jobs_that_failed_are_tried_again_and_results_keep_their_places() -> None:
    clock = Clock()
    assert clock.run(lambda job, tries: TimeoutError() if job % 2 and tries < 3 else 10 * job, num_jobs=4) == [0, 10, 20, 30]
    assert clock.attempts == [[0, 1, 2, 3], [1, 3], [1, 3]]
    assert clock.pauses == [0.1, 0.2]


def test_a_final_fault_is_raised_at_once_and_names_its_job() -> None:
    clock = Clock()
    with pytest.raises(Failed, match="tried once") as failed:
        clock.run(lambda job, _: [TimeoutError(), PermissionError()][job], num_jobs=2)
    assert (failed.value.job, failed.value.final, clock.pauses) == (1, True, [])
    assert isinstance(failed.value.__cause__, PermissionError)


@pytest.mark.parametrize(
    ("status", "code", "again"),
    [
        (503, "SlowDown", True),
        (500, "InternalError", True),
        (400, "RequestTimeout", True),
        (429, "", True),
        (502, "502", True),
        (501, "NotImplemented", False),
        (403, "RequestTimeTooSkewed", False),
        (403, "SignatureDoesNotMatch", False),
        (404, "NoSuchKey", False),
        (400, "InvalidRequest", False),
    ],
)
def test_which_replies_are_tried_again(status: int, code: str, again: bool) -> None:
    assert is_transient_reply(status, code) is again

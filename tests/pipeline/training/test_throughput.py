"""The seconds of an attempt, with a clock that the test moves: each is in one part, and the parts add up."""

from collections.abc import Iterator

from pipeline.fault_tolerance.goodput import PARTS, Goodput, Stopwatch
from pipeline.training.throughput import Throughput

SPENT = Goodput(stepping=60.0, waiting=10.0, validating=20.0, starting=10.0, steps=30, worker_s=200.0)


class Clock:
    """Seconds that pass when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


def trained(clock: Clock, watch: Stopwatch, steps: int, busy: bool = False) -> Throughput:
    """Steps of 3 s, whose batches arrive after 1 s, with 0.5 s of logging after each."""

    def batches() -> Iterator[int]:
        for step in range(steps):
            clock.passes(1)
            yield step

    throughput = Throughput(50, 8, watch, lambda: busy)
    for _ in throughput.timed(batches()):
        clock.passes(3)
        throughput.step_done()
        clock.passes(0.5)
    return throughput


def seconds(found: Goodput) -> dict[str, float]:
    """The parts that are not 0."""
    return {part: each for part, each in zip(PARTS, found, strict=False) if each}


def test_every_second_is_in_one_part() -> None:
    clock = Clock()
    watch = Stopwatch(2, clock)
    clock.passes(20)
    watch.resume(Goodput(), None)
    with watch.part("validating"):
        clock.passes(7)
    clock.passes(2)
    trained(clock, watch, 4)
    with watch.part("saving"):
        clock.passes(6)
    found = watch.total()
    assert seconds(found) == {"stepping": 12, "waiting": 4, "validating": 7, "saving": 6, "starting": 22, "other": 2}
    assert found.total == clock.now - 1000 == sum(seconds(found).values())
    assert (found.steps, found.worker_s) == (4, 2 * found.total)


def test_a_device_that_still_computes_does_not_wait_for_data() -> None:
    clock = Clock()
    watch = Stopwatch(1, clock)
    trained(clock, watch, 4, busy=True)
    assert seconds(watch.total()) == {"stepping": 16, "other": 2}


def test_the_progress_line_has_the_speed_since_the_line_before() -> None:
    clock = Clock()
    throughput = trained(clock, Stopwatch(1, clock), 4)
    points = {"train/images_per_s": 2.0, "train/data_wait": 0.25}
    assert throughput.flush(4) == (points, "   2.0 images/s  data wait  25%  left 3:04")
    assert throughput.flush(4)[0] == {"train/images_per_s": 0.0, "train/data_wait": 0.0}


def test_an_interrupted_attempt_has_lost_the_time_since_its_checkpoint_and_adds_up() -> None:
    """An attempt whose record is 50 s old when the next one, which took 20 s of them to start, has loaded it."""
    clock = Clock()
    watch = Stopwatch(4, clock)
    clock.passes(20)
    watch.resume(SPENT, 50.0)
    clock.passes(5)
    trained(clock, watch, 2)
    found = watch.total()
    assert seconds(found._replace(starting=0)) == {
        "stepping": 60 + 6, "waiting": 10 + 2, "validating": 20, "lost": 55, "other": 1,
    }  # fmt: skip
    assert found.starting == SPENT.starting, "the start of an attempt that follows an interruption is lost too"
    assert found.total == SPENT.total + 50 + 5 + 2 * 4.5
    assert (found.steps, found.worker_s) == (32, 200 + 4 * (50 + 5 + 2 * 4.5))


def test_clocks_of_nodes_that_differ_lose_no_second() -> None:
    clock = Clock()
    watch = Stopwatch(1, clock)
    clock.passes(20)
    watch.resume(SPENT, -3.0)
    assert watch.total().total == SPENT.total + 20


def test_a_command_that_resumes_has_lost_nothing() -> None:
    clock = Clock()
    watch = Stopwatch(1, clock)
    clock.passes(20)
    watch.resume(SPENT, None)
    assert watch.total()[: len(PARTS)] == SPENT._replace(starting=30.0)[: len(PARTS)]

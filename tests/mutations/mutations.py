"""Ten faults that a careless change could add to the product, each with the test that notices it."""

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
RESUMED = (
    "tests/end_to_end/test_survival.py::"
    "test_a_worker_that_hangs_is_reported_with_its_stacks_and_the_run_ends_with_the_weights_of_an_undisturbed_one"
)
"""Compares the final weights of a run that resumed after a fault with those of an undisturbed run."""


class Mutation(NamedTuple):
    """One change in one file of the product; the file stays valid Python."""

    name: str
    file: str
    old: str
    """Occurs once in the file."""
    new: str
    test: str
    """The pytest node that must fail under it."""

    def applied(self, text: str) -> str:
        """The file's text with the fault in it. Raises ValueError unless the old text occurs once."""
        if (number := text.count(self.old)) != 1:
            raise ValueError(
                f"mutation {self.name}: its old text occurs {number} times in {self.file}: must be once; adapt it in {__file__}"
            )
        return text.replace(self.old, self.new)


MUTATIONS = (
    Mutation(
        # Each epoch ends one position early: one sample is never used.
        name="dropped-sample",
        file="pipeline/loading/sampler.py",
        old="epochs, within = positions // self.num_samples, positions % self.num_samples",
        new="epochs, within = positions // (self.num_samples - 1), positions % (self.num_samples - 1)",
        test="tests/pipeline/loading/test_sampler.py::test_camvid_sees_each_sample_exactly_once_an_epoch",
    ),
    Mutation(
        # The workers' own check of their rows uses the same function, so it notices nothing.
        name="wrong-rank",
        file="pipeline/loading/sampler.py",
        old="first_row, num_rows = share(self.global_batch, rank, workers)",
        new="first_row, num_rows = share(self.global_batch, (rank + 1) % workers, workers)",
        test="tests/pipeline/loading/test_sampler.py::test_ranks_together_hold_the_global_batch",
    ),
    Mutation(
        # An upload that ended before its manifest counts as a checkpoint, whatever its bytes are.
        name="no-manifest",
        file="pipeline/checkpoints/files.py",
        old="""\
        raise Unfinished(f"{store.url(f'{name}/{MANIFEST}')}: missing") from error
""",
        new="""\
        return "", {file: entry_of(_read(store, f"{name}/{file}")) for file in (MODEL, OPTIMIZER, PROGRESS)}
""",
        test="tests/pipeline/checkpoints/test_files_damage.py::"
        "test_a_damaged_checkpoint_is_passed_over_for_the_one_before[no manifest]",
    ),
    Mutation(
        # MLflow drops a repeated point only if its time is also the same.
        name="metric-twice",
        file="pipeline/tracking/metric_log.py",
        old="""\
        if fresh := [point for point in named if point.step not in self._steps[point.key]]:
""",
        new="""\
        if fresh := named:
""",
        test="tests/pipeline/tracking/test_metric_log.py::test_a_gap_left_on_another_machine_is_filled_when_its_records_come",
    ),
    Mutation(
        # Takes a checkpoint's step for the last one done; it is the next one to do.
        name="resume-one-late",
        file="pipeline/training/loop.py",
        old="return learner, chain([first], batches), record",
        new="return learner, batches if first.step else chain([first], batches), record",
        test=RESUMED,
    ),
    Mutation(
        # An ignored pixel becomes one of class 0 that was predicted right.
        name="ignored-pixel",
        file="ccnet/metrics.py",
        old="ids.masked_fill(~where, num_ids)",
        new="ids.masked_fill(~where, 0)",
        test="tests/ccnet/test_metrics.py::test_rows_are_labels_and_columns_predictions",
    ),
    Mutation(
        # The schedule counts the steps of this attempt instead of the run's.
        name="learning-rate-after-resume",
        file="pipeline/training/loop.py",
        old="""\
    for batch in throughput.timed(batches):
        if log and batch.step == 0:
            for name, picture in _pictures_of_the_start(run, batch).items():
                log.picture(name, 0, picture)
            watch.lap()  # drawing is no part of a step
        learning_rate = poly_learning_rate(
            train.learning_rate, batch.step, train.steps, train.power, train.warmup_steps, train.min_lr
        )
""",
        new="""\
    for taken, batch in enumerate(throughput.timed(batches)):
        if log and batch.step == 0:
            for name, picture in _pictures_of_the_start(run, batch).items():
                log.picture(name, 0, picture)
            watch.lap()  # drawing is no part of a step
        learning_rate = poly_learning_rate(
            train.learning_rate, taken, train.steps, train.power, train.warmup_steps, train.min_lr
        )
""",
        test=RESUMED,
    ),
    Mutation(
        # A worker's exception is only printed, so for Ray Train the worker has succeeded.
        name="swallowed-fault",
        file="pipeline/fault_tolerance/failures.py",
        old="raise WorkerFault(classify(error)._replace(where=_where(error), token=uuid.uuid4().hex)) from error",
        new="traceback.print_exception(error)",
        test="tests/pipeline/fault_tolerance/test_failures.py::"
        "test_what_a_worker_sends_names_the_exception_its_cause_and_the_last_line_of_our_own",
    ),
    Mutation(
        name="secret-printed",
        file="pipeline/tracking/client.py",
        old="tracking.uri = {shown}: no MLflow server answers there",
        new="tracking.uri = {uri}: no MLflow server answers there",
        test="tests/pipeline/tracking/test_runs.py::test_password_of_a_database_is_not_printed",
    ),
    Mutation(
        # The stack counts as down when the process that it started has ended, even if children of that process still run.
        name="process-left-over",
        file="infra/processes.py",
        old="left = _living(known)",
        new="left = _living({leader})",
        test="tests/infra/test_processes.py::test_stop_ends_a_child_that_left_the_session",
    ),
)

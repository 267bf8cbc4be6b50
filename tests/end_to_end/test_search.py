"""A search as users run it: one parent run with its children. Killed, stopped and started again, it ends as if undisturbed."""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

import ccnet
from pipeline.config.load import load
from tests.support.tiny_job import ROOT, Command, history, words

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

DIMENSIONS = (
    "train.learning_rate: {log: [0.00001, 0.1]}",
    "data.crop_size: {choice: [41, 49]}",
    "model.recurrence: {grid: [1, 2]}",
)
SEARCH = (
    f"tune.space={{{', '.join(DIMENSIONS)}}}", "tune.trials=2", "tune.evaluate=true", "tune.grace_steps=5", "tune.reduction=4",
    "train.workers=1", "train.warmup_steps=0",
)  # fmt: skip
LONGEST_S = 240.0
"""Longest wait for a line of a search."""


@pytest.fixture(scope="module")
def searched(prepared: str, command: Command) -> subprocess.CompletedProcess[str]:
    """A search that nothing disturbed."""
    done = command("tune", *SEARCH, "name=search")
    assert done.returncode == 0, done.stderr
    return done


def rows(output: str) -> list[list[str]]:
    """The rows of the table of trials, without the seconds."""
    head, *lines = output.partition("\n\n")[0].splitlines()
    place = re.split(r" {2,}", head).index("seconds")
    return [[cell for i, cell in enumerate(re.split(r" {2,}", line.strip())) if i != place] for line in lines]


def page_of(name: str, client: MlflowClient, folder: Path) -> str:
    """The page of a search, as MLflow has it."""
    experiment = client.get_experiment_by_name("tests")
    (parent,) = client.search_runs(
        [experiment.experiment_id], f"tags.`ccnet.run_key` LIKE '{name}-search-%' AND tags.`mlflow.parentRunId` IS NULL"
    )
    return Path(client.download_artifacts(parent.info.run_id, "report.html", str(folder))).read_text()


class Driver:
    """A search under way, in a process of its own."""

    def __init__(self, folder: Path, stack: dict[str, str], name: str, *overrides: str) -> None:
        self.log, self.out = folder / f"{name}.err", folder / f"{name}.out"
        with self.log.open("w") as log, self.out.open("w") as out:
            environment = os.environ | stack | {"PYTHONUNBUFFERED": "1"}
            line = words("tune", *(overrides or (*SEARCH, "name=killed")))
            self.process = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=out, stderr=log)

    def wait_for(self, text: str) -> None:
        """Waits for a line of the log."""
        deadline = time.monotonic() + LONGEST_S
        while text not in (log := self.log.read_text()):
            assert self.process.poll() is None, f"ended before {text!r}:\n{log}"
            assert time.monotonic() < deadline, f"no {text!r}:\n{log}"
            time.sleep(0.2)

    def end(self) -> int:
        return self.process.wait(LONGEST_S)


def process_of(stack: dict[str, str], *titles: str) -> psutil.Process:
    """A process of the stack's cluster with one of these titles. Raises AssertionError if there is none."""
    for process in psutil.process_iter(["cmdline"]):
        if " ".join(process.info["cmdline"] or ()).startswith(titles):
            parent = process.parent()
            if parent and f"--gcs-address={stack['RAY_ADDRESS']}" in parent.cmdline():
                return process
    raise AssertionError(f"no process {titles}")


def test_a_search_is_one_parent_with_its_children(
    searched: subprocess.CompletedProcess[str], command: Command, client: MlflowClient, stack: dict[str, str], tmp_path: Path
) -> None:
    done = searched
    experiment = client.get_experiment_by_name("tests")
    (parent,) = client.search_runs(
        [experiment.experiment_id], "tags.`ccnet.run_key` LIKE 'search-search-%' AND tags.`mlflow.parentRunId` IS NULL"
    )
    children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert sorted(child.data.params["model.recurrence"] for child in children) == ["1", "1", "2", "2"]
    assert {child.data.params["train.threads"] for child in children} == {"1"}, "two at a time on two cores"
    assert {run.inputs.dataset_inputs[0].dataset.name for run in [parent, *children]} == {"tiny"}
    assert {run.data.tags["mlflow.source.name"] for run in [parent, *children]} == {"jobs/tune.py"}
    assert re.search(r" 0\.\d{4} to 0\.\d{4} .*", done.stdout), "no trial was evaluated"
    assert {child.info.status for child in children} == {"FINISHED"}
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["ccnet.checkpoint_url"]
    assert re.search(r"Best mIoU \*\*0\.\d{4}\*\*.*train\.learning_rate", parent.data.tags["mlflow.note.content"], re.DOTALL)
    assert parent.data.metrics["search/trials"] == 4
    assert parent.data.metrics["search/saved_steps"] > 0
    winner_yaml = load(client.download_artifacts(parent.info.run_id, "winner.yaml", str(tmp_path)))
    assert all("ccnet.checkpoint_url" in child.data.tags for child in children)
    reasons = [child.data.tags["ccnet.stop_reason"] for child in children if "ccnet.stop_reason" in child.data.tags]
    assert len(reasons) == 3
    assert all(re.fullmatch(r"mIoU 0\.\d{4} at step 5: not among the best 1 of 4", reason) for reason in reasons)
    assert "reproduce the best: " in done.stdout
    assert "\ntrain.threads=1 train.learning_rate=" in done.stdout
    address = re.search(r"^model +(s3://\S+)$", done.stdout, re.MULTILINE)
    assert address
    assert parent.data.tags["ccnet.model_url"] == address[1]
    assert re.search(r"^report +s3://\S+/report.html$", done.stdout, re.MULTILINE)
    page = page_of("search", client, tmp_path)
    assert page.count("<img ") == 2
    assert all(text in page for text in ("the best of 4</h1>", "<td>stopped early</td>", "interval over images", address[1]))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stack.items():
            patch.setenv(name, value)
        model = ccnet.load(address[1], device="cpu")
    winner = parent.data.tags["ccnet.checkpoint_sha256"]
    best = next(child for child in children if child.data.tags.get("ccnet.checkpoint_sha256") == winner)
    assert model.net.head.recurrence == int(best.data.params["model.recurrence"]) == winner_yaml.model.recurrence
    assert parent.data.tags["best.model.recurrence"] == best.data.params["model.recurrence"]
    assert str(winner_yaml.train.learning_rate) == best.data.params["train.learning_rate"]
    assert re.search(r"^the search takes about \d+ (s|min) more$", done.stderr, re.MULTILINE)
    exported = command(f"tune --export {tmp_path / 'study.db'}", *SEARCH, "name=search")
    assert exported.stdout.startswith(f"{tmp_path / 'study.db'}: 4 trials; look at them: "), exported.stderr
    versions = client.search_model_versions(f"run_id = '{best.info.run_id}'")
    assert [version.tags["ccnet.checkpoint_sha256"] for version in versions] == [winner], "registered under the winner's own run"


def test_a_search_that_is_killed_and_stopped_ends_like_an_undisturbed_one(
    searched: subprocess.CompletedProcess[str], command: Command, client: MlflowClient, stack: dict[str, str], tmp_path: Path
) -> None:
    driver = Driver(tmp_path, stack, "first")
    driver.wait_for("step 1/20")
    driver.process.send_signal(signal.SIGSTOP)  # so that the search gets no further on a slow machine
    for verb in ("tune", "sync"):
        second = command(verb, *SEARCH, "name=killed")
        assert second.returncode == 1
        assert f"in use by process {driver.process.pid} " in second.stderr
    driver.process.kill()
    driver.end()
    synced = command("sync", *SEARCH, "name=killed")
    assert synced.returncode == 0, synced.stderr
    assert re.search(r"^trial \d+ .*RUNNING -> KILLED$", synced.stdout, re.MULTILINE), synced.stdout
    assert re.search(r"^status +RUNNING -> KILLED$", synced.stdout, re.MULTILINE), synced.stdout

    driver = Driver(tmp_path, stack, "second")
    driver.wait_for("1 worker, first batch")
    process_of(stack, "ray::ResourceTrainable").kill()
    driver.wait_for("  failed and is tried again (1 of 3): the process of the trial died")
    driver.wait_for("trial 0002  from step 0 to 5")
    driver.process.send_signal(signal.SIGTERM)
    assert driver.end() == 143
    stopped = driver.out.read_text()
    assert re.search(r"^ended early +stopped on request; run the same command to resume$", stopped, re.MULTILINE)
    assert re.search(r"^model +s3://", stopped, re.MULTILINE), "the best so far is not delivered"
    assert "The search ended early: stopped on request" in page_of("killed", client, tmp_path)

    done = command("tune", *SEARCH, "name=killed")
    assert done.returncode == 0, done.stderr
    assert rows(done.stdout) == rows(searched.stdout)
    assert "ended early" not in page_of("killed", client, tmp_path), "the end replaces the page"
    experiment = client.get_experiment_by_name("tests")
    runs = client.search_runs([experiment.experiment_id], "tags.`ccnet.run_key` LIKE 'killed-search-%'")
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 5, "the search and its four trials"
    for run in runs:
        if "mlflow.parentRunId" in run.data.tags:
            assert set(history(client, run, "val/miou")) in ({5}, {5, 10, 15, 20})
    again = command("tune", *SEARCH, "name=killed")
    assert (again.returncode, rows(again.stdout)) == (0, rows(done.stdout))
    assert "from step" not in again.stderr, "a trial was repeated"


def test_trials_of_several_workers_survive_a_killed_worker_and_controller(
    prepared: str, command: Command, client: MlflowClient, stack: dict[str, str], tmp_path: Path
) -> None:
    """With several workers, a trial has a controller and workers of its own. Their deaths cost no trial, no point, no actor."""
    line = ("tune.space={model.recurrence: {choice: [1]}}", "tune.trials=1", "tune.grace_steps=20", "train.workers=2",
            "train.warmup_steps=0")  # fmt: skip
    driver = Driver(tmp_path, stack, "pair", *line, "name=pair")
    for title, text in (("ray::RayTrainWorker", "step 6/20"), ("ray::TrainController", "step 11/20")):
        driver.wait_for(text)
        process_of(stack, title).kill()
    assert driver.end() == 0, driver.log.read_text()
    assert "failed" not in driver.out.read_text()
    done = command("train", *line[3:], "model.recurrence=1", "name=undisturbed")
    assert done.returncode == 0, done.stderr
    experiment = client.get_experiment_by_name("tests")
    (run,) = client.search_runs([experiment.experiment_id], "tags.`ccnet.run_key` LIKE 'undisturbed-%'")
    (trial,) = client.search_runs([experiment.experiment_id], "tags.`ccnet.run_key` LIKE 'pair-search-%-0000'")
    assert trial.info.status == "FINISHED"
    assert history(client, trial, "val/miou") == history(client, run, "val/miou")
    assert len(history(client, trial, "train/loss")) == 20
    with pytest.raises(AssertionError, match="no process"):
        process_of(stack, "ray::PlacementGroupCleaner", "ray::TrainController", "ray::RayTrainWorker", "ray::ResourceTrainable")


def test_the_overrides_of_the_best_trial_reproduce_it(
    searched: subprocess.CompletedProcess[str], command: Command, client: MlflowClient
) -> None:
    lines = searched.stdout.splitlines()
    overrides = shlex.split(lines[lines.index("reproduce the best: add to the search's configuration and overrides") + 1])
    done = command("train", *SEARCH, *overrides, "name=reproduced")
    assert done.returncode == 0, done.stderr
    experiment = client.get_experiment_by_name("tests")
    (run,) = client.search_runs([experiment.experiment_id], "tags.`ccnet.run_key` LIKE 'reproduced-%'")
    best = next(row for row in rows(searched.stdout) if "complete" in row)[0]
    (trial,) = client.search_runs(
        [experiment.experiment_id], f"tags.`ccnet.run_key` LIKE 'search-search-%-{best}' AND tags.`mlflow.parentRunId` != ''"
    )
    found = history(client, trial, "val/miou")
    assert len(found) == 4
    assert history(client, run, "val/miou") == found

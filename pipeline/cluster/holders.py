"""Who holds the CPUs and GPUs of the cluster, for the line of one who waits for them."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import ray

from pipeline.formatting import resources

WORDS = 4
"""Words of a command that are shown, such as `python -m jobs.train CONFIG.yaml`; settings may follow, with secrets among them."""
MOST = 1000
"""Actors, tasks and groups that are looked at."""
PLACED = {"ALIVE", "CREATED", "RUNNING"}
"""States of an actor, a placement group and a task that hold their resources."""


class Holder(NamedTuple):
    """A job that holds CPUs or GPUs."""

    job: str
    """Its submission id and its command, as far as they are known."""
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.job}: {resources(self.cpus, self.gpus)}"


def holders() -> list[Holder]:
    """The jobs that hold CPUs or GPUs now, the largest first; empty if the cluster does not tell its state."""
    from ray.util import state

    options: dict[str, Any] = {"detail": True, "limit": MOST, "raise_on_missing_output": False}
    try:
        groups: list[Any] = state.list_placement_groups(**options)
        actors: list[Any] = state.list_actors(**options)
        tasks: list[Any] = state.list_tasks(filters=[("state", "=", "RUNNING")], **options)
        names = {job.job_id: named(job.submission_id, job.entrypoint) for job in state.list_jobs(detail=True)}
    except Exception:  # whatever its server answers: a line that tells less is better than a search that ends
        return []
    placed = [group for group in groups if group.state in PLACED]
    held = [(group.creator_job_id, bundle["unit_resources"]) for group in placed for bundle in group.bundles]
    # What is in a placement group takes from what the group holds.
    held += [
        (each.job_id, each.required_resources or {})
        for each in (*actors, *tasks)
        if each.state in PLACED and not each.placement_group_id
    ]
    return summed(held, names | {ray.get_runtime_context().get_job_id(): "this job"})


def summed(held: Iterable[tuple[str, Mapping[str, float]]], names: Mapping[str | None, str]) -> list[Holder]:
    """One holder for each job. `held`: job, resources; `names`: job -> how it is called."""
    found: dict[str, Holder] = {}
    for job, has in held:
        before = found.get(job, Holder(names.get(job, f"job {job}"), 0, 0))
        found[job] = Holder(before.job, before.cpus + has.get("CPU", 0), before.gpus + has.get("GPU", 0))
    holding = [holder for holder in found.values() if holder.cpus or holder.gpus]
    return sorted(holding, key=lambda holder: (-holder.gpus, -holder.cpus, holder.job))


def named(submission_id: str | None, command: str) -> str:
    """How a job is called."""
    words = command.split()
    shown = " ".join(words[:WORDS]) + (" ..." if len(words) > WORDS else "")
    return f"{submission_id} ({shown})" if submission_id else shown

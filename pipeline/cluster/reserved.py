"""The CPUs and GPUs that Ray Train reserves for the workers of a run: named, so that those of a dead controller can be freed.

Ray Train's own cleaner knows of them once all workers have started. Those of a controller that dies before stay reserved until
the job ends (Ray 2.60), and the next one waits if there are no others. The controller's process imports this module.
"""

import uuid
from functools import partial
from typing import Any, cast

from ray._raylet import PlacementGroupID
from ray.train.v2._internal.execution import worker_group
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group


class NamedResources(WorkerGroupCallback):
    """Gives the run's name to what a controller reserves for its workers."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """Runs in the controller's process, which belongs to this run alone."""
        cast(Any, worker_group.worker_group).placement_group = partial(placement_group, name=f"{self.run_id}-{uuid.uuid4().hex}")


def free_resources(run_id: str) -> None:
    """Frees what dead controllers of a run have reserved. Call it while none of them lives."""
    for number, group in placement_group_table().items():
        if group["name"].startswith(f"{run_id}-") and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(number))))

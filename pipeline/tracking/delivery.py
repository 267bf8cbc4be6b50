"""Sends metric points and pictures to MLflow. What it refuses does not hold up the rest."""

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pipeline.errors import TrackingError
from pipeline.tracking.client import deleted

if TYPE_CHECKING:
    from mlflow import MlflowClient

SYSTEM = "system/"
"""Begins the names of a node's load, whose steps are times."""
BATCH = 1000
"""Largest number of points in one request: the server's limit."""
REFUSALS = {400, 413, 414, 422}
"""HTTP statuses of a request that would be refused again: not valid, or too large for the server or a proxy before it."""
T = TypeVar("T")


class Point(NamedTuple):
    key: str
    value: float
    timestamp: int
    """Milliseconds since 1970. Part of a point's identity in MLflow, so it stays the same when the point is sent again."""
    step: int


def refusal(error: Exception) -> str | None:
    """Why MLflow refuses a request for good, in one line; None for a fault that may pass, as of the network or the database."""
    status = getattr(getattr(error, "response", None), "status_code", None)  # of an artifact's upload
    if status is None and hasattr(error, "get_http_status_code"):
        # MLflow turns statuses that it does not know into 500, and names them in the message only.
        found = re.search(r"failed with error code (\d{3})", str(error))
        status = int(found.group(1)) if found else error.get_http_status_code()
    return (str(error).splitlines() or [type(error).__name__])[0][:300] if status in REFUSALS else None


def refused_items(items: Sequence[T], send: Callable[[Sequence[T]], None]) -> Iterator[tuple[T, str]]:
    """Sends all items and yields the refused ones, each with the reason: a refused batch is halved until single items are left.

    Raises what `send` raises if it is no refusal.
    """
    if not items:
        return
    try:
        send(items)
    except Exception as error:
        reason = refusal(error)
        if reason is None:
            raise
        if len(items) == 1:
            yield items[0], reason
            return
        middle = len(items) // 2
        yield from refused_items(items[:middle], send)
        yield from refused_items(items[middle:], send)


def check_active(client: "MlflowClient", run_id: str) -> None:
    """Raises TrackingError if the run was deleted, because MLflow then refuses every point of it."""
    from mlflow.exceptions import MlflowException

    try:
        gone = client.get_run(run_id).info.lifecycle_stage != "active"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        gone = True
    if gone:
        raise TrackingError(deleted(run_id))


def logged_steps(client: "MlflowClient", run_id: str) -> dict[str, set[int]]:
    """Steps that the server already has, by metric."""
    keys = client.get_run(run_id).data.metrics
    return {key: {point.step for point in client.get_metric_history(run_id, key)} for key in keys}


def send_points(client: "MlflowClient", run_id: str, points: Sequence[Point]) -> None:
    """Sends at most 1000 points in one request. Sending the same points again changes nothing."""
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(*point) for point in points])


def send_picture(client: "MlflowClient", run_id: str, name: str, png: bytes, step: int | None = None) -> None:
    """Sends a picture as `<name>/step_000100.png`, if its step is given, and as `<name>.png`, the latest.

    Sending it again replaces it.

    MlflowClient.log_image is not used: its file names have a random part, so a picture that is sent again would appear twice,
    and MLflow's page of charts covers such pictures with the text of a run's many parameters.
    """
    with tempfile.TemporaryDirectory() as folder:
        of_step = [] if step is None else [Path(name, f"step_{step:06d}.png")]
        for path in (*of_step, Path(f"{name}.png")):
            file = Path(folder, path.name)
            file.write_bytes(png)
            client.log_artifact(run_id, str(file), str(path.parent) if path.parent != Path() else None)


def missing_pictures(client: "MlflowClient", run_id: str, names: Iterable[str]) -> list[str]:
    """Those of the names of which the server does not show the latest picture."""
    names = list(names)
    folders = {str(Path(name).parent) for name in names}
    shown = {file.path for folder in folders for file in client.list_artifacts(run_id, None if folder == "." else folder)}
    return [name for name in names if f"{name}.png" not in shown]


def copy_points(client: "MlflowClient", source: str, run_id: str, last_step: int) -> int:
    """Copies the metric points of a run, also a deleted one, up to a step; returns their number. Repeating changes nothing.

    The load of its nodes is copied whole.
    """
    number = 0
    for key in client.get_run(source).data.metrics:
        whole = key.startswith(SYSTEM)
        history = [point for point in client.get_metric_history(source, key) if whole or point.step <= last_step]
        points = [Point(point.key, point.value, point.timestamp, point.step) for point in history]
        for start in range(0, len(points), BATCH):
            send_points(client, run_id, points[start : start + BATCH])
        number += len(points)
    return number

"""Local folders and files that other nodes of a cluster use as well: whether every node sees the same ones.

A folder on the disk of one node would pass every other check: training would store its checkpoints on whatever node rank 0 runs,
and the driver would never find them.
"""

import hashlib
import logging
import os
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster import connect
from pipeline.config.config import Config
from pipeline.errors import ConfigError

logger = logging.getLogger(__name__)

ANSWER_S = 120.0
"""Longest wait for the nodes. A node may first have to start a process and to copy the job's folder."""
MOUNT = "mount the same folder on every node, or use s3://BUCKET/PREFIX"


class Place(NamedTuple):
    """A setting that names a local folder or file, or an address that is the same for every node."""

    setting: str
    path: str
    written: bool = False
    """It is a folder to write to: a marker is written and looked for. What is only read is compared and left as it is."""
    fix: str = MOUNT


def of_data(config: Config) -> list[Place]:
    """Where the prepared data set and everything that is stored lie."""
    source = config.data.source
    in_place = [Place("data.source", source)] if source and not config.data.packed else []
    return [Place("storage.path", config.storage.path, written=True), *in_place]


def of_predictions(config: Config) -> list[Place]:
    """What predictions read and write besides."""
    images, output = config.predict.images, config.predict.output
    read = [Place("predict.images", images)] if images else []
    return [*read, *([Place("predict.output", output, written=True)] if output else [])]


def refuse(places: Iterable[Place]) -> None:
    """Joins the cluster if there is one. Raises ConfigError with a line for each place that is not the same on every node."""
    if not connect.joined():
        return
    connect.join()
    if found := not_shared(places):
        raise ConfigError([f"{what}: {place.fix}" for place, what in found])


def not_shared(places: Iterable[Place]) -> list[tuple[Place, str]]:
    """(place, what is wrong) for each local place that some node of the joined cluster sees in another way than this process.

    Costs nothing on a cluster of one node. Nodes without CPUs run nothing of ours and are not asked.
    """
    here, local = ray.get_runtime_context().get_node_id(), [place for place in places if "://" not in place.path]
    others = {node["NodeID"]: _name(node) for node in ray.nodes()
              if node["Alive"] and node["NodeID"] != here and node["Resources"].get("CPU")}  # fmt: skip
    if not others or not local:
        return []
    name = f".shared-{uuid.uuid4().hex}"
    for place in local:
        if place.written:
            with suppress(OSError):  # a folder that cannot be written has its own check
                Path(place.path).mkdir(parents=True, exist_ok=True)
                Path(place.path, name).write_text(name)
    try:
        paths = [f"{place.path}/{name}" if place.written else place.path for place in local]
        before, asked = seen(paths), _ask(others, paths)
        own = list(zip(before, seen(paths), strict=True))  # twice, because files may arrive meanwhile
        found = []
        for number, place in enumerate(local):
            differing = [others[node] for node, answer in asked.items() if answer[number] not in own[number]]
            if all(own[number]) and differing:
                found.append((place, f"{place.setting} = {place.path}: not the same on node {', '.join(differing)} as here"))
        return found
    finally:
        for place in local:
            if place.written:
                with suppress(OSError):
                    Path(place.path, name).unlink()


def seen(paths: list[str]) -> list[str]:
    """What lies at each path, as texts to compare: the size of a file, a hash of the names in a folder, nothing."""
    return [_seen(path) for path in paths]


def _seen(path: str) -> str:
    try:
        if os.path.isdir(path):
            return f"folder {hashlib.sha256(os.fsencode(chr(0).join(sorted(os.listdir(path))))).hexdigest()}"
        return f"file of {os.path.getsize(path)} bytes"
    except OSError:
        return ""


def _ask(nodes: dict[str, str], paths: list[str]) -> dict[str, list[str]]:
    """Node id -> what the node sees. A node that cannot answer is left out with a warning."""
    task: Any = ray.remote(num_cpus=0, max_retries=0)(seen)
    asked = {
        node: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(paths) for node in nodes
    }
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_S)
    answers = {}
    for node, reference in asked.items():
        try:
            answers[node] = ray.get(reference, timeout=0)
        except ray.exceptions.RayError as error:
            logger.warning("node %s: its folders could not be looked at (%s)", nodes[node], str(error).splitlines()[0])
    return answers


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"

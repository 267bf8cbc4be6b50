"""Joins a Ray cluster or starts one on this machine. The driver and every worker get the same environment variables."""

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import ray
from ray._private.utils import get_num_cpus  # respects the CPU limits of containers

from pipeline import ENVIRONMENT, OBJECT_STORE_BYTES, SINGLE_NODE
from pipeline.errors import ClusterError

logger = logging.getLogger(__name__)

REACH_S = 30.0
"""Seconds within which the cluster of RAY_ADDRESS must accept a connection; Ray itself tries for over five minutes."""


def join(num_cpus: int | None = None) -> None:
    """Joins the cluster of RAY_ADDRESS, or starts one on this machine's loopback; does nothing if already connected.

    `num_cpus` is the number of CPUs of a cluster started here. Workers inherit `pipeline.ENVIRONMENT`. Raises ClusterError if the
    cluster of RAY_ADDRESS is not there.
    """
    if ray.is_initialized():
        return
    options: dict[str, Any] = {"logging_level": logging.WARNING}
    if address := os.environ.get("RAY_ADDRESS"):
        _reach(address)
        options["runtime_env"] = {"env_vars": {k: os.environ[k] for k in ENVIRONMENT}}
    else:
        for key, value in SINGLE_NODE.items():
            os.environ.setdefault(key, value)
        # No runtime environment, because the processes inherit this one's variables, and each would need another Python process
        # to set it up. The dashboard also serves the state API, by which Ray Train frees the resources of a killed run.
        options |= {
            "address": "local",
            "include_dashboard": True,
            "num_cpus": num_cpus,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    own_token = "address" in options and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)
    if own_token:  # otherwise Ray writes a token into the home folder, which everybody can read
        os.environ["RAY_AUTH_TOKEN"] = _own_token()
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # Ray's handler would end this process without a word
        if own_token:  # the cluster has it now; this process may connect to another cluster later
            del os.environ["RAY_AUTH_TOKEN"]
    resources = ray.cluster_resources()
    logger.info("Ray %s with %g CPUs and %g GPUs", ray.__version__, resources.get("CPU", 0), resources.get("GPU", 0))


def _reach(address: str) -> None:
    """Raises ClusterError unless something listens at `HOST:PORT`. Other forms, such as `auto`, are left to Ray."""
    fix = "start the cluster there, correct RAY_ADDRESS, or unset it to start one on this machine"
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"RAY_ADDRESS = {address}: is the address for jobs.submit (RAY_API_SERVER_ADDRESS): set HOST:6379 instead"
        )
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "://" in address:
        return
    deadline = time.monotonic() + REACH_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=max(0.1, deadline - time.monotonic())).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() >= deadline - 1:
                raise ClusterError(
                    f"RAY_ADDRESS = {address}: no cluster answers within {REACH_S:g} s ({error}): {fix}"
                ) from error
            time.sleep(1)


@contextmanager
def address_in_environment() -> Iterator[None]:
    """Sets RAY_ADDRESS to the joined cluster, so that Ray looks nothing up in another cluster on this machine."""
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAY_ADDRESS"]
        else:
            os.environ["RAY_ADDRESS"] = before


@cache
def _own_token() -> str:
    """One token for all clusters that this process starts: Ray reads it once and would send the first one to the next cluster."""
    return secrets.token_hex(32)


def joined() -> bool:
    """Whether this process is connected to a cluster, or RAY_ADDRESS names one to connect to."""
    return ray.is_initialized() or bool(os.environ.get("RAY_ADDRESS"))


def resources() -> dict[str, float]:
    """CPU, GPU and object_store_memory (bytes) of the cluster, or of the one that `join` would start if there is none."""
    if joined():
        join()
        found: dict[str, float] = ray.cluster_resources()
        return found
    import torch  # like Ray, it counts only the GPUs in CUDA_VISIBLE_DEVICES

    gpus = {"GPU": float(torch.cuda.device_count())} if torch.cuda.is_available() else {}
    return {"CPU": float(get_num_cpus()), "object_store_memory": OBJECT_STORE_BYTES} | gpus


def gpus_for(num_workers: int) -> bool:
    """Whether the cluster has a GPU for each of `num_workers` workers; otherwise all of them run on CPUs."""
    gpus = ray.cluster_resources().get("GPU", 0)
    if 0 < gpus < num_workers:
        logger.warning(
            "%d workers but only %g GPUs: all run on CPUs; set train.workers=%d to use the GPUs", num_workers, gpus, gpus
        )
    return bool(gpus >= num_workers)

"""Starts the service on a cluster, or on this machine alone, and stays until it is stopped."""

import hashlib
import ipaddress
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config.base import Tracking
from pipeline.delivery.predictor import load
from pipeline.errors import ClusterError, ConfigError
from pipeline.formatting import resources
from pipeline.serving import guard
from pipeline.tracking.client import tracking_uri

logger = logging.getLogger(__name__)

TOKEN = "CCNET_SERVE_TOKEN"
"""Environment variable of the token that clients must send."""
APPLICATION, CONTROLLER = "ccnet", "SERVE_CONTROLLER_ACTOR"
LOOK_S, SAY_S = 2.0, 10.0
"""Seconds between two looks at the service, and between two lines of one that waits for its CPUs or GPUs."""
TIMEOUT_S = 60.0
"""Longest time from a request to its answer, the wait among it."""


class Options(NamedTuple):
    """How a model is served."""

    model: str
    """What `ccnet.load` takes."""
    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    """Copies of the model: each has a GPU if there are enough, else its share of the CPUs."""
    max_bytes: int = guard.LARGEST_BODY
    max_pixels: int = guard.LARGEST_IMAGE
    open: bool = False
    """Whether other machines may ask without a token."""


@contextmanager
def serving(options: Options) -> Iterator[str]:
    """Serves the model until the block ends; gives the address of the service.

    Joins the cluster of RAY_ADDRESS or starts one on this machine. Raises ConfigError, ModelError, TrackingError, and
    ClusterError if the service does not start.
    """
    token = os.environ.get(TOKEN)
    _check(options, token)
    load(options.model, "cpu")  # what is wrong with it is said before anything starts
    doors = {guard.MAX_BYTES: str(options.max_bytes)}
    doors |= {guard.TOKEN_SHA256: hashlib.sha256(token.encode()).hexdigest()} if token else {}
    # For Serve's proxy. On a cluster that runs already it does not see them: there the replicas alone have the guard.
    os.environ.update(doors | {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{guard.__name__}.{guard.middlewares.__name__}"})
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")  # a line for each request; Serve's log files have it
    serve = _ray_serve()
    import ray

    from pipeline.cluster import connect
    from pipeline.serving.service import Segmentation

    others = connect.joined()
    connect.join()
    if any(actor["name"] == CONTROLLER for actor in ray.util.list_named_actors(all_namespaces=True)):
        raise ClusterError(
            "Ray Serve runs on this cluster already: add this service to it, with the import path "
            "pipeline.serving.service:application and args {model: ...} in the file of `serve deploy`"
        )
    cpus, gpus = _share(options.replicas)
    actor = {"num_gpus": gpus, "num_cpus": cpus, "runtime_env": {"env_vars": doors}}
    address = str(Path(options.model).resolve()) if Path(options.model).is_dir() else options.model
    application = Segmentation.options(num_replicas=options.replicas, ray_actor_options=actor).bind(  # type: ignore[attr-defined]
        address, options.max_pixels, tracking_uri(Tracking())
    )
    serve.start(http_options={"host": options.host, "port": options.port, "request_timeout_s": TIMEOUT_S})
    try:
        serve.run_many([serve.RunTarget(application, APPLICATION)], wait_for_applications_running=False)
        _wait_until_running(serve, f"{options.replicas} x {resources(cpus, gpus)}")
        logger.info("%d replica%s with %s", options.replicas, "s" if options.replicas > 1 else "", resources(cpus, gpus))
        yield f"http://{options.host}:{options.port}"
    finally:
        if ray.is_initialized():
            serve.delete(APPLICATION)  # its replicas answer what they have begun
            if others:
                serve.shutdown()


def wait() -> None:
    """Returns when the service is stopped from outside, as by `serve shutdown`. Serve itself replaces replicas that fail."""
    serve = _ray_serve()
    while APPLICATION in serve.status().applications:
        time.sleep(LOOK_S)


def metrics_urls() -> list[str]:
    """Where Prometheus finds the figures of each node."""
    import ray

    return [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in ray.nodes() if node["Alive"]]


def _check(options: Options, token: str | None) -> None:
    """Raises ConfigError for what would fail, or would let anybody in."""
    try:
        loopback = ipaddress.ip_address(options.host).is_loopback
    except ValueError:
        loopback = options.host == "localhost"
    if not (loopback or token or options.open):
        answer = f"--host {options.host}: other machines could use the service: set {TOKEN} to a secret that they send"
        raise ConfigError([f"{answer}, or add --open"])
    if options.port > 65535:
        raise ConfigError([f"--port {options.port}: must be at most 65535"])
    try:
        with socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((options.host, options.port))
    except OSError as error:
        raise ConfigError(
            [f"--host {options.host} --port {options.port}: {error.strerror or error}: choose another --port"]
        ) from error


def _ray_serve() -> Any:
    try:
        from ray import serve
    except ImportError as error:
        raise ClusterError("Ray Serve is not installed: `make install` adds it, or pip install -e '.[serve]'") from error
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    return serve


def _share(replicas: int) -> tuple[int, int]:
    """CPUs and GPUs of a replica. Raises ConfigError if some replicas would have a GPU and others none."""
    import ray

    gpus = ray.cluster_resources().get("GPU", 0)
    if gpus >= replicas:
        return 1, 1
    if gpus:
        raise ConfigError([f"--replicas {replicas}: the cluster has {gpus:g} GPUs: ask for as many at most"])
    nodes = [node["Resources"]["CPU"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    return max(1, int(min(nodes, default=1) // replicas)), 0


def _wait_until_running(serve: Any, wanted: str) -> None:
    """Waits for the replicas, and says who holds the CPUs and GPUs that they need. Raises ClusterError if they fail."""
    from pipeline.cluster.holders import holders

    said = time.monotonic()
    while (found := serve.status().applications[APPLICATION]).status != "RUNNING":
        if found.status == "DEPLOY_FAILED":
            reasons = [found.message, *(each.message for each in found.deployments.values())]
            raise ClusterError(f"the service did not start: {' '.join(' '.join(reasons).split())}")
        if time.monotonic() - said > SAY_S:
            said = time.monotonic()
            logger.info("waiting for %s; held: %s", wanted, "; ".join(map(str, holders())) or "nothing that is known")
        time.sleep(0.2)

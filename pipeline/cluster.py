"""Joins a Ray cluster or starts one on this machine, with one environment for the driver and every worker."""

import logging
import os

import ray

logger = logging.getLogger(__name__)

ENVIRONMENT = {
    # Without these two, pyarrow's and boto's chunked uploads vanish on stores that answer 411 to them.
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    # ray.train.report() waits for the controller's next poll: 2 s by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # The patched print shows every line of a worker twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "PYTHONWARNINGS": "ignore",
}

# Ray binds all interfaces unless it takes the machine for a laptop: a cluster of one machine stays on loopback.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

OBJECT_STORE_BYTES = 600 * 2**20


def connect(num_cpus: int | None = None) -> None:
    """Joins the cluster of RAY_ADDRESS, or starts one on this machine's loopback; nothing when already connected.

    `num_cpus` bounds a cluster started here. Workers inherit `ENVIRONMENT`.
    """
    if ray.is_initialized():
        return
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    forwarded = {key: os.environ[key] for key in ENVIRONMENT}
    options: dict[str, object] = {"log_to_driver": True, "logging_level": logging.WARNING, "runtime_env": {"env_vars": forwarded}}
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.update(LOOPBACK)
        options |= {"include_dashboard": False, "num_cpus": num_cpus, "object_store_memory": OBJECT_STORE_BYTES}
    ray.init(**options)
    logger.info("Ray %s with %s", ray.__version__, {k: v for k, v in ray.cluster_resources().items() if k in ("CPU", "GPU")})

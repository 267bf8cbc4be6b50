"""The training pipeline: the only package that uses Ray, MLflow, object storage and OpenCV.

Importing it sets environment variables and the threshold of the garbage collector. Ray, pyarrow and botocore read their variables
when they are first imported, so these are set here, before any of them. Variables that the user has set are kept.
"""

import gc
import os

CHECKSUMS = {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required"}
"""Without these two, pyarrow and botocore send trailing checksums, which some stores answer with 411. pyarrow.fs.copy_files then
returns normally but stores nothing, so checkpoints would be lost without an error."""
ENVIRONMENT = CHECKSUMS | {
    # ray.train.report() waits for the controller's next poll, by default up to 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Ray Train's patched print shows every line of a worker twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_COLOR_PREFIX": "0",
    # Lines that differ only in their numbers are shown once; those of trials at the same time do so.
    "RAY_DEDUP_LOGS_ALLOW_REGEX": r"^trial \d",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Processes that reserve no GPU keep the CUDA_VISIBLE_DEVICES of their node.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Libraries' deprecation warnings about each other would hide the progress lines.
    "PYTHONWARNINGS": "ignore",
}
"""Environment variables of the driver and every worker; the user can override each of them."""

# Keeps a cluster of one machine on 127.0.0.1; by default Ray binds all interfaces (decision 10).
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

# For a cluster that is this one machine: its only node cannot be preempted, so no process needs to watch for that.
SINGLE_NODE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}

for _key, _value in (ENVIRONMENT | ({} if os.environ.get("RAY_ADDRESS") else LOOPBACK)).items():
    os.environ.setdefault(_key, _value)

# Imports leave no garbage. By default Python collects it after every 700 new objects: an eighth of the CPU time of all imports.
gc.set_threshold(50_000)
OBJECT_STORE_BYTES = 600 * 2**20
"""Size of Ray's object store on a cluster that this project starts."""


def own_cores() -> int:
    """CPU cores that this process may use; on macOS, which has no affinity, all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""The training pipeline: the only place that knows Ray, MLflow, object storage and OpenCV.

Ray, pyarrow and botocore read their environment when first imported, so it is set here, before any of them; what the user
has set stays. So is how often Python looks for garbage, which most of a start's imports would pay for.
"""

import gc
import os

ENVIRONMENT = {
    # Without these two, chunked uploads vanish without an error on stores that answer 411 to them.
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    # ray.train.report() waits for the controller's next poll: 2 s by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # The patched print shows every line of a worker twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_COLOR_PREFIX": "0",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Deprecation warnings of libraries about each other would bury the progress lines.
    "PYTHONWARNINGS": "ignore",
}
"""For the driver and every worker; each can be overridden from outside."""

# Ray binds all interfaces unless it takes the machine for a laptop: a cluster of one machine stays on loopback.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

# For drivers of a cluster that is this one machine: nobody takes away its only node, so no process watches for that.
SINGLE_NODE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}

for _key, _value in (ENVIRONMENT | ({} if os.environ.get("RAY_ADDRESS") else LOOPBACK)).items():
    os.environ.setdefault(_key, _value)

# Imports leave no garbage; by default Python looks for some after every 700 objects, an eighth of the CPU time of all imports.
gc.set_threshold(50_000)
OBJECT_STORE_BYTES = 600 * 2**20

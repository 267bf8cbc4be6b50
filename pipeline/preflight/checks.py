"""The checks before a run."""

from collections.abc import Mapping

from pipeline.config.config import Config
from pipeline.data.manifest import Manifest
from pipeline.preflight import training_checks
from pipeline.preflight.cluster_checks import disk, resources
from pipeline.preflight.data_checks import duplicates, labels, oversampling, sizes
from pipeline.preflight.findings import Finding


def examine(config: Config, manifest: Manifest, cluster: Mapping[str, float]) -> list[Finding]:
    """Every finding about a data set and a run on it, errors first, in well under two seconds.

    `cluster` is what `ray.cluster_resources()` says: CPU, GPU and object_store_memory in bytes.
    """
    found = [
        *labels(manifest),
        *duplicates(manifest),
        *sizes(config, manifest),
        *oversampling(config, manifest),
        *training_checks.examine(config, manifest, cluster),
        *resources(config, cluster),
        *disk(config, manifest),
    ]
    return sorted(found, key=lambda finding: finding.level)

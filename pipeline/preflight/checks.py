"""The checks before a run, the same for jobs.plan, jobs.train and jobs.tune. They read no image and start no worker."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.cluster import connect
from pipeline.config.config import Config
from pipeline.data.manifest import Manifest, open_data
from pipeline.errors import DataError, StorageError
from pipeline.preflight import (
    cluster_checks,
    data_checks,
    run_checks,
    source_checks,
    space_checks,
    storage_checks,
    training_checks,
)
from pipeline.preflight.findings import Finding
from pipeline.storage.store import open_store


class Preflight(NamedTuple):
    """Findings of the checks, and what a run needs to know from them."""

    findings: list[Finding]
    """Errors first."""
    cluster: dict[str, float]
    """CPU, GPU and object_store_memory (bytes) of the cluster that is joined or would be started."""
    newest: dict[str, Any] | None = None
    """The record in the run's newest checkpoint; None for a new run."""


def prepared(config: Config) -> tuple[Manifest | None, list[Finding]]:
    """The prepared data set, or the finding why there is none."""
    try:
        return open_data(config), []
    except StorageError as error:
        return None, [Finding("error", f"storage.path: {error}")]
    except DataError as error:
        return None, [Finding("error", str(error))]


def examine(config: Config, manifest: Manifest | None, run_key: str | None = None, *, searches: bool = True) -> Preflight:
    """Checks storage, MLflow, data, settings, the cluster, and the run that would be resumed. Returns all findings at once.

    `manifest`: the prepared data set, or what its source holds; None skips the checks that need it. `run_key`: the key of a run
    other than the configuration's own, such as a search. `searches`: check the search space too, if there is one.
    """
    found = [*storage_checks.buckets(config, checked=[config.storage.path]), *run_checks.tracking(config)]
    cluster, newest = connect.resources(), None
    found += cluster_checks.nodes(config)
    if manifest is None:
        found += cluster_checks.resources(config, cluster)
    else:
        store = open_store(f"{config.runs_url}/{run_key or config.run_key}", config.storage)
        newest, of_run = run_checks.newest(store)
        found += [*examine_settings(config, manifest, cluster), *run_checks.in_use(store), *of_run]
        if searches:
            found += space_checks.examine(config, lambda point: examine_settings(point, manifest, cluster))
        if not any(finding.level == "error" for finding in of_run):
            found += run_checks.resume(config, manifest, store, newest)
            if newest is None:  # a resumed run starts from its checkpoint instead
                found += training_checks.weights(config, len(manifest.class_names))
        if not any(finding.what.startswith("data.source:") for finding in found):  # else it is known that it cannot be reached
            found += source_checks.source(config, manifest, resumed=newest is not None)
    return Preflight(sorted(found, key=lambda finding: finding.level), cluster, newest)


def examine_settings(config: Config, manifest: Manifest, cluster: Mapping[str, float]) -> list[Finding]:
    """Checks that need only settings, manifest and the cluster's size, errors first; no requests, well under two seconds."""
    found = [
        *data_checks.examine(config, manifest),
        *training_checks.examine(config, manifest, cluster),
        *cluster_checks.examine(config, manifest, cluster),
    ]
    return sorted(found, key=lambda finding: finding.level)

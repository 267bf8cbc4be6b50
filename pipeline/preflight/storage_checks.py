"""Checks whether the buckets that a configuration names can be used."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from pipeline.config.config import Config
from pipeline.errors import StorageError
from pipeline.preflight.findings import Finding
from pipeline.storage import probe, store


def buckets(config: Config, checked: Sequence[str] = ()) -> list[Finding]:
    """Buckets named by the configuration that refuse what its jobs do there, each checked once; not those of `checked`.

    A bucket that training needs is an error. One that only another command needs is a warning.
    """
    found, done = [], {bucket for url in checked if (bucket := _bucket(url))}
    for setting, url, needed, proof in _addresses(config):
        bucket = _bucket(url)
        # Originals that training reads are always checked: a folder may have moved, a prefix may be empty.
        in_place = setting == "data.source" and needed
        if not in_place and (not bucket or bucket in done):
            continue
        done.add(bucket)
        try:
            proof(store.open_store(url, config.storage))
        except StorageError as error:
            found.append(Finding("error" if needed else "warning", f"{setting}: {error}"))
    return found


def _addresses(config: Config) -> Iterator[tuple[str, str, bool, Callable[[store.Store], None]]]:
    """(setting, address, whether training needs it, its check). Addresses to write to come first: a write proves more."""
    predict, export, data = config.predict, config.export, config.data
    yield "storage.path", config.storage.path, True, probe.check
    if predict.output:
        yield "predict.output", predict.output, False, partial(probe.check, setting="predict.output")
    if export.output:
        folder = f"{export.output.rpartition('/')[0]}/"
        yield "export.output", folder, False, partial(probe.check, setting="export.output")
    if data.source:  # if the data set is packed, only jobs.prepare reads it
        yield "data.source", data.source, not data.packed, partial(probe.check_readable, setting="data.source")
    if predict.images:
        yield "predict.images", predict.images, False, partial(probe.check_readable, setting="predict.images")


def _bucket(url: str) -> str:
    """The bucket of an address, empty for a folder."""
    return url.removeprefix("s3://").partition("/")[0] if url.startswith("s3://") else ""

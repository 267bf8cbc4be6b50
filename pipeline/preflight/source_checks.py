"""Compares a prepared data set with its source: what was added, changed or removed since jobs.prepare.

The source is listed, not read: a folder of 10^5 files takes seconds, a bucket of 10^6 keys some minutes.
"""

from pipeline.config.config import Config
from pipeline.data.classes import Classes
from pipeline.data.manifest import Manifest
from pipeline.data.source.find import find_source, source_identity
from pipeline.data.source.record import Samples, differences, read_record, samples_of
from pipeline.errors import SourceError, StorageError
from pipeline.preflight.findings import Finding
from pipeline.storage.store import open_store

SHOWN = 5
"""Class names that one finding lists."""
AGAIN = "run python -m jobs.prepare CONFIG"


def source(config: Config, manifest: Manifest, *, resumed: bool) -> list[Finding]:
    """The difference between a prepared data set and its source, which is an error of a new run and a warning for a resumed one.

    A run cannot change its data, so one that resumes keeps the prepared ones. A source that cannot be reached is a warning if
    the data are packed, because training reads the packed copies.
    """
    data = config.data
    if data.layout == "generated":
        changed = _generated(config, manifest)
        return [_finding(f"data.generated: {'; '.join(changed)}", resumed)] if changed else []
    try:
        found = find_source(config)
    except StorageError as error:
        if not data.packed:
            return [Finding("error", f"data.source: {error}")]
        return [Finding("warning", f"data.source: {error}; training reads the packed data, which cannot be compared with it")]
    except SourceError as error:
        more = f" and {len(error.faults) - 1} more faults" if len(error.faults) > 1 else ""
        what = f"data.source = {data.source}: since jobs.prepare it has faults: {error.faults[0]}{more}"
        return [_finding(what, resumed, f"correct the source and {AGAIN}")]
    if source_identity(config, found) == manifest.source:
        return []
    recorded, changed = read_record(open_store(config.data_url, config.storage), manifest), _classes(manifest, found.known)
    root, before = recorded or (str(data.source), Samples())
    if recorded:
        changed += differences(before, samples_of(found.splits, found.listing))
    elif not changed:  # an earlier version prepared the data set
        what = f"data.source = {data.source}: it or a setting has changed since jobs.prepare, which kept no record of its files"
        return [Finding("warning", what, AGAIN)]
    if not changed:  # moved as it was, or a setting that does not change the samples
        return []
    state = "changed since jobs.prepare" if root == data.source else f"the data were prepared from {root}, and differ"
    return [_finding(f"data.source = {data.source}: {state}: {'; '.join(changed)}", resumed)]


def _finding(what: str, resumed: bool, fix: str = AGAIN) -> Finding:
    if resumed:
        return Finding("warning", what, f"this run resumes with the data as prepared; for a new run, {fix}")
    return Finding("error", what, fix)


def _generated(config: Config, manifest: Manifest) -> list[str]:
    made, train = config.data.generated, manifest.splits["train"]
    pairs = {
        "num_train": (train.num_images, made.num_train),
        "num_val": (manifest.num_images("val"), made.num_val),
        "size": (train.largest[0], made.size),
    }
    return [f"{key} is {wanted}, prepared with {prepared}" for key, (prepared, wanted) in pairs.items() if wanted != prepared]


def _classes(manifest: Manifest, known: Classes) -> list[str]:
    """How the classes of the source differ from those of the data set; empty if they do not."""
    added = [name for name in known.names if name not in manifest.class_names]
    removed = [name for name in manifest.class_names if name not in known.names]
    if added or removed:
        parts = [f"{kind} {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
                 for kind, names in (("added", added), ("removed", removed)) if names]  # fmt: skip
        return [f"classes: {', '.join(parts)}"]
    if (known.names, known.label_map) != (manifest.class_names, manifest.label_map):
        return ["classes: other ids"]
    return ["classes: other colours"] if known.colors != manifest.colors else []

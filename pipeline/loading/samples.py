"""Reads samples of a split by position: encoded bytes, fetched together, each checked against its digest."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.config.config import Config
from pipeline.data.index import Entry, Index, digest
from pipeline.data.manifest import Manifest
from pipeline.data.shards import Row
from pipeline.errors import SampleError
from pipeline.storage.store import Store, open_store

READ_AHEAD = 8
"""Number of samples in one request; the next request runs while these are decoded."""


@dataclass(frozen=True)
class Samples:
    """The samples of one split. Picklable, because connections are made in the process that reads."""

    index: Index
    objects: Store
    """The store that holds the shards or the original objects."""

    def read(self, positions: Sequence[int]) -> list[Row]:
        """Rows at `positions`, in that order, fetched concurrently. Raises SampleError for one that is missing or corrupt."""
        rows = self.try_read(positions)
        for row in rows:
            if isinstance(row, SampleError):
                raise row
        return [row for row in rows if isinstance(row, Row)]

    def try_read(self, positions: Sequence[int]) -> list[Row | SampleError]:
        """Like `read`, but returns the error in place of a sample that is missing or corrupt."""
        entries = self.index.entries(positions)
        try:
            return [self._checked(entry, data) for entry, data in zip(entries, self._fetch(entries), strict=True)]
        except FileNotFoundError:  # does not name the sample: fetch each by itself
            return [self._try_one(entry) for entry in entries]

    def ahead(self, positions: Sequence[int]) -> Iterator[Row | SampleError]:
        """Like `try_read`, a few samples at a time: the next ones are fetched while the caller works on these."""
        chunks = [positions[start : start + READ_AHEAD] for start in range(0, len(positions), READ_AHEAD)]
        with ThreadPoolExecutor(1) as pool:
            waiting = [pool.submit(self.try_read, chunk) for chunk in chunks[:1]]
            for number in range(len(chunks)):
                rows = waiting.pop().result()
                waiting = [pool.submit(self.try_read, chunk) for chunk in chunks[number + 1 : number + 2]]
                yield from rows

    def _try_one(self, entry: Entry) -> Row | SampleError:
        try:
            return self._checked(entry, self._fetch([entry])[0])
        except FileNotFoundError as error:
            return _fault(entry, f"{error.filename}: no such object", "put it back")

    def _fetch(self, entries: Sequence[Entry]) -> list[tuple[bytes, bytes]]:
        """(image, label) of each entry: one request if both are in one shard, otherwise one for each whole object."""
        spans: list[tuple[str, int, int | None]] = []
        for e in entries:
            if e.image == e.label:
                spans.append((e.image, e.image_start, e.label_start + e.label_bytes))
            else:
                spans += [(e.image, 0, None), (e.label, 0, None)]
        parts = iter(self.objects.read_ranges(spans))
        pairs = []
        for e in entries:
            part = next(parts)
            if e.image == e.label:
                pairs.append((part[: e.image_bytes], part[e.label_start - e.image_start :]))
            else:
                pairs.append((part, next(parts)))
        return pairs

    def _checked(self, entry: Entry, data: tuple[bytes, bytes]) -> Row | SampleError:
        for turn in range(2):
            if turn:  # read again once: bytes that were damaged in transit are whole at the second read
                data = self._fetch([entry])[0]
            wrong = [
                key
                for key, part, expected in (
                    (entry.image, data[0], entry.image_sha256),
                    (entry.label, data[1], entry.label_sha256),
                )
                if digest(part) != expected
            ]
            if not wrong:
                return Row(entry.sample_id, *data, entry.height, entry.width)
        what = f"{self.objects.url(wrong[0])}: corrupt: its bytes are not those that jobs.prepare saw"
        # A shard must be deleted, because jobs.prepare keeps a shard that exists.
        return _fault(entry, what, "delete it" if entry.image == entry.label else "fix it")


def _fault(entry: Entry, what: str, fix: str) -> SampleError:
    return SampleError(
        f"{what} (sample {entry.sample_id}): {fix} and run python -m jobs.prepare CONFIG again; data.max_skipped lets training "
        "replace this many samples"
    )


def open_samples(config: Config, manifest: Manifest, split: str) -> Samples:
    """The samples of a split, read from its shards or from the original objects."""
    data = open_store(config.data_url, config.storage)
    objects = data if manifest.packed else open_store(str(config.data.source), config.storage)
    return Samples(Index(data, manifest.splits[split].index, manifest.num_images(split)), objects)

"""Parquet shards of encoded images and labels.

A row group holds one sample, so that its image and its label are adjacent and one ranged read fetches both. Where each sample
is stored is in the index (`pipeline.data.index`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.index import Entry, digest
from pipeline.storage.store import Store

SCHEMA = pa.schema(
    [("sample_id", pa.string()), ("image", pa.binary()), ("label", pa.binary()), ("height", pa.int32()), ("width", pa.int32())]
)


class Row(NamedTuple):
    """One sample: the encoded bytes of the source files, unchanged unless the label was in colours, and the size in pixels."""

    sample_id: str
    image: bytes
    label: bytes
    height: int
    width: int


def write_shard(store: Store, key: str, rows: Sequence[Row]) -> list[Entry]:
    """Writes rows as one Parquet file and returns their entries. The bytes are neither compressed nor changed."""
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)]
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table(columns, schema=SCHEMA), sink, row_group_size=1, compression="none", use_dictionary=False,
        write_statistics=False, write_page_checksum=True,
    )  # fmt: skip
    data = sink.getvalue().to_pybytes()
    store.write(key, data)
    footer = pq.read_metadata(pa.BufferReader(data))
    entries = []
    for number, row in enumerate(rows):
        group = footer.row_group(number)
        # A plain page holds a value's bytes unchanged, after a header whose length varies: so search for the bytes.
        image, label = (data.index(row[c], group.column(c).data_page_offset) for c in (1, 2))
        entries.append(
            Entry(row.sample_id, key, image, len(row.image), digest(row.image), key, label, len(row.label), digest(row.label),
                  row.height, row.width)
        )  # fmt: skip
    return entries

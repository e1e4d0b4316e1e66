"""Rows on their way into PostgreSQL and back: the columns, pgvector's binary form, Arrow tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alidade.search.schema import embeddings_of, shard_schema

SIDES = ("west", "south", "east", "north")
PLAIN = (
    ("id", "text"),
    ("geometry", "bytea"),
    ("time", "timestamptz"),
    ("sensor", "text"),
    ("gsd_m", "float4"),
    ("valid_share", "float4"),
    ("cloud_share", "float4"),
    ("source", "text"),
    ("source_id", "text"),
    ("row", "int4"),
    ("col", "int4"),
    ("height", "int4"),
    ("width", "int4"),
)
"""Columns that are the archive's own, with PostgreSQL's types; the others are made of ``bbox`` and ``embedding``."""
COPIED = (("shard", "int4"), *PLAIN, *((side, "float8") for side in SIDES), ("embedding", "halfvec"))
"""What is copied into the table of tiles, in this order."""
READ = (*(name for name, _ in PLAIN), *SIDES)
"""What is read back for answers, in this order; ``embedding`` follows where it is wanted."""
_BBOX = ("xmin", "ymin", "xmax", "ymax")


def copy_rows(table: pa.Table, shard: int) -> Iterator[tuple[object, ...]]:
    """The rows of a shard as values for :data:`COPIED`; vectors in pgvector's binary form.

    Args:
        table: columns of :func:`alidade.search.schema.shard_schema`.
        shard: number of the shard in the store.
    """
    columns = [table[name].to_pylist() for name, _ in PLAIN]
    boxes = [(None,) * 4 if b is None else tuple(b[side] for side in _BBOX) for b in table["bbox"].to_pylist()]
    for *values, box, vector in zip(*columns, boxes, half_vectors(embeddings_of(table)), strict=True):
        yield (shard, *values, *box, vector)


def half_vectors(vectors: npt.NDArray[np.float16]) -> list[bytes]:
    """``[N, D]`` in the form in which pgvector sends and receives ``halfvec``: D, 0, numbers; big-endian."""
    dim = vectors.shape[1]
    head = dim.to_bytes(2, "big") + b"\0\0"
    body = vectors.astype(">f2").tobytes()
    return [head + body[at : at + 2 * dim] for at in range(0, len(body), 2 * dim)]


def from_half_vectors(sent: Sequence[bytes], dim: int) -> npt.NDArray[np.float16]:
    """The inverse of :func:`half_vectors`: ``[N, dim]``."""
    raw = np.frombuffer(b"".join(sent), ">u2").reshape(len(sent), dim + 2)
    return raw[:, 2:].astype(np.uint16).view(np.float16)


def vector_text(vector: npt.NDArray[np.float32]) -> str:
    """A query ``[D]`` as pgvector reads it, to the last bit."""
    return "[" + ",".join(str(number) for number in vector.tolist()) + "]"


def rows_table(rows: Sequence[Sequence[Any]], *, model: str, dim: int) -> pa.Table:
    """Values of :data:`READ` as a table with the archive's columns, without ``embedding``."""
    schema = shard_schema(dim)
    columns = dict(zip(READ, zip(*rows, strict=True) if rows else ((),) * len(READ), strict=True))
    boxes = [
        None if box[0] is None else dict(zip(_BBOX, box, strict=True))
        for box in zip(*(columns[side] for side in SIDES), strict=True)
    ]
    fields = [schema.field(name) for name in schema.names if name != "embedding"]
    values: dict[str, Sequence[Any]] = {**columns, "bbox": boxes, "model": [model] * len(rows)}
    return pa.Table.from_arrays([pa.array(values[f.name], f.type) for f in fields], schema=pa.schema(fields))

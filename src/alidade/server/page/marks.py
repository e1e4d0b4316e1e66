"""Accepted and rejected tiles: a named list beside the archive, and the tiles of it with scores and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alidade.errors import ArchiveError
from alidade.search.scan import Hits
from alidade.search.schema import embeddings_of
from alidade.search.store import Store
from alidade.server.labels import Label

Marks = dict[str, str]
"""``"yes"`` or ``"no"`` by tile id."""


def marks_of(labels: Mapping[str, Label]) -> Marks:
    """What is accepted or rejected."""
    return {tile: label.mark for tile, label in labels.items() if label.mark in ("yes", "no")}


def known_rows(store: Store, ids: list[str]) -> pa.Table | None:
    """The rows of those ids that the archive has: a tile that was embedded again has another id."""
    if not ids:
        return None
    try:
        return store.rows(ids)
    except ArchiveError:
        found = []
        for tile in ids:
            try:
                found.append(store.rows([tile]))
            except ArchiveError:
                continue
        return pa.concat_tables(found) if found else None


def marked_hits(store: Store, ids: list[str], answer: Hits | None) -> Hits | None:
    """Tiles of a list as hits, best first by the answer's query where there is one.

    Args:
        store: has their rows.
        ids: of the tiles.
        answer: whose query scores them; without one their scores are 1: nothing is compared.

    Returns:
        None when the archive has none of them.
    """
    table = known_rows(store, ids)
    if table is None:
        return None
    vectors = embeddings_of(table).astype(np.float32)
    scores = np.ones(len(vectors), np.float32) if answer is None else vectors @ answer.vector
    order = np.argsort(-scores, kind="stable")
    table = table.drop_columns(["embedding"]).append_column("score", pa.array(scores, pa.float32()))
    return Hits(
        table=table.take(order),
        model=store.model,
        query={"like": "tiles of a list"} if answer is None else answer.query,
        vector=np.zeros(store.dim, np.float32) if answer is None else answer.vector,
        matches=table.num_rows,
        scanned=table.num_rows,
        seconds=0.0,
    )


def with_labels(hits: Hits, marks: Marks) -> Hits:
    """Hits with a column ``label`` (``"accepted"``, ``"rejected"`` or nothing), where there are labels at all."""
    ids = hits.table["id"].to_pylist()
    names = {"yes": "accepted", "no": "rejected"}
    labels = pa.array([names.get(marks.get(tile, "")) for tile in ids], pa.string())
    if pc.all(pc.is_null(labels)).as_py() is not False:
        return hits
    return replace(hits, table=hits.table.append_column("label", labels))

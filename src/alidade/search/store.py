"""The one small interface of everything that can be searched: exact scanner, LanceDB index, PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alidade.search.filters import Filter
from alidade.search.scan import Hits, Scanner


class Store(Protocol):
    """Rows of one embedding space that can be counted, searched and fetched."""

    @property
    def archive_id(self) -> str:
        """What the rows belong to, in words that stay the same: the archive's path, or a schema's name."""

    @property
    def model(self) -> str:
        """Identity of the embedding space."""

    @property
    def dim(self) -> int:
        """Length of the embeddings."""

    def __len__(self) -> int:
        """Rows that can be found."""

    def count(self, conditions: Filter) -> int:
        """How many rows meet the conditions.

        Raises:
            ArchiveError: no row has the sensor asked for, or the store cannot be read.
        """

    def search(
        self, vector: npt.NDArray[np.float32], k: int, conditions: Filter, *, describe: str = "a vector"
    ) -> Hits:
        """The ``k`` rows most like ``vector`` that meet the conditions; all of them when there are fewer.

        Args:
            vector: ``[D]``, any length but zero.
            k: how many, 1 to a million.
            conditions: what a row must meet.
            describe: what the query is, in words, for exports.

        Raises:
            ArchiveError: a query of another dimension or without direction, a ``k`` out of range, a sensor that no
                row has, or a store that cannot be read.
        """

    def rows(self, ids: Sequence[str]) -> pa.Table:
        """Every column of these rows, ``embedding`` too, in the order asked.

        Raises:
            ArchiveError: an id that no row has.
        """


class ExactStore:
    """A :class:`Store` over the exact scanner: nothing on disk, nothing approximate, the whole archive in memory."""

    def __init__(self, scanner: Scanner) -> None:
        self.scanner = scanner

    @property
    def archive_id(self) -> str:
        """The archive's path."""
        return str(self.scanner.archive.path)

    @property
    def model(self) -> str:
        """Identity of the embedding space."""
        return self.scanner.archive.header.model

    @property
    def dim(self) -> int:
        """Length of the embeddings."""
        return self.scanner.archive.header.dim

    def __len__(self) -> int:
        return len(self.scanner)

    def count(self, conditions: Filter) -> int:
        """See :class:`Store`."""
        return self.scanner.count(conditions)

    def search(
        self, vector: npt.NDArray[np.float32], k: int, conditions: Filter, *, describe: str = "a vector"
    ) -> Hits:
        """See :class:`Store`."""
        return self.scanner.find(vector, k, conditions, describe=describe)

    def rows(self, ids: Sequence[str]) -> pa.Table:
        """See :class:`Store`."""
        return self.scanner.rows(ids)

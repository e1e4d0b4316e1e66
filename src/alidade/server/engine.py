"""One opened archive with its model, and the one seam between the server and the packages that search."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alidade.errors import ArchiveError
from alidade.imagery.files import Declared
from alidade.models.model import Model
from alidade.search.archive import Archive
from alidade.search.filters import Columns, Filter
from alidade.search.index_format import FOLDER, HEADER
from alidade.search.planner import PlannedStore, open_store
from alidade.search.query import KnownTexts, Question, answer, words_of
from alidade.search.scan import Hits, Scanner
from alidade.search.store import ExactStore, Store
from alidade.server.problems import gone
from alidade.server.scenes import SceneBook, list_scenes
from alidade.server.similarity import Layer, Mosaic
from alidade.server.thumbnails import TilePlace

Vector = npt.NDArray[np.float32]


class Engine:
    """An archive as it was when it was opened. Everything here takes time and belongs into a thread.

    Attributes:
        archive: as opened.
        model: the one that made it.
        store: what is searched.
        scenes: the registered scenes.
        mosaic: the footprints of all rows, for maps of searches.
        revision: changes with every change of what the archive holds.

    Args:
        path: the directory.
        model: the one that made it.
        name: of the model, as the user calls it.
        declared: what the user said about the files.

    Raises:
        AlidadeError: no archive, a damaged one, or one made by another model.
    """

    def __init__(self, path: Path, model: Model, name: str, declared: Declared) -> None:
        self._manifest = _state_of(path)
        self.archive = Archive.open(path)
        _check_model(self.archive, model.identity)
        self.model, self._name = model, name
        self._scanner = Scanner(self.archive)
        self._columns = Columns.of(self._scanner.table)
        self._planned = _planned(path)
        self.store: Store = self._planned or ExactStore(self._scanner)
        self.mosaic = Mosaic(self._columns.boxes)
        self.scenes = SceneBook(self.archive, list_scenes(self._scanner.table, self._columns), declared)
        shards = [(s.sha256, sorted(s.live)) for s in self.archive.manifest.shards]
        self.revision = hashlib.sha256(repr(shards).encode()).hexdigest()[:12]

    def changed(self) -> bool:
        """Whether the archive has been written to since; ``False`` when it cannot be looked at."""
        now = _state_of(self.archive.path)
        return now is not None and now != self._manifest

    @property
    def indexed(self) -> int:
        """Rows that an index covers; 0 without one."""
        return 0 if self._planned is None else self._planned.indexed

    @property
    def exact_limit(self) -> int | None:
        """Up to so many matches every one is compared; ``None``: always."""
        return None if self._planned is None else self._planned.exact_limit

    @property
    def notes(self) -> tuple[str, ...]:
        """What has happened to the index, one sentence each."""
        return () if self._planned is None else tuple(self._planned.notes)

    @property
    def sensors(self) -> frozenset[str]:
        """Ids of the sensors that have rows."""
        return self._scanner.sensors

    def answer(self, question: Question, texts: Mapping[str, Vector]) -> Hits:
        """The best tiles for a question whose words have become vectors before.

        Raises:
            AlidadeError: see :func:`alidade.search.query.answer`.
        """
        words = self.model.words
        named = None if words is None else words_of(self._name, words.config.text_identity)
        return answer(question, self.store, KnownTexts(self.model.identity, texts), words=named)

    def place_of(self, tile_id: str) -> TilePlace:
        """Where a tile's pixels are.

        Raises:
            Refused: there is no such tile (404).
        """
        try:
            table = self.store.rows([tile_id])
        except ArchiveError as error:
            raise gone(error) from error
        return TilePlace.of(table.drop_columns(["embedding"]).to_pylist()[0])

    def layer(self, vector: Vector, conditions: Filter) -> Layer:
        """The map of a query.

        Raises:
            AlidadeError: a sensor that no row has.
        """
        return self.mosaic.layer(self._scanner.scores(vector), conditions.mask(self._columns))

    def close(self) -> None:
        """Close what is open."""
        self.scenes.close()


def _planned(path: Path) -> PlannedStore | None:
    """The archive through its index, where it has one; one that is behind or damaged is mended first."""
    return open_store(path) if (path / FOLDER / HEADER).exists() else None


def _state_of(path: Path) -> tuple[tuple[int, int, int], bool] | None:
    """What tells one state of the archive from another, ``None`` when it cannot be seen.

    Its manifest, and whether there is an index: what becomes of one that was opened is seen by who searches it.
    """
    try:
        status = os.stat(path / "manifest.jsonl")
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns), (path / FOLDER / HEADER).exists()


def _check_model(archive: Archive, identity: str) -> None:
    made = archive.header.model
    if identity != made:
        raise ArchiveError(
            f"{archive.path}: model",
            got=identity,
            expected=f"{made}, with which this archive was made",
            next_step="Name that model with --model, or embed the files again into another archive.",
        )

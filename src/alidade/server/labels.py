"""Labels of tiles, and searches that are asked again: what a person decided while looking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from alidade.errors import AlidadeError
from alidade.search.manifest import text, whole
from alidade.server.notes import Notes
from alidade.server.problems import unknown

Mark = Literal["yes", "no", "unsure"]
MARKS: tuple[str, ...] = get_args(Mark)
MOST_LABELS = 100_000
"""In one set: it is written whole with every change."""
MOST_SEARCHES = 1_000
_SEARCHES = "saved"


@dataclass(frozen=True, kw_only=True)
class Label:
    """What a person says of one tile: ``mark``, a ``note``, and ``time``, when they last said it (ISO 8601, UTC)."""

    mark: str
    note: str
    time: str


@dataclass(frozen=True, kw_only=True)
class SavedSearch:
    """A search to be asked again.

    Attributes:
        query: the body of a search, see ``POST /api/search``.
        time: when it was last asked or saved, ISO 8601, UTC.
        rows: how many rows the archive had then.
        seen: ids of the tiles that it then answered with.
    """

    query: Mapping[str, Any]
    time: str
    rows: int = 0
    seen: tuple[str, ...] = ()


class Labels:
    """Sets of labels by name, in ``ARCHIVE/labels/NAME.jsonl``, one line a tile."""

    def __init__(self, archive: Path) -> None:
        self._notes = Notes(archive / "labels", _label_of, lambda tile, label: {"id": tile, **asdict(label)})

    def repair(self) -> tuple[str, ...]:
        """See :meth:`Notes.repair`."""
        return self._notes.repair()

    def names(self) -> list[str]:
        """The sets there are."""
        return self._notes.names()

    def read(self, name: str) -> dict[str, Label]:
        """Labels by tile id; none when there is no such set.

        Raises:
            AlidadeError: a bad name, or a set that cannot be read.
        """
        return self._notes.read(name)

    def put(self, name: str, changes: Mapping[str, tuple[str | None, str]]) -> dict[str, Label]:
        """Set or take away labels; they are on the disk when this returns.

        Args:
            name: of the set, made when there is none.
            changes: mark and note by tile id; a mark of ``None`` takes the label away.

        Returns:
            The whole set.

        Raises:
            AlidadeError: a bad name or mark, too many labels, or the disk refuses; the set is as it was.
        """
        now = now_text()
        if bad := [mark for mark, _ in changes.values() if mark is not None and mark not in MARKS]:
            raise AlidadeError(
                "label", got=repr(bad[0][:80]), expected=f"one of {', '.join(MARKS)}", next_step="Use one of these."
            )

        def change(labels: dict[str, Label]) -> None:
            for tile, (mark, note) in changes.items():
                if mark is None:
                    labels.pop(tile, None)
                else:
                    labels[tile] = Label(mark=mark, note=note, time=now)
            _check_count("labels", len(labels), MOST_LABELS, "Begin another set.")

        return self._notes.change(name, change)


class SavedSearches:
    """Searches by name, in ``ARCHIVE/searches/saved.jsonl``."""

    def __init__(self, archive: Path) -> None:
        self._notes = Notes(archive / "searches", _search_of, lambda name, saved: {"name": name, **asdict(saved)})

    def repair(self) -> tuple[str, ...]:
        """See :meth:`Notes.repair`."""
        return self._notes.repair()

    def all(self) -> dict[str, SavedSearch]:
        """All by name.

        Raises:
            AlidadeError: they cannot be read.
        """
        return self._notes.read(_SEARCHES)

    def get(self, name: str) -> SavedSearch:
        """One.

        Raises:
            AlidadeError: there is none of that name, or they cannot be read.
        """
        found = self.all().get(name)
        if found is None:
            raise unknown(
                "saved search", repr(name[:80]), "the name of a saved search", "GET /api/searches names them."
            )
        return found

    def put(self, name: str, saved: SavedSearch) -> None:
        """Keep one, in place of another of the same name; it is on the disk when this returns.

        Raises:
            AlidadeError: there are too many, or the disk refuses.
        """

        def change(searches: dict[str, SavedSearch]) -> None:
            searches[name] = saved
            _check_count("saved searches", len(searches), MOST_SEARCHES, "Delete some first.")

        self._notes.change(_SEARCHES, change)

    def asked(self, name: str, *, rows: int, ids: Sequence[str]) -> None:
        """Remember what one answered with just now; nothing when it has been deleted meanwhile.

        Raises:
            AlidadeError: the disk refuses.
        """

        def change(searches: dict[str, SavedSearch]) -> None:
            if name in searches:
                query = searches[name].query
                searches[name] = SavedSearch(query=query, time=now_text(), rows=rows, seen=tuple(ids))

        self._notes.change(_SEARCHES, change)

    def delete(self, name: str) -> None:
        """Forget one.

        Raises:
            AlidadeError: there is none of that name, or the disk refuses.
        """
        self.get(name)

        def change(searches: dict[str, SavedSearch]) -> None:
            searches.pop(name, None)

        self._notes.change(_SEARCHES, change)


def now_text() -> str:
    """This moment in ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _check_count(what: str, count: int, most: int, next_step: str) -> None:
    if count > most:
        raise AlidadeError(what, got=f"{count:,}", expected=f"at most {most:,}", next_step=next_step)


def _label_of(line: object) -> tuple[str, Label]:
    content = _object(line)
    mark = text(content["mark"])
    if mark not in MARKS:
        raise ValueError(f"mark {mark!r:.40}")
    return text(content["id"]), Label(mark=mark, note=text(content["note"]), time=text(content["time"]))


def _search_of(line: object) -> tuple[str, SavedSearch]:
    content = _object(line)
    seen = content["seen"]
    if not isinstance(seen, list):
        raise ValueError("seen is no list")
    return text(content["name"]), SavedSearch(
        query=_object(content["query"]),
        time=text(content["time"]),
        rows=whole(content["rows"], 0, 2**53),
        seen=tuple(text(i) for i in seen),
    )


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.40} instead of an object")
    return value

"""Ranges of tile indices, and what a sequence of acknowledgements adds up to."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alidade.errors import ArchiveError
from alidade.search.manifest import (
    Coverage,
    Manifest,
    count,
    coverage_from_json,
    coverage_to_json,
    missing,
    ranges_of,
    read_manifest,
    union,
)

INDICES = st.sets(st.integers(0, 60))


@given(INDICES, INDICES)
def test_ranges_are_sets(a: set[int], b: set[int]) -> None:
    assert count(ranges_of(a)) == len(a)
    both = union(ranges_of(a), ranges_of(b))
    assert missing(both, 61) == sorted(set(range(61)) - (a | b))
    assert list(both) == sorted(both)
    assert all(before[1] < after[0] for before, after in pairwise(both))


@given(st.lists(st.tuples(st.sampled_from("abc"), INDICES, st.booleans())))
def test_the_state_follows_from_the_events(events: list[tuple[str, set[int], bool]]) -> None:
    manifest, settled = Manifest(), {name: set[int]() for name in "abc"}
    for number, (name, tiles, retire) in enumerate(events):
        if retire:
            manifest.apply({"kind": "retire", "source_id": name})
            settled[name] = set()
            continue
        new = tiles - settled[name]
        coverage = Coverage(source=name, relative=name, source_id=name, total=61, tiles=ranges_of(new), empty=())
        assert coverage_from_json(coverage_to_json([coverage])) == (coverage,)
        shard = {"kind": "shard", "file": f"part-{number:06d}.parquet", "rows": len(new), "bytes": 1, "sha256": ""}
        manifest.apply({**shard, "coverage": coverage_to_json([coverage])})
        with pytest.raises(ValueError, match="settled twice") if new else nullcontext():
            manifest.check([coverage])
        settled[name] |= tiles
    assert manifest.rows == sum(map(len, settled.values()))
    for name, tiles in settled.items():
        assert set(missing(manifest.covered.get(name, ()), 61)) == set(range(61)) - tiles
        assert manifest.is_complete(name) == (len(tiles) == 61)


GOOD: dict[str, Any] = {
    "kind": "shard",
    "file": "part-000001.parquet",
    "rows": 3,
    "bytes": 1000,
    "sha256": "00",
    "coverage": [
        {"source": "s", "relative": "s", "source_id": "s", "total": 5, "tiles": [[0, 2], [4, 5]], "empty": [[2, 3]]}
    ],
}


def bent(path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    """The good event with one value replaced."""
    event = json.loads(json.dumps(GOOD))
    inner = event
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return event


def test_an_event_as_the_writer_makes_it_is_taken() -> None:
    manifest = Manifest()
    manifest.apply(GOOD)
    assert (manifest.rows, manifest.covered, manifest.totals) == (3, {"s": ((0, 3), (4, 5))}, {"s": 5})


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("file",), "../../etc/passwd", "not the name of a new shard"),
        (("file",), "notes.parquet", "not the name of a new shard"),
        (("file",), "part-٠٠٠٠٠١.parquet", "not the name of a new shard"),
        (("file",), 7, "7 instead of text"),
        (("rows",), 10**12, "instead of a whole number"),
        (("rows",), 3.0, "3.0 instead of a whole number"),
        (("rows",), "3", "'3' instead of a whole number"),
        (("rows",), 4, "4 rows do not fit the coverage"),
        (("bytes",), -1, "-1 instead of a whole number"),
        (("sha256",), None, "None instead of text"),
        (("coverage", 0, "total"), 4, "4 instead of a whole number from 0 to 3"),
        (("coverage", 0, "total"), 10**10, "10000000000 instead of a whole number"),
        (("coverage", 0, "total"), True, "True instead of a whole number"),
        (("coverage", 0, "tiles"), [[0, 10**11]], "instead of a whole number from 1 to 5"),
        (("coverage", 0, "tiles"), [[-1, 2]], "-1 instead of a whole number"),
        (("coverage", 0, "tiles"), [[2, 1], [0, 4]], "empty ranges"),
        (("coverage", 0, "tiles"), [[0, 2], [1, 2]], "settled twice"),
        (("coverage", 0, "empty"), [[0, 1]], "settled twice"),
        (("coverage", 0, "source_id"), ["s"], "instead of text"),
    ],
)
def test_an_event_that_cannot_be_true_is_refused(path: tuple[str | int, ...], value: object, told: str) -> None:
    manifest = Manifest()
    with pytest.raises(ValueError, match=re.escape(told)):
        manifest.apply(bent(path, value))
    assert manifest.rows == 0


def test_a_shard_or_a_number_of_tiles_cannot_be_acknowledged_twice() -> None:
    manifest = Manifest()
    manifest.apply(GOOD)
    other = bent(("coverage", 0, "source_id"), "t")
    with pytest.raises(ValueError, match="not the name of a new shard"):
        manifest.apply(other)
    more = {**GOOD["coverage"][0], "total": 9, "tiles": [[5, 6]], "empty": []}
    with pytest.raises(ValueError, match="s has 5 tiles, not 9"):
        manifest.apply({"kind": "nodata", "coverage": [more]})


def test_a_damaged_manifest_with_a_tower_of_brackets_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_text("[" * 200_000 + "\n")
    with pytest.raises(ArchiveError, match="manifest.jsonl: line 1: got RecursionError"):
        read_manifest(tmp_path / "manifest.jsonl")


def test_what_is_missing_takes_no_more_memory_than_there_are_tiles() -> None:
    assert missing(((2, 10**9),), 4) == [0, 1]

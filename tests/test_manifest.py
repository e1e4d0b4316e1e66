"""Ranges of tile indices, and what a sequence of acknowledgements adds up to."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from alidade.search.manifest import (
    Coverage,
    Manifest,
    count,
    coverage_from_json,
    coverage_to_json,
    missing,
    ranges_of,
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
        assert not manifest.overlaps([coverage])
        assert coverage_from_json(coverage_to_json([coverage])) == (coverage,)
        shard = {"kind": "shard", "file": f"{number}", "rows": len(new), "bytes": 1, "sha256": ""}
        manifest.apply({**shard, "coverage": coverage_to_json([coverage])})
        assert manifest.overlaps([coverage]) == bool(new)
        settled[name] |= tiles
    assert manifest.rows == sum(map(len, settled.values()))
    for name, tiles in settled.items():
        assert set(missing(manifest.covered.get(name, ()), 61)) == set(range(61)) - tiles
        assert manifest.is_complete(name) == (len(tiles) == 61)

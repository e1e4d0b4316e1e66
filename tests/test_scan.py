"""The exact scanner against a plain loop, with every filter, and what it refuses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from alidade.errors import AlidadeError, ArchiveError, GridError
from alidade.imagery.footprint import Footprint
from alidade.search.archive import Archive
from alidade.search.filters import parse_bbox, parse_point, parse_time
from alidade.search.manifest import Coverage, ranges_of
from alidade.search.scan import Scanner
from alidade.search.schema import TileRow
from alidade.search.writer import ArchiveWriter

DIM, N = 24, 500
START = datetime(2020, 1, 1, tzinfo=UTC)
QUERY = np.random.default_rng(7).standard_normal(DIM)


def build(path: Path, rows: list[TileRow], dim: int = DIM) -> Scanner:
    coverage = [
        Coverage(
            source=s,
            relative=s,
            source_id=s,
            total=10_000,
            tiles=ranges_of(r.col for r in rows if r.source == s),
            empty=(),
        )
        for s in dict.fromkeys(r.source for r in rows)
    ]
    with ArchiveWriter(path, model="tiny-01", dim=dim, tile=1) as w:
        for c in coverage:
            w.append([r for r in rows if r.source == c.source], [c])
    return Scanner(Archive.open(path))


def make_row(i: int, embedding: np.ndarray, **changes: object) -> TileRow:
    west = -180 + (i * 7) % 360
    values: dict[str, object] = {
        "id": f"row-{i:05d}",
        "footprint": Footprint.around([west, west + 2, west + 2, west], [10, 10, 12, 12]),
        "time": START + timedelta(days=i),
        "sensor": ("naip-rgb", "sentinel-1-rtc")[i % 2],
        "gsd_m": 10.0,
        "valid_share": 1.0,
        "cloud_share": None,
        "source": f"scene-{i % 3}.tif",
        "source_id": f"scene-{i % 3}.tif",
        "row": 0,
        "col": i,
        "height": 1,
        "width": 1,
        "embedding": embedding,
    }
    return TileRow(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def rows() -> list[TileRow]:
    rng = np.random.default_rng(0)
    made = [make_row(i, rng.standard_normal(DIM)) for i in range(N)]
    made[5] = make_row(5, made[5].embedding, footprint=None)
    made[6] = make_row(6, made[6].embedding, time=None)
    return made


@pytest.fixture(scope="module")
def scanner(rows: list[TileRow], tmp_path_factory: pytest.TempPathFactory) -> Scanner:
    return build(tmp_path_factory.mktemp("scan") / "a", rows)


def expected(rows: list[TileRow], k: int) -> tuple[list[str], list[float]]:
    """The definition, in float64 over the stored float16 numbers."""
    scored = []
    for row in rows:
        unit = (row.embedding / np.linalg.norm(row.embedding)).astype(np.float32).astype(np.float16).astype(float)
        scored.append((-float(unit @ QUERY / np.linalg.norm(unit) / np.linalg.norm(QUERY)), row.id))
    best = sorted(scored)[:k]
    return [i for _, i in best], [-s for s, _ in best]


@pytest.mark.parametrize("k", [1, 7, N, N + 1000])
def test_exact_cosine_best_first_and_all_matches_when_k_is_larger(
    scanner: Scanner, rows: list[TileRow], k: int
) -> None:
    hits = scanner.search(QUERY, k)
    ids, scores = expected(rows, k)
    assert hits.table["id"].to_pylist() == ids
    np.testing.assert_allclose(hits.table["score"].to_numpy(), scores, atol=1e-6)
    assert (hits.matches, hits.scanned, len(hits)) == (N, N, min(k, N))


def test_a_stored_row_finds_itself_with_score_one(scanner: Scanner, rows: list[TileRow]) -> None:
    hits = scanner.search(scanner.embeddings[10].astype(np.float32) * 33, 1)
    assert hits.table["score"].to_pylist() == pytest.approx([1.0], abs=1e-6)


def test_filters_by_sensor_time_and_box_alone_and_together(scanner: Scanner, rows: list[TileRow]) -> None:
    start, end = START + timedelta(days=50), START + timedelta(days=120)
    box = (-20.0, 0.0, 30.0, 11.0)

    def in_time(r: TileRow) -> bool:
        return r.time is not None and start <= r.time <= end

    def in_box(r: TileRow) -> bool:
        if r.footprint is None:
            return False
        west, _, east, _ = r.footprint.bbox()
        return any(west + turn <= box[2] and east + turn >= box[0] for turn in (-360, 0, 360)) and west <= east

    cases = [
        ({"time": (start, end)}, [r for r in rows if in_time(r)]),
        ({"bbox": box}, [r for r in rows if in_box(r)]),
        ({"sensor": "naip-rgb"}, [r for r in rows if r.sensor == "naip-rgb"]),
        (
            {"time": (start, end), "bbox": box, "sensor": "naip-rgb"},
            [r for r in rows if in_time(r) and in_box(r) and r.sensor == "naip-rgb"],
        ),
    ]
    for conditions, matching in cases:
        assert 0 < len(matching) < N
        hits = scanner.search(QUERY, 10, **conditions)  # type: ignore[arg-type]
        assert hits.matches == len(matching)
        assert hits.table["id"].to_pylist() == expected(matching, 10)[0]


def test_both_ends_of_a_time_range_count_and_sides_may_be_open(scanner: Scanner) -> None:
    third = START + timedelta(days=3)
    assert scanner.search(QUERY, N, time=(third, third)).table["id"].to_pylist() == ["row-00003"]
    assert scanner.search(QUERY, N, time=(None, third)).matches == 4
    assert scanner.search(QUERY, N, time=(third, None)).matches == N - 3 - 1, "row 6 has no time"


def test_a_box_across_the_antimeridian(scanner: Scanner, rows: list[TileRow]) -> None:
    hits = scanner.search(QUERY, N, bbox=(178.5, 0, -178.5, 20))
    found = {r["id"]: (r["bbox"]["xmin"], r["bbox"]["xmax"]) for r in hits.table.to_pylist()}
    placed = {r.id: r.footprint.bbox() for r in rows if r.footprint is not None}
    assert set(found) == {i for i, (w, _, e, _) in placed.items() if w > e or e >= 178.5 or w <= -178.5}
    assert any(w > e for w, e in found.values())


def test_rows_without_a_place_or_a_time_never_meet_a_condition_on_it(scanner: Scanner) -> None:
    everywhere = scanner.search(QUERY, N, bbox=(-180, -90, 180, 90)).table["id"].to_pylist()
    assert len(everywhere) == N - 1
    assert "row-00005" not in everywhere
    always = scanner.search(QUERY, N, time=(datetime(1900, 1, 1, tzinfo=UTC), None)).table["id"].to_pylist()
    assert len(always) == N - 1
    assert "row-00006" not in always


def test_a_condition_that_nothing_meets_gives_an_empty_answer(scanner: Scanner) -> None:
    hits = scanner.search(QUERY, 5, bbox=(0, 80, 1, 81))
    assert (len(hits), hits.matches) == (0, 0)
    assert hits.table.column_names[-1] == "score"


def test_equal_rows_are_ordered_by_id_wherever_they_lie(tmp_path: Path) -> None:
    # more rows than one piece of the product, so that equal rows meet different code in the matrix library
    rng = np.random.default_rng(1)
    same = rng.standard_normal(256)
    order = rng.permutation(2500)
    made = [make_row(int(i), same if i % 5 else rng.standard_normal(256)) for i in order]
    scanner = build(tmp_path / "a", made, dim=256)
    hits = scanner.search(same, 30)
    assert hits.table["id"].to_pylist() == [f"row-{i:05d}" for i in range(38) if i % 5][:30]
    assert len(set(hits.table["score"].to_pylist())) == 1


def test_retired_rows_are_not_found(tmp_path: Path, rows: list[TileRow]) -> None:
    build(tmp_path / "a", rows)
    with ArchiveWriter(tmp_path / "a", model="tiny-01", dim=DIM, tile=1) as w:
        w.retire("scene-1.tif", "scene-1.tif", "the file has changed")
    hits = Scanner(Archive.open(tmp_path / "a")).search(QUERY, N)
    assert hits.table["id"].to_pylist() == expected([r for r in rows if r.source != "scene-1.tif"], N)[0]


def test_an_empty_archive_answers_with_nothing(tmp_path: Path) -> None:
    scanner = build(tmp_path / "a", [])
    assert len(scanner.search(QUERY, 3)) == 0
    with pytest.raises(ArchiveError, match="none of its tiles has a place"):
        scanner.at(0, 0)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"query": np.ones(DIM + 1)}, rf"query: shape: got \[1, {DIM + 1}\], expected \[N, {DIM}\]"),
        ({"query": np.zeros(DIM)}, "query: got length 0"),
        ({"query": np.full(DIM, np.nan)}, "query: got length nan"),
        ({"query": QUERY, "model": "croma-base-9f"}, "got croma-base-9f, expected tiny-01"),
        ({"query": QUERY, "k": 0}, "number of results: got 0"),
        ({"query": QUERY, "k": 10**7}, "number of results: got 10000000, expected 1 to 1,000,000"),
        (
            {"query": QUERY, "sensor": "sentinel-9"},
            "got 'sentinel-9', expected one in this archive: naip-rgb, sent",
        ),
        ({"query": QUERY, "bbox": (0, 50, 10, 40)}, "south <= north"),
        ({"query": QUERY, "time": (datetime(2020, 1, 1), None)}, "a time with its zone"),
        ({"query": QUERY, "time": (START, START - timedelta(1))}, "a start that is not after the end"),
    ],
)
def test_what_cannot_be_answered_is_refused(scanner: Scanner, arguments: dict[str, object], told: str) -> None:
    with pytest.raises(AlidadeError, match=told):
        scanner.search(**arguments)  # type: ignore[arg-type]


def test_the_tile_at_a_point_is_the_one_with_the_nearest_centre(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    boxes = [(0, 0, 10, 10), (4, 4, 8, 8), (7, 7, 20, 20), (179, 0, -179, 2)]
    made = [make_row(i, rng.standard_normal(DIM), footprint=Footprint.box(b)) for i, b in enumerate(boxes)]
    made.append(make_row(9, rng.standard_normal(DIM), footprint=Footprint.around([30, 40, 40], [0, 0, 10])))
    scanner = build(tmp_path / "a", made)
    found = {p: scanner.at(*p).row["id"] for p in [(1, 1), (6.5, 6.5), (7.8, 7.8), (19, 19), (-179.5, 1), (180, 1)]}
    assert list(found.values()) == [f"row-0000{i}" for i in (0, 1, 1, 2, 3, 3)]
    place = scanner.at(39, 1)
    assert (place.row["id"], place.row["col"]) == ("row-00009", 9)
    assert scanner.search(place.embedding, 1).table["id"].to_pylist() == ["row-00009"]
    # inside the box of the triangle, outside the triangle itself
    with pytest.raises(ArchiveError, match="tile at 31,9: got none, expected a point inside the archive"):
        scanner.at(31, 9)
    with pytest.raises(GridError, match="point: got 200,95"):
        scanner.at(200, 95)


def test_how_a_user_writes_conditions() -> None:
    assert parse_bbox("-5.2,47.1, 8.3,55") == (-5.2, 47.1, 8.3, 55.0)
    assert parse_point("8.55,47.37") == (8.55, 47.37)
    day = (datetime(2020, 6, 1, tzinfo=UTC), datetime(2020, 6, 1, 23, 59, 59, 999000, tzinfo=UTC))
    assert parse_time("2020-06-01") == day
    assert parse_time("2020-06-01/2020-06-01") == day
    assert parse_time("2020-06-01/..") == (day[0], None)
    assert parse_time("/2020-06-01") == (None, day[1])
    noon = datetime(2020, 6, 1, 12, tzinfo=UTC)
    assert parse_time("2020-06-01T12:00:00/2020-06-01T12:00:00Z") == (noon, noon)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_bbox, "1,2,3"),
        (parse_bbox, "a,b,c,d"),
        (parse_bbox, "0,0,nan,1"),
        (parse_point, "200,0"),
        (parse_point, "8.5"),
        (parse_point, "nan,nan"),
        (parse_time, "yesterday"),
        (parse_time, ""),
        (parse_time, "../.."),
        (parse_time, "2021-01-01/2020-01-01"),
        (parse_time, "2020-13-01/.."),
    ],
)
def test_what_a_user_must_not_write(parse: object, text: str) -> None:
    with pytest.raises(AlidadeError, match=r"got .*expected"):
        parse(text)  # type: ignore[operator]

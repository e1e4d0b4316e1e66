"""The LanceDB index against the exact scanner: the same rows under every condition, after every change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alidade.errors import ArchiveError
from alidade.imagery.footprint import Footprint
from alidade.imagery.polygon import Polygon
from alidade.search import index as index_module
from alidade.search.archive import Archive
from alidade.search.filters import Filter
from alidade.search.index import Index
from alidade.search.index_build import build_index
from alidade.search.index_format import IndexUnusable, digest_of
from alidade.search.index_where import ANYWHERE, cells_of, where
from alidade.search.manifest import Coverage, ranges_of
from alidade.search.planner import PlannedStore, open_store
from alidade.search.scan import Scanner
from alidade.search.schema import TileRow
from alidade.search.writer import ArchiveWriter

DIM, N, EXACT = 24, 1500, 150
START = datetime(2020, 1, 1, tzinfo=UTC)
ODD = "it's"
SENSORS = ("naip-rgb", "sentinel-1-rtc", ODD)
EDGES = [-180.0, -179.5, -178.0, -90.0, -2.0, -0.5, 0.0, 1.5, 2.0, 90.0, 178.0, 179.5, 180.0]


def make_row(i: int, rng: np.random.Generator, **changes: object) -> TileRow:
    width = (0.5, 2.0, 7.0)[i % 3]
    west = EDGES[i % len(EDGES)] + (i % 2) * rng.uniform(-1, 1)
    south = -90 + (i * 13) % 170
    values: dict[str, object] = {
        "id": f"row-{i:05d}",
        # corners beyond 180 wrap: some of these tiles cross the antimeridian
        "footprint": Footprint.around([west, west + width, west + width, west], [south] * 2 + [south + width] * 2),
        "time": START + timedelta(days=i % 400),
        "sensor": SENSORS[i % 3],
        "gsd_m": (0.6, 10.0, 10.004)[i % 3],
        "valid_share": 1.0,
        "cloud_share": None if i % 2 else 0.25,
        "source": f"scene-{i % 3}.tif",
        "source_id": f"scene-{i % 3}.tif",
        "row": 0,
        "col": i,
        "height": 1,
        "width": 1,
        "embedding": rng.standard_normal(DIM),
    }
    return TileRow(**{**values, **changes})  # type: ignore[arg-type]


def write(path: Path, rows: list[TileRow]) -> None:
    with ArchiveWriter(path, model="tiny-01", dim=DIM, tile=1) as writer:
        for source in dict.fromkeys(r.source for r in rows):
            some = [r for r in rows if r.source == source]
            tiles = ranges_of(r.col for r in some)
            coverage = Coverage(source=source, relative=source, source_id=source, total=100_000, tiles=tiles, empty=())
            writer.append(some, [coverage])


def made_rows() -> list[TileRow]:
    rng = np.random.default_rng(0)
    rows = [make_row(i, rng) for i in range(N)]
    rows[5] = make_row(5, rng, footprint=None)
    rows[6] = make_row(6, rng, time=None)
    rows[7] = make_row(7, rng, footprint=Footprint.polar_cap(80.0, 90))
    # the same picture many times: scores tie, and the ids decide
    same = rng.standard_normal(DIM)
    for i in range(300, 330):
        rows[i] = make_row(i, rng, embedding=same)
    return rows


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("index") / "a"
    write(path, made_rows())
    assert build_index(path, exact_rows=EXACT).action == "made"
    return path


@pytest.fixture(scope="module")
def scanner(path: Path) -> Scanner:
    return Scanner(Archive.open(path))


@pytest.fixture(scope="module", params=["in memory", "by LanceDB"])
def store(path: Path, request: pytest.FixtureRequest) -> PlannedStore:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "MEMORY_ROWS", N if request.param == "in memory" else N - 1)
        opened = open_store(path)
    assert opened.indexed == N
    assert opened.notes == []
    return opened


@pytest.fixture(scope="module")
def index(store: PlannedStore) -> Index:
    assert store._index is not None
    return store._index


# of sides that differ by less than rounding nobody can say whether they touch
LON = st.sampled_from(EDGES) | st.integers(-180_000, 180_000).map(lambda n: n / 1000)
LAT = st.sampled_from([-90.0, -1.0, 0.0, 2.0, 79.0, 90.0]) | st.integers(-90_000, 90_000).map(lambda n: n / 1000)
DAY = st.none() | st.integers(-3, 410).map(lambda d: START + timedelta(days=d))


@st.composite
def filters(draw: st.DrawFn) -> Filter:
    south, north = sorted((draw(LAT), draw(LAT)))
    start, end = draw(DAY), draw(DAY)
    if start is not None and end is not None and start > end:
        start, end = end, start
    timed = (start, end) if (start or end) and draw(st.booleans()) else None
    box = (draw(LON), south, draw(LON), north) if draw(st.booleans()) else None
    gsd = draw(st.sampled_from([None, (None, 1.0), (10.0, None), (10.0, 10.0), (0.6, 10.0)]))
    return Filter(bbox=box, time=timed, sensor=draw(st.sampled_from([None, *SENSORS])), gsd=gsd)


@given(filters())
@settings(max_examples=60)
def test_conditions_leave_the_rows_that_the_scanner_leaves(index: Index, scanner: Scanner, conditions: Filter) -> None:
    wanted = {i for i in scanner.find(np.ones(DIM), N, conditions).table["id"].to_pylist()}
    rows = index.matching(conditions)
    assert set(index.take(rows)["id"].to_pylist()) == wanted
    assert index.count(conditions) == len(rows) == len(wanted)


@pytest.mark.parametrize(
    "conditions",
    [
        Filter(),
        Filter(sensor=ODD),
        Filter(bbox=(178.5, -90, -178.5, 90)),
        Filter(bbox=(-180, -90, 180, 90)),
        Filter(bbox=(-180, 85, 180, 90)),
        Filter(bbox=(0, 0, 3, 3), time=(START, START + timedelta(days=200)), sensor="naip-rgb"),
        Filter(time=(None, START)),
        Filter(gsd=(10.0, 10.0)),
        Filter(polygon=Polygon(parts=((((-3, -40), (60, -40), (60, 50), (-3, -40)),),))),
        Filter(bbox=(3.0, 88.0, 3.1, 88.1), sensor="sentinel-1-rtc"),
    ],
)
@pytest.mark.parametrize("k", [1, 10, N])
def test_answers_are_the_scanners_row_by_row(store: PlannedStore, scanner: Scanner, conditions: Filter, k: int) -> None:
    query = np.random.default_rng(3).standard_normal(DIM).astype(np.float32)
    wanted, found = scanner.find(query, k, conditions), store.search(query, k, conditions)
    assert found.table.schema.names == wanted.table.schema.names
    assert found.table.to_pylist() == wanted.table.to_pylist()
    assert (found.matches, found.model, found.query) == (wanted.matches, wanted.model, wanted.query)
    assert store.count(conditions) == wanted.matches
    assert (found.scanned == found.matches) == found.exact


def test_equal_scores_are_ordered_by_id(store: PlannedStore, scanner: Scanner) -> None:
    query = scanner.embeddings[scanner.table["id"].to_pylist().index("row-00310")].astype(np.float32)
    found = store.search(query, 10, Filter()).table
    assert found["id"].to_pylist() == [f"row-{i:05d}" for i in range(300, 310)]
    assert found["score"].to_pylist() == pytest.approx([1.0] * 10, abs=1e-6)


def test_rows_come_in_the_order_asked_with_their_embeddings(store: PlannedStore, scanner: Scanner) -> None:
    ids = ["row-00005", "row-01499", "row-00000", "row-00005", "row-00006"]
    assert store.rows(ids).to_pylist() == scanner.rows(ids).to_pylist()
    assert store.rows(ids).schema.names == scanner.rows(ids).schema.names
    assert store.rows([]).num_rows == 0
    with pytest.raises(ArchiveError, match=r"tile id: got 'nobody'"):
        store.rows(["row-00001", "nobody"])
    with pytest.raises(ArchiveError, match=r"tile id: got 'nobody', \"it's\""):
        store.rows(["nobody", "it's"])


@pytest.mark.parametrize(
    ("vector", "k", "conditions", "told"),
    [
        (np.ones(3), 5, Filter(), r"query: shape: got \[1, 3\]"),
        (np.zeros(DIM), 5, Filter(), "length 0.0"),
        (np.ones(DIM), 0, Filter(), "number of results: got 0"),
        (np.ones(DIM), 5, Filter(sensor="nix"), "sensor: got 'nix'.*it's, naip-rgb, sentinel-1-rtc"),
    ],
)
def test_what_cannot_be_answered_is_refused_as_by_the_scanner(
    store: PlannedStore, scanner: Scanner, vector: np.ndarray, k: int, conditions: Filter, told: str
) -> None:
    for ask in (store.search, scanner.find):
        with pytest.raises(ArchiveError, match=told):
            ask(vector.astype(np.float32), k, conditions)


def test_cells_hold_small_tiles_and_look_everywhere_for_others() -> None:
    boxes = np.array([[0, 0, 1, 1], [-180, -90, -178, -88], [0, 0, 4.5, 1], [179.5, 0, -179.5, 1], [np.nan] * 4]).T
    cells = cells_of(boxes)
    assert cells.tolist() == [22 * 90 + 45, 0, ANYWHERE, ANYWHERE, ANYWHERE]
    small = where(Filter(bbox=(0, 0, 0.1, 0.1)))
    assert small is not None
    assert f"cell IN ({ANYWHERE}, " in small
    assert small.split(")")[0].count(",") == 4
    world = where(Filter(bbox=(-180, -90, 180, 90)))
    assert world is not None
    assert "cell" not in world
    assert where(Filter()) is None


def test_a_second_run_leaves_a_whole_index_alone(path: Path, index: Index) -> None:
    kept = build_index(path, exact_rows=EXACT)
    assert (kept.action, kept.rows, kept.repairs) == ("kept", N, ())
    assert kept.sentence() == f"The index is up to date: 1,500 rows, {kept.bytes / 1e6:.1f} MB."
    assert Index.open(Archive.open(path)).header == index.header


def test_an_empty_archive_can_be_indexed(tmp_path: Path) -> None:
    with ArchiveWriter(tmp_path / "a", model="tiny-01", dim=DIM, tile=1):
        pass
    assert build_index(tmp_path / "a").rows == 0
    store = open_store(tmp_path / "a")
    hits = store.search(np.ones(DIM, np.float32), 5, Filter(bbox=(0, 0, 1, 1)))
    assert (len(hits), hits.matches, hits.exact, len(store)) == (0, 0, True, 0)
    assert hits.table.schema.names[-1] == "score"


def ids_of(store: PlannedStore, conditions: Filter | None = None) -> list[str]:
    found = store.search(np.ones(DIM, np.float32), 10_000, conditions or Filter())
    return sorted(found.table["id"].to_pylist())


def more(start: int, count: int, source: str) -> list[TileRow]:
    rng = np.random.default_rng(start)
    return [make_row(i, rng, source=source, source_id=source) for i in range(start, start + count)]


def test_added_shards_extend_the_index_and_retired_rows_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path, more(0, 400, "one"))
    first = build_index(path, exact_rows=100)
    assert (first.action, first.partitions > 1) == ("made", True)
    opened_before = open_store(path)
    write(path, more(400, 60, "two"))
    second = build_index(path, exact_rows=100)
    assert (second.action, second.added, second.rows) == ("extended", 60, 460)
    assert "Added 60 rows to the index" in second.sentence()
    store, scanner = open_store(path), Scanner(Archive.open(path))
    assert ids_of(store) == [f"row-{i:05d}" for i in range(460)]
    query = scanner.embeddings[430].astype(np.float32)
    wide = store.search(query, 5, Filter())
    assert wide.table["id"][0].as_py() == "row-00430"
    box = Filter(bbox=(-1, -90, 3, 90))
    assert store.search(query, 50, box).table.to_pylist() == scanner.find(query, 50, box).table.to_pylist()
    # who had opened the index before goes on with what it knew
    assert ids_of(opened_before) == [f"row-{i:05d}" for i in range(400)]

    with ArchiveWriter(path, model="tiny-01", dim=DIM, tile=1) as writer:
        writer.retire("one", "one", "the file has changed")
    third = build_index(path, exact_rows=100)
    assert (third.action, third.rows) == ("made", 60)
    assert ids_of(open_store(path)) == [f"row-{i:05d}" for i in range(400, 460)]
    assert len(list((path / "index").glob("g-*"))) == 1


def test_many_added_rows_make_a_new_index(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path, more(0, 80, "one"))
    assert build_index(path, exact_rows=100).short == 0
    write(path, more(80, 10, "two"))
    assert build_index(path, exact_rows=100).action == "extended"
    write(path, more(90, 20, "three"))
    outgrown = build_index(path, exact_rows=100)
    assert (outgrown.action, outgrown.short) == ("made", DIM)
    for start in (110, 125, 140):
        write(path, more(start, 15, f"four-{start}"))
        assert build_index(path, exact_rows=100).action == "extended"
    write(path, more(155, 15, "five"))
    assert build_index(path, exact_rows=100).action == "made", "more than half of the rows are new to the partitions"
    assert ids_of(open_store(path)) == [f"row-{i:05d}" for i in range(170)]


def test_the_digest_tells_states_apart(tmp_path: Path) -> None:
    write(tmp_path / "a", more(0, 5, "one"))
    first = digest_of(Archive.open(tmp_path / "a"))
    assert digest_of(Archive.open(tmp_path / "a")) == first
    write(tmp_path / "a", more(5, 5, "two"))
    assert digest_of(Archive.open(tmp_path / "a")) != first
    with pytest.raises(IndexUnusable, match=r"index: got none.*alidade index"):
        Index.open(Archive.open(tmp_path / "a"))

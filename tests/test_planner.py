"""Which way a question is answered, how good the answer is at every selectivity, and the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import typer
from typer.testing import CliRunner

from alidade.cli import index as command
from alidade.imagery.polygon import Polygon
from alidade.search import bench_index as bench
from alidade.search import planner
from alidade.search.archive import Archive
from alidade.search.filters import Filter
from alidade.search.index import Index
from alidade.search.index_build import build_index
from alidade.search.planner import PlannedStore, open_store
from alidade.search.scan import Hits, Scanner
from alidade.search.store import ExactStore, Store
from test_index import DIM, make_row, write

ROWS, EXACT, K = 20_000, 500, 50


@pytest.fixture(scope="module")
def made() -> bench.MadeRows:
    return bench.MadeRows(ROWS)


@pytest.fixture(scope="module")
def path(made: bench.MadeRows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planner") / "a"
    bench.write_archive(path, made)
    build_index(path, exact_rows=EXACT)
    return path


@pytest.fixture(scope="module")
def scanner(path: Path) -> Scanner:
    return Scanner(Archive.open(path))


@pytest.fixture
def store(path: Path) -> PlannedStore:
    return open_store(path, say=pytest.fail)


@pytest.mark.parametrize("share", bench.SHARES)
def test_recall_at_every_selectivity(
    made: bench.MadeRows, scanner: Scanner, store: PlannedStore, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # so that the index is asked, too, where at this size comparing every match would be less work
    monkeypatch.setattr(planner, "_WORTHWHILE", 1.0)
    conditions = Filter(bbox=made.box(share))
    recalls, exact = [], []
    for query in made.queries(25):
        wanted, found = scanner.find(query, K, conditions), store.search(query, K, conditions)
        assert len(found) == len(wanted) == min(K, found.matches)
        assert found.matches == wanted.matches == pytest.approx(share * ROWS, rel=0.2, abs=5)
        exact.append(found.exact)
        scores = found.table["score"].to_numpy()
        # every score is the exact cosine of its row, and they fall
        assert (np.diff(scores) <= 0).all()
        everything = dict(zip(wanted.table["id"].to_pylist(), wanted.table["score"].to_pylist(), strict=True))
        assert all(everything.get(i, s) == s for i, s in zip(found.table["id"].to_pylist(), scores, strict=True))
        recalls.append(bench.recall_of(found, wanted))
    assert np.mean(recalls) >= 0.99
    assert np.mean(exact) == 1 if share < 0.05 else np.mean(exact) < 0.2


def test_recall_counts_what_is_missing(scanner: Scanner) -> None:
    true = scanner.find(np.ones(bench.DIM), K, Filter())

    def part(order: list[int]) -> Hits:
        return Hits(
            table=true.table.take(order), model="", query={}, vector=true.vector, matches=0, scanned=0, seconds=0.0
        )

    assert bench.recall_of(part(list(range(K))), true) == 1.0
    assert bench.recall_of(part(list(range(K - 1))), true) == 0.0, "fewer rows than there are"
    worse = scanner.find(np.ones(bench.DIM), 2 * K, Filter()).table
    mixed = pa.concat_tables([true.table.slice(0, 40), worse.slice(60, 10)])
    half = Hits(table=mixed, model="", query={}, vector=true.vector, matches=0, scanned=0, seconds=0.0)
    assert bench.recall_of(half, true) == 0.8


def test_a_hurried_index_fails_the_gate(
    made: bench.MadeRows, scanner: Scanner, store: PlannedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the gate must see an index that looks too briefly: as many candidates as results, in one partition
    monkeypatch.setattr(Index, "nearest", lambda self, vector, k, _: self.candidates(vector, k, 1, None))
    recalls = [bench.recall_of(store.search(q, K, Filter()), scanner.find(q, K, Filter())) for q in made.queries(10)]
    assert np.mean(recalls) < 0.95


def test_the_plan_is_told(made: bench.MadeRows, store: PlannedStore) -> None:
    query = made.queries(1)[0]
    wide = store.search(query, K, Filter())
    index = store._index
    assert index is not None
    assert (wide.exact, wide.matches, wide.scanned) == (False, ROWS, index.wanted(K))
    assert store.exact_limit == EXACT
    few = store.search(query, K, Filter(bbox=made.box(0.01)))
    assert (few.exact, few.scanned) == (True, few.matches)
    most = store.search(query, ROWS, Filter())
    assert (most.exact, most.scanned, len(most)) == (True, ROWS, ROWS)
    west, _, east, _ = made.box(0.1) or (0, 0, 0, 0)
    area = Polygon(parts=((((west, -89), (east, -89), (east, 89), (west, 89), (west, -89)),),))
    drawn = store.search(query, K, Filter(polygon=area))
    assert drawn.exact
    assert drawn.matches > store.exact_limit


def test_a_query_that_short_vectors_hardly_describe_is_compared_with_all(store: PlannedStore, scanner: Scanner) -> None:
    index = store._index
    assert index is not None
    away = np.linalg.svd(index._basis, full_matrices=True)[2][-1].astype(np.float32)
    assert index.share(away) < 1e-6 < index.header.least_share
    found = store.search(away, K, Filter())
    assert found.exact
    assert found.table.to_pylist() == scanner.find(away, K, Filter()).table.to_pylist()


def test_too_few_candidates_are_made_up_for(
    made: bench.MadeRows, store: PlannedStore, scanner: Scanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Index, "nearest", lambda *_: np.arange(K - 1))
    query = made.queries(1)[0]
    found = store.search(query, K, Filter())
    assert found.exact
    assert found.table.to_pylist() == scanner.find(query, K, Filter()).table.to_pylist()


def test_planner_and_scanner_are_the_same_kind_of_store(store: PlannedStore, scanner: Scanner, path: Path) -> None:
    exact = ExactStore(scanner)
    stores: list[Store] = [store, exact]
    told = [(s.archive_id, s.model, s.dim, len(s), s.count(Filter(bbox=(0, 0, 10, 50)))) for s in stores]
    assert told[0] == told[1]
    assert told[0][:4] == (str(path), "bench", bench.DIM, ROWS)
    ids = ["bench-7", "bench-19999"]
    assert store.rows(ids).to_pylist() == exact.rows(ids).to_pylist()


def test_the_benchmark_has_a_row_for_every_promise(tmp_path: Path) -> None:
    rows = bench.bench_index(rows=3000, rounds=3, directory=tmp_path, exact_rows=200)
    promised = [r for r in rows if r.target]
    assert len(promised) == 1 + 3 * len(bench.SHARES) + 1
    recalls = [r for r in rows if "recall@50" in r.name]
    assert [r.name.split(" %")[0] for r in recalls] == ["100", "10", "1", "0.10", "0.01"]
    assert all(r.ok and 0.99 <= r.value <= 1 for r in recalls)
    assert all(r.ok == (r.value <= float(r.target.split()[1])) for r in promised if r not in recalls)
    assert list(tmp_path.iterdir()) == []


def test_made_rows_are_the_same_every_time_and_alike_where_they_are_near(made: bench.MadeRows) -> None:
    vectors = made.vectors(0, 2000)
    assert (bench.MadeRows(ROWS).vectors(0, 2000) == vectors).all()
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines, distances = (
        vectors @ vectors.T,
        np.linalg.norm(made.places[:2000, None] - made.places[None, :2000], axis=2),
    )
    near, far = cosines[(distances > 0) & (distances < 0.03)].mean(), cosines[distances > 0.5].mean()
    assert near > far + 0.05


def test_the_command_makes_and_mends(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write(tmp_path / "a", [make_row(i, rng) for i in range(30)])
    app = typer.Typer()
    app.callback()(lambda: None)
    command.register(app)
    runner = CliRunner()
    first = runner.invoke(app, ["index", str(tmp_path / "a")])
    assert first.exit_code == 0
    assert first.stdout.startswith("Made the index in ")
    assert "30 rows" in first.stdout
    assert "every match is compared" in first.stdout
    (tmp_path / "a" / "index" / "current.json").write_text("{}")
    second = runner.invoke(app, ["index", str(tmp_path / "a")])
    assert "repaired: The index was unusable (a damaged current.json (KeyError))" in second.stderr
    third = json.loads(runner.invoke(app, ["index", str(tmp_path / "a"), "--json"]).stdout)
    assert (third["action"], third["rows"], third["repairs"]) == ("kept", 30, [])
    again = json.loads(runner.invoke(app, ["index", str(tmp_path / "a"), "--rebuild", "--json"]).stdout)
    assert (again["action"], again["added"]) == ("made", 30)
    assert DIM == Archive.open(tmp_path / "a").header.dim

"""One question of many parts: the written arithmetic, the tile at a place, labels, and what cannot be asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from alidade.errors import AlidadeError, ArchiveError, GridError, ModelError
from alidade.imagery.footprint import Footprint
from alidade.imagery.polygon import parse_geojson
from alidade.models.text.encoder import TextError
from alidade.search.archive import Archive
from alidade.search.feedback import PROBE_FROM, probe
from alidade.search.filters import Filter
from alidade.search.manifest import Coverage
from alidade.search.query import QueryImage, Question, answer, query_vector, tile_at
from alidade.search.scan import Scanner
from alidade.search.schema import TileRow
from alidade.search.store import ExactStore
from alidade.search.writer import ArchiveWriter
from search_scenes import tiny_model

DIM, N = 16, 60


def row(i: int, embedding: np.ndarray, footprint: Footprint | None) -> TileRow:
    return TileRow(
        id=f"t{i:02d}",
        footprint=footprint,
        time=None,
        sensor=("naip-rgb", "sentinel-1-rtc")[i % 2],
        gsd_m=(1.0, 10.0)[i % 2],
        valid_share=1.0,
        cloud_share=None,
        source="s",
        source_id="s",
        row=0,
        col=i,
        height=1,
        width=1,
        embedding=embedding,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ExactStore:
    rng = np.random.default_rng(1)
    made = [row(i, rng.standard_normal(DIM), Footprint.box((i, 0, i + 1.5, 1))) for i in range(N - 2)]
    made.append(row(N - 2, rng.standard_normal(DIM), Footprint.box((179, 0, -179, 2))))
    made.append(row(N - 1, rng.standard_normal(DIM), None))
    path = tmp_path_factory.mktemp("query") / "a"
    coverage = Coverage(source="s", relative="s", source_id="s", total=N, tiles=((0, N),), empty=())
    with ArchiveWriter(path, model="tiny-01", dim=DIM, tile=1) as w:
        w.append(made, [coverage])
    return ExactStore(Scanner(Archive.open(path)))


class Vocabulary:
    """Words of the archive's space whose vectors are known: a model as small as can be."""

    identity = "tiny-01"
    vectors = MappingProxyType({"water": np.eye(DIM)[0], "forest": np.eye(DIM)[1]})

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self.vectors[text] for text in texts]).astype(np.float32)


WORDS = Vocabulary()


def stored(store: ExactStore, *ids: str) -> np.ndarray:
    """Embeddings in float64, of unit length."""
    vectors = np.stack([store.scanner.embeddings[int(i[1:])].astype(float) for i in ids])
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def image(name: str, seed: int, length: float = 1.0) -> QueryImage:
    vector = np.random.default_rng(seed).standard_normal(DIM)
    return QueryImage(name=name, vector=(length * vector / np.linalg.norm(vector)).astype(np.float32))


def unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / np.linalg.norm(vector))


def same(vector: np.ndarray, expected: np.ndarray) -> None:
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, unit(expected), atol=2e-7)


def test_each_part_alone_is_its_vector(store: ExactStore) -> None:
    same(query_vector(Question(text="water"), store, WORDS), np.eye(DIM)[0])
    one = image("a.tif", 1)
    same(query_vector(Question(images=(one,)), store), one.vector.astype(float))
    same(query_vector(Question(place=(30.7, 0.5)), store), stored(store, "t30")[0])
    same(query_vector(Question(positive=("t04",)), store), stored(store, "t04")[0])


def test_parts_of_each_kind_weigh_the_same_whatever_their_number_and_length(store: ExactStore) -> None:
    images = (image("a.tif", 1, 3.0), image("b.tif", 2), image("c.tif", 3, 0.1))
    rows = stored(store, "t04", "t05")
    found = query_vector(
        Question(text="water", images=images, place=(30.7, 0.5), positive=("t04", "t05")), store, WORDS
    )
    looks = unit(np.mean([unit(i.vector.astype(float)) for i in images], axis=0))
    same(found, (np.eye(DIM)[0] + looks + stored(store, "t30")[0] + unit(rows.mean(0))) / 4)


def test_for_and_against_of_one_kind_is_rocchio(store: ExactStore) -> None:
    water, forest = np.eye(DIM)[:2]
    same(query_vector(Question(text="water", negative_text="forest"), store, WORDS), water + (water - forest))
    a, b, c = (image(n, s) for n, s in (("a", 1), ("b", 2), ("c", 3)))
    liked = (a.vector.astype(float) + b.vector.astype(float)) / 2
    question = Question(images=(a, b), negative_images=(c,))
    same(query_vector(question, store), liked + (liked - c.vector.astype(float)))
    likes, dislikes = stored(store, "t01", "t02", "t03").mean(0), stored(store, "t04", "t05").mean(0)
    question = Question(positive=("t01", "t02", "t03"), negative=("t04", "t05"))
    same(query_vector(question, store), likes + (likes - dislikes))


def test_what_is_only_against_is_taken_off_the_whole(store: ExactStore) -> None:
    water = np.eye(DIM)[0]
    against = stored(store, "t04", "t05")
    found = query_vector(Question(text="water", negative=("t04", "t05")), store, WORDS)
    same(found, water + (water - unit(against.mean(0))))
    c = image("c", 3)
    whole = (water + stored(store, "t30")[0]) / 2
    pushes = (c.vector.astype(float) + unit(against.mean(0))) / 2
    question = Question(text="water", place=(30.7, 0.5), negative_images=(c,), negative=("t04", "t05"))
    same(query_vector(question, store, WORDS), whole + (whole - pushes))


def test_ten_labels_of_both_signs_are_a_probe(store: ExactStore) -> None:
    ids = [f"t{i:02d}" for i in range(PROBE_FROM)]
    rows = stored(store, *ids)
    same(query_vector(Question(positive=tuple(ids[:6]), negative=tuple(ids[6:])), store), probe(rows[:6], rows[6:]))
    for liked, disliked, how in ((6, 4, "probe"), (5, 4, "rocchio"), (10, 0, "mean")):
        asked = Question(positive=tuple(ids[:liked]), negative=tuple(ids[liked : liked + disliked]))
        assert answer(asked, store).query["examples"] == how


def test_the_answer_is_the_search_for_that_vector(store: ExactStore) -> None:
    area = parse_geojson({"type": "Polygon", "coordinates": [[[3, -1], [40, -1], [40, 2], [3, 2], [3, -1]]]})
    conditions = Filter(sensor="naip-rgb", polygon=area, gsd=(None, 5.0))
    question = Question(
        text="water", negative_text="forest", positive=("t04", "t04"), negative=("t05",), conditions=conditions, k=7
    )
    hits = answer(question, store, WORDS, words="small (bank:1)")
    expected = store.search(query_vector(question, store, WORDS), 7, conditions)
    assert hits.table.equals(expected.table)
    assert (hits.matches, hits.exact, len(hits)) == (expected.matches, True, 7)
    assert hits.query == {
        "like": '"water" and 1 liked tile, not "forest" or 1 disliked tile',
        "k": 7,
        "text": "water",
        "negative_text": "forest",
        "positive": ["t04"],
        "negative": ["t05"],
        "examples": "rocchio",
        "words": "small (bank:1)",
        "sensor": "naip-rgb",
        "polygon": area.geojson(),
        "gsd": [None, 5.0],
    }


def test_a_question_in_a_few_words(store: ExactStore) -> None:
    images = (image("a.tif", 1), image("b.tif", 2))
    everything = Question(text="open water", images=images, place=(-99.154, 47.0185), positive=("t01", "t02"))
    assert everything.sentence() == '"open water" and a.tif and b.tif and the tile at -99.154,47.0185 and 2 liked tiles'
    assert Question(images=images[:1], negative_images=images[1:]).sentence() == "a.tif, not b.tif"
    hits = answer(Question(place=(30.7, 0.5), k=2), store, words="not used")
    assert hits.query == {"like": "the tile at 30.7,0.5", "k": 2, "place": [30.7, 0.5]}
    assert hits.table["id"][0].as_py() == "t30"


def test_labelled_tiles_can_be_left_out(store: ExactStore) -> None:
    liked, disliked = ("t00", "t02", "t04"), ("t01", "t06")
    with_them = answer(Question(positive=liked, negative=disliked, k=N), store)
    without = answer(Question(positive=liked, negative=disliked, k=N, keep_labelled=False), store)
    labels = {*liked, *disliked}
    assert labels < set(with_them.table["id"].to_pylist())
    assert without.table["id"].to_pylist() == [i for i in with_them.table["id"].to_pylist() if i not in labels]
    assert (with_them.matches, without.matches) == (N, N - 5)
    few = answer(Question(positive=liked, negative=disliked, k=4, keep_labelled=False), store)
    assert few.table["id"].to_pylist() == without.table["id"].to_pylist()[:4]
    assert few.query["k"] == 4
    radar = Filter(sensor="sentinel-1-rtc")
    narrowed = answer(Question(positive=liked, negative=disliked, k=N, conditions=radar, keep_labelled=False), store)
    assert narrowed.matches == len(narrowed) == N // 2 - 1, "of the labels only t01 is a radar tile"
    narrowed = answer(Question(positive=liked, k=N, conditions=radar, keep_labelled=False), store)
    assert narrowed.matches == len(narrowed) == N // 2
    everywhere = answer(Question(text="water", k=3, keep_labelled=False), store, WORDS)
    assert everywhere.matches == N


def test_the_tile_at_a_place_is_the_scanners(store: ExactStore) -> None:
    for place in ((0.2, 0.5), (10.2, 0.1), (10.49, 1.0), (57.1, 0.0), (179.5, 1.0), (-179.5, 1.0), (-180.0, 1.0)):
        assert tile_at(store, *place) == store.scanner.at(*place).row["id"]
    with pytest.raises(ArchiveError, match="tile at 100,80: got none, expected a point inside the archive"):
        tile_at(store, 100, 80)
    with pytest.raises(GridError, match="point: got 100,95"):
        tile_at(store, 100, 95)


ONE = image("a.tif", 1)
FAULTS: list[tuple[dict[str, object], type[AlidadeError], str]] = [
    ({}, ArchiveError, "query: got nothing that tiles shall be like"),
    ({"conditions": Filter(sensor="naip-rgb")}, ArchiveError, "query: got nothing that tiles shall be like"),
    ({"negative_text": "forest"}, ArchiveError, "query: got only what tiles shall not be like"),
    ({"negative_images": (ONE,)}, ArchiveError, "query: got only what tiles shall not be like"),
    ({"negative": ("t01",)}, ArchiveError, "query: got only what tiles shall not be like"),
    ({"text": ""}, ArchiveError, "text of the query: got an empty text"),
    ({"text": " \n"}, ArchiveError, "text of the query: got an empty text"),
    ({"text": "water", "negative_text": ""}, ArchiveError, "text of the query: got an empty text"),
    ({"positive": ("a", "b"), "negative": ("b",)}, ArchiveError, "labels: got 'b' on both sides, expected each tile"),
    ({"positive": ("a", "b"), "negative": ("b", "a")}, ArchiveError, "got 'a' on both sides, and 1 more"),
    ({"positive": tuple(map(str, range(10_001)))}, ArchiveError, "labels: got 10,001 tiles, expected at most 10,000"),
    ({"place": (200.0, 0.0)}, GridError, "point: got 200,0"),
    ({"text": "water", "k": 0}, ArchiveError, "number of results: got 0"),
    ({"text": "water", "k": 10**6 + 1}, ArchiveError, "number of results: got 1000001"),
]


@pytest.mark.parametrize(("asked", "kind", "told"), FAULTS)
def test_what_cannot_be_asked(asked: dict[str, object], kind: type[AlidadeError], told: str) -> None:
    with pytest.raises(kind, match=told) as caught:
        Question(**asked)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_what_cannot_be_answered(store: ExactStore) -> None:
    with pytest.raises(ArchiveError, match="tile id: got 'zzz'"):
        answer(Question(positive=("t01", "zzz")), store)
    with pytest.raises(ArchiveError, match="tile id: got 'zzz'"):
        answer(Question(text="water", negative=("zzz",)), store, WORDS)
    with pytest.raises(ArchiveError, match="text of the query: got no model"):
        answer(Question(text="water"), store)
    wrong = QueryImage(name="small.tif", vector=np.ones(DIM + 1, np.float32))
    with pytest.raises(ArchiveError, match=rf"small.tif: vector: shape: got \[1, {DIM + 1}\], expected \[N, {DIM}\]"):
        answer(Question(images=(wrong,)), store)
    nothing = QueryImage(name="zero.tif", vector=np.zeros(DIM, np.float32))
    with pytest.raises(ArchiveError, match="zero.tif: vector: got length 0"):
        answer(Question(images=(nothing,)), store)
    opposite = QueryImage(name="b.tif", vector=-ONE.vector)
    with pytest.raises(ArchiveError, match="query: got likes and dislikes that cancel out"):
        answer(Question(images=(ONE, opposite)), store)
    with pytest.raises(ArchiveError, match="tile at -50,50: got none"):
        answer(Question(place=(-50.0, 50.0)), store)


def test_models_that_are_another_or_know_no_words(store: ExactStore, tmp_path: Path) -> None:
    model = tiny_model()
    with pytest.raises(ArchiveError, match=f"model of the query: got {model.identity}, expected tiny-01, with which"):
        answer(Question(text="water"), store, model)
    path = tmp_path / "a"
    coverage = Coverage(source="s", relative="s", source_id="s", total=1, tiles=((0, 1),), empty=())
    with ArchiveWriter(path, model=model.identity, dim=model.dim, tile=1) as w:
        w.append([row(0, np.ones(model.dim), None)], [coverage])
    own = ExactStore(Scanner(Archive.open(path)))
    with pytest.raises(ModelError, match="tiny: text: got a model without words"):
        answer(Question(text="water"), own, model)
    assert len(answer(Question(positive=("t00",)), own)) == 1
    assert issubclass(TextError, AlidadeError)


def test_an_empty_archive_answers_with_nothing(tmp_path: Path) -> None:
    with ArchiveWriter(tmp_path / "a", model="tiny-01", dim=DIM, tile=1):
        pass
    empty = ExactStore(Scanner(Archive.open(tmp_path / "a")))
    hits = answer(Question(text="water"), empty, WORDS)
    assert (len(hits), hits.matches) == (0, 0)
    with pytest.raises(ArchiveError, match="tile at 0,0: got none"):
        answer(Question(place=(0.0, 0.0)), empty)

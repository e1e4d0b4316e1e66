"""What a link says, what the browser is told, and what sentences stand on the page; no browser here."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pydantic", reason="the extra serve is not installed")

from alidade.errors import AlidadeError, ArchiveError
from alidade.imagery.footprint import Footprint
from alidade.search.scan import Hits
from alidade.search.schema import TileRow, embeddings_of, rows_to_table
from alidade.server.labels import Label
from alidade.server.page import POLICY, rows
from alidade.server.page.marks import known_rows, marked_hits, marks_of, with_labels
from alidade.server.page.view import USUAL_LIST, View, list_name
from alidade.server.scenes import SceneInfo

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=40).map(str.strip)
IDS = st.lists(st.from_regex(r"[0-9a-f]{4}-[0-9]{1,3}-[0-9]{1,3}", fullmatch=True), max_size=4, unique=True).map(tuple)
DEGREES = st.floats(-80, 80, allow_nan=False).map(lambda x: round(x, 6))
BOXES = st.tuples(DEGREES, DEGREES, DEGREES, DEGREES).map(
    lambda v: {
        "type": "Box",
        "coordinates": [round(x, 6) for x in (v[0], min(v[1], v[3]) - 0.5, v[2] + 0.25, max(v[1], v[3]) + 0.5)],
    }
)
TRIANGLE = {"type": "Polygon", "coordinates": [[[8.0, 47.0], [9.5, 47.0], [9.0, 48.25], [8.0, 47.0]]]}


@given(
    text=WORDS, without=WORDS, more=IDS, less=IDS, place=st.none() | st.tuples(DEGREES, DEGREES),
    area=st.none() | BOXES | st.just(TRIANGLE), sensor=st.sampled_from(["", "naip-rgbn"]),
    gsd=st.sampled_from([None, (0.3, 1.0), (10.0, 60.0)]), k=st.integers(1, 10_000),
    least=st.none() | st.floats(-1, 1).map(lambda x: round(x, 4)), heat=st.booleans(),
    eye=st.none() | st.tuples(DEGREES, DEGREES, st.integers(0, 19).map(float)),
    start=st.sampled_from(["", "2019-05-01"]), labels=st.sampled_from([USUAL_LIST, "lakes"]),
)  # fmt: skip
def test_a_link_brings_the_whole_view_back(**said: object) -> None:
    view = View(**said)  # type: ignore[arg-type]
    link = view.link()
    assert link == "" or link.startswith("?")
    again, problems = View.of_link(dict(parse_qsl(link[1:])))
    assert problems == []
    assert again == view


def test_an_uploaded_image_is_no_part_of_a_link() -> None:
    assert View(upload="secret-token", upload_name="a.tif").link() == ""


@pytest.mark.parametrize(
    "bad", ["area=1,2,3", "area=nan,0,1,1", "area=0,95,1,99", "area=0,0;1,1", "gsd=x", "at=1", "k=many", "least=nan",
            "from=yesterday", "map=95,0,3", "map=1,2"],
)  # fmt: skip
def test_what_a_link_garbles_is_left_out_with_a_sentence(bad: str) -> None:
    name = bad.partition("=")[0]
    view, problems = View.of_link(dict(parse_qsl(f"q=lake&{bad}")))
    assert view == View(text="lake")
    assert problems == [f"The link’s “{name}” could not be understood and was left out."]


def test_a_saved_search_is_the_view_that_was_saved() -> None:
    view = View(
        text="lake", without="sea", more=("a", "b"), less=("c",), place=(8.5, 47.25), area=TRIANGLE, start="2019-05-01",
        sensor="naip-rgbn", gsd=(0.3, 1.0), k=50,
    )  # fmt: skip
    assert View.of_body(view.body().model_dump(exclude_defaults=True, mode="json")) == view
    box = replace(view, area={"type": "Box", "coordinates": [8.0, 47.0, 9.0, 48.0]}, start="", end="2020-01-31")
    assert View.of_body(box.body().model_dump(exclude_defaults=True, mode="json")) == box


def test_looking_is_no_new_question() -> None:
    view = View(text="lake")
    looked = replace(view, least=0.5, eye=(1.0, 2.0, 3.0), heat=True, labels="lakes")
    assert looked.question() == view.question()
    assert replace(view, k=50).question() != view.question()


def test_a_tile_is_an_example_of_one_sign_only() -> None:
    view = View().labelled("a", 1).labelled("b", -1).labelled("a", -1)
    assert (view.more, view.less) == ((), ("b", "a"))
    assert view.bare("b").less == ("a",)
    assert view.labelled("a", 0).bare(None) == View()
    assert View(place=(1.0, 2.0), upload="t").bare("place").bare("upload") == View()


def test_a_body_that_no_search_can_mean_is_refused_in_a_line() -> None:
    with pytest.raises(AlidadeError, match="search: text: got 'xxx"):
        View(text="x" * 2_000).body()


@pytest.mark.parametrize(
    ("typed", "name"),
    [("Lakes, Ohio", "lakes-ohio"), ("  ", USUAL_LIST), ("../../etc", "etc"), ("ÄÖ", USUAL_LIST), ("a" * 90, "a" * 64)],
)
def test_names_of_lists_are_names_of_files(typed: str, name: str) -> None:
    assert list_name(typed) == name


def _table() -> pa.Table:
    """Three tiles: one in Zurich, one across the antimeridian, one without a place or a time."""
    made = []
    boxes = [(8.5, 47.3, 8.6, 47.4), (179.9, -17.1, -179.9, -17.0), None]
    for number, box in enumerate(boxes):
        made.append(
            TileRow(
                id=f"s{number}-0-0", footprint=None if box is None else Footprint.box(box),
                time=None if box is None else datetime(2020, 7, number + 1, tzinfo=UTC), sensor="naip-rgbn",
                gsd_m=0.3 if box is None else 10.04, valid_share=1.0, cloud_share=None, source=f"/in/a{number}.tif",
                source_id=f"s{number}", row=0, col=0, height=8, width=8, embedding=np.eye(4)[number],
            )
        )  # fmt: skip
    return rows_to_table(made, model="m", dim=4)


def _hits(scores: list[float], *, exact: bool = True) -> Hits:
    table = _table().drop_columns(["embedding"]).slice(0, len(scores))
    return Hits(
        table=table.append_column("score", pa.array(scores, pa.float32())), model="m", query={"like": "x"},
        vector=np.eye(4, dtype=np.float32)[1], matches=3_112, scanned=900, seconds=0.0312, exact=exact,
    )  # fmt: skip


def test_rows_for_the_browser() -> None:
    first, second, third = rows.rows_of(_hits([0.91234, 0.5, -0.1]).table, {"s1-0-0"})
    assert first["score"] == pytest.approx(0.9123)
    assert (first["date"], first["gsd"], first["name"], first["scene"]) == ("2020-07-01", "10 m", "a0.tif", "s0")
    assert first["box"] == [8.5, 47.3, 8.6, 47.4]
    assert second["box"][0] > second["box"][2]
    assert len(second["rings"]) == 2
    assert (third["box"], third["rings"], third["date"], third["gsd"]) == (None, [], "", "0.3 m")
    assert [row["new"] for row in (first, second, third)] == [False, True, False]


def test_the_answer_in_a_line() -> None:
    assert rows.answer_line(_hits([0.9, 0.5, 0.1])) == "3 of 3,112 matching tiles, exact, 31 ms"
    assert rows.answer_line(_hits([0.9], exact=False)) == "1 of 3,112 matching tiles, by index, 900 compared, 31 ms"


@pytest.mark.parametrize(
    ("more", "less", "line"),
    [
        (0, 0, ""),
        (3, 0, "3 more like: their mean."),
        (12, 0, "12 more like: their mean."),
        (0, 2, "2 not like: taken off the rest of the question."),
        (8, 1, "8 more like and 1 not like: Rocchio’s rule; a linear probe from 10 on."),
        (9, 1, "9 more like and 1 not like: a linear probe between them."),
    ],
)
def test_the_use_of_examples_is_told_as_it_is(more: int, less: int, line: str) -> None:
    from alidade.search.feedback import example_vector

    assert rows.method_line(more, less) == line
    if more:
        vectors = np.random.default_rng(0).normal(size=(more + less, 16))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        used = example_vector(vectors[:more], vectors[more:])[1]
        assert {"mean": "mean", "rocchio": "Rocchio", "probe": "a linear probe between"}[used] in line


def test_the_slider_keeps_what_it_shows() -> None:
    scores = np.array([0.9, 0.8004, 0.7996, 0.3])
    assert rows.above(scores, None) == 4
    assert rows.above(scores, 0.8) == 3, "0.7996 is shown as 0.800"
    assert rows.above(scores, 0.801) == 1
    assert rows.above(np.empty(0), 0.5) == 0


def test_choices_are_those_of_the_archive() -> None:
    def scene(name: str, sensor: str, gsd_m: float, day: int | None) -> SceneInfo:
        time = None if day is None else datetime(2020, 1, day, tzinfo=UTC)
        return SceneInfo(
            id=name, name=name, source=name, sensor=sensor, time=time, gsd_m=gsd_m, tiles=1, bbox=(0, 0, 1, 1)
        )

    scenes = [
        scene("a", "s2", 10.0, None),
        scene("b", "naip", 0.6, 3),
        scene("c", "s2", 10.0, 2),
        scene("d", "l", 90, 1),
    ]
    assert rows.sensor_choices(scenes) == {"": "any sensor", "l": "l (1)", "naip": "naip (1)", "s2": "s2 (2)"}
    assert rows.gsd_choices(scenes) == {
        "": "any detail", "0.001,1": "finer than 1 m", "8,20": "8–20 m", "50,100000": "50 m and coarser",
    }  # fmt: skip
    assert [s["id"] for s in rows.scene_rows(scenes)] == ["d", "a", "c", "b"], "fine and new on top"


class _Store:
    """The rows of :func:`_table` by id, as every store gives them."""

    model, dim = "m", 4

    def rows(self, ids: list[str]) -> pa.Table:
        table = _table()
        known = table["id"].to_pylist()
        if missing := [i for i in ids if i not in known]:
            raise ArchiveError("tile id", got=missing[0], expected="ids", next_step="Search again.")
        return table.take([known.index(i) for i in ids])


def test_a_list_is_ordered_by_the_question_and_forgets_what_is_gone() -> None:
    store: object = _Store()
    found = known_rows(store, ["s0-0-0", "gone", "s1-0-0"])  # type: ignore[arg-type]
    assert found is not None
    assert found["id"].to_pylist() == ["s0-0-0", "s1-0-0"]
    assert embeddings_of(found).shape == (2, 4)
    assert known_rows(store, ["gone"]) is None  # type: ignore[arg-type]
    hits = marked_hits(store, ["s0-0-0", "s1-0-0"], _hits([0.5]))  # type: ignore[arg-type]
    assert hits is not None
    assert hits.table["id"].to_pylist() == ["s1-0-0", "s0-0-0"], "the question's vector is the second tile's"
    assert hits.table["score"].to_pylist() == [1.0, 0.0]
    assert "embedding" not in hits.table.column_names


def test_exports_carry_labels_where_there_are_any() -> None:
    hits = _hits([0.9, 0.5, 0.1])
    assert "label" not in with_labels(hits, {"elsewhere": "yes"}).table.column_names
    labelled = with_labels(hits, {"s0-0-0": "yes", "s2-0-0": "no"})
    assert labelled.table["label"].to_pylist() == ["accepted", None, "rejected"]
    assert marks_of({"a": Label(mark="unsure", note="", time=""), "b": Label(mark="no", note="", time="")}) == {
        "b": "no"
    }


def test_the_policy_lets_nothing_in_from_elsewhere() -> None:
    sources = {word for rule in POLICY.split(";") for word in rule.split()[1:]}
    assert sources <= {"'self'", "'none'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"}


def test_nothing_in_the_page_names_another_host() -> None:
    static = Path(rows.__file__).parent / "static"
    for file in [*static.glob("*.js"), *static.glob("*.css")]:
        assert "//" not in file.read_text().replace("// ", "").replace("http://www.w3.org", ""), file.name

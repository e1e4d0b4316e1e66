"""The server's answers: every route of the real app over a small archive, right and wrong."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from starlette.testclient import TestClient

from alidade.errors import ArchiveError
from alidade.imagery.files import open_raster
from alidade.models.model import Model
from alidade.models.registry import load
from alidade.search.archive import Archive
from alidade.search.index_build import build_index
from alidade.search.scan import Scanner
from alidade.search.writer import ArchiveWriter
from alidade.server.config import ServerConfig
from alidade.server.engine import Engine
from alidade.server.mercator import from_degrees
from search_scenes import tiny_model
from server_app import client_of, make_archive, make_model, more_rows

ROWS = 12 + 4 + 2


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    return make_archive(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def client(config: ServerConfig) -> Iterator[TestClient]:
    with client_of(config) as running:
        yield running


@pytest.fixture
def own(config: ServerConfig, tmp_path: Path) -> ServerConfig:
    """An archive that a test may spoil."""
    shutil.copytree(config.archive.parent, tmp_path / "served")
    return replace(config, archive=tmp_path / "served" / "archive")


@pytest.fixture
def fresh(tmp_path: Path) -> ServerConfig:
    """An archive whose files are nowhere else."""
    return make_archive(tmp_path)


def ask(client: TestClient, **body: object) -> dict[str, Any]:
    answer = client.post("/api/search", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def refused(answer: Any, status: int, *words: str) -> dict[str, str]:
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert set(problem) == {"what", "got", "expected", "next_step"}
    for word in words:
        assert word in str(problem)
    return dict(problem)


def picture(answer: Any) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGBA"))


def test_health_tells_what_is_served(client: TestClient, config: ServerConfig) -> None:
    told = client.get("/api/health").json()
    assert told["status"] == "ready"
    assert told["rows"] == ROWS
    assert told["archive"] == str(config.archive)
    assert told["model"] == tiny_model().identity
    assert told["problem"] is None


def test_words_find_what_the_exact_scanner_finds(client: TestClient, config: ServerConfig) -> None:
    vector = load(config.model).embed_text(["open water"])[0]
    expected = Scanner(Archive.open(config.archive)).search(vector, 5)
    told = ask(client, text="open water", k=5)
    assert [h["id"] for h in told["hits"]] == expected.table["id"].to_pylist()
    np.testing.assert_allclose([h["score"] for h in told["hits"]], expected.table["score"].to_pylist(), atol=1e-6)
    assert (told["exact"], told["matches"], told["scanned"]) == (True, ROWS, ROWS)
    first = told["hits"][0]
    assert first["geometry"]["type"] == "Polygon"
    assert first["source"] in ("a.tif", "b.tif", "radar.tif")
    assert len(first["window"]) == 4


def test_one_search_combines_words_place_examples_and_conditions(client: TestClient) -> None:
    colour = ask(client, text="forest", sensor="naip-rgb", k=ROWS)
    assert colour["matches"] == 16
    a, b, c = colour["hits"][:3]
    told = ask(
        client, text="forest", negative_text="ships", place=a["centre"], positive=[b["id"]], negative=[c["id"]],
        sensor="naip-rgb", time="2021-05-01/2021-06-30", gsd=[5, None], k=4,
    )  # fmt: skip
    assert len(told["hits"]) == 4
    assert {h["sensor"] for h in told["hits"]} == {"naip-rgb"}
    alone = ask(client, positive=[b["id"]], negative=[c["id"]], k=3, keep_labelled=False)
    assert not {b["id"], c["id"]} & {h["id"] for h in alone["hits"]}
    assert ask(client, positive=[b["id"]], k=1)["hits"][0]["id"] == b["id"]


def test_box_polygon_and_dates_narrow(client: TestClient) -> None:
    everything = ask(client, text="forest", k=ROWS)["hits"]
    west, south, east, north = next(h["bbox"] for h in everything if h["source"] == "b.tif")
    inside = ask(client, text="forest", bbox=[west, south, east, north], k=ROWS)
    assert {h["source"] for h in inside["hits"]} == {"b.tif"}
    ring = [[west, south], [east, south], [east, north], [west, south]]
    drawn = ask(client, text="forest", polygon={"type": "Polygon", "coordinates": [ring]}, k=ROWS)
    assert 1 <= drawn["matches"] <= inside["matches"]
    assert ask(client, text="forest", time="1999-01-01/1999-12-31")["hits"] == []


def test_a_box_across_the_antimeridian(client: TestClient) -> None:
    assert ask(client, text="forest", bbox=[170, 40, 10, 50], k=ROWS)["matches"] == ROWS
    assert ask(client, text="forest", bbox=[170, 40, -170, 50])["matches"] == 0


def test_the_same_question_has_the_same_id(client: TestClient) -> None:
    first, second, other = (ask(client, text="forest", k=k)["query_id"] for k in (3, 3, 4))
    assert first == second != other


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, ["nothing that tiles shall be like"]),
        ({"negative_text": "ships"}, ["only what tiles shall not be like"]),
        ({"text": "forest", "k": 1_000_000}, ["1,000,000", "at most 10,000", "Narrow the search"]),
        ({"text": "forest", "k": 0}, ["body.k"]),
        ({"text": ""}, ["body.text"]),
        ({"text": "   "}, ["an empty text"]),
        ({"text": "an unknown word"}, ["an unknown word"]),
        ({"text": "x" * 2000}, ["body.text"]),
        ({"texts": "forest"}, ["body.texts"]),
        ({"place": [200, 95]}, ["200,95"]),
        ({"place": [0, 0]}, ["a point inside"]),
        ({"place": [0]}, ["body.place"]),
        ({"positive": ["nowhere"]}, ["nowhere"]),
        ({"positive": ["a"], "negative": ["a"]}, ["both sides"]),
        ({"text": "forest", "bbox": [0, 50, 10, 40]}, ["south <= north"]),
        ({"text": "forest", "time": "yesterday"}, ["yesterday", "ISO 8601"]),
        ({"text": "forest", "sensor": "sentinel-9"}, ["sentinel-9", "naip-rgb"]),
        ({"text": "forest", "gsd": [10, 1]}, ["metres per pixel"]),
        ({"text": "forest", "polygon": {"type": "Point", "coordinates": [0, 0]}}, ["Point"]),
        ({"text": "forest", "polygon": {"type": "Polygon", "coordinates": "no"}}, ["got"]),
    ],
)
def test_what_cannot_be_answered_says_why(client: TestClient, body: dict[str, object], words: list[str]) -> None:
    refused(client.post("/api/search", json=body), 422, *words)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"text": NaN}', b'{"place": [NaN, 1]}', b'{"text": "\\ud800"}', b'{"positive": ["\\ud800"]}',
     b'{"k": 1' + b"0" * 5000 + b', "text": "forest"}', b'{"polygon": ' + b"[" * 100_000, b"\xff\xfe"],
)  # fmt: skip
def test_what_is_no_json_of_ours_is_refused(client: TestClient, content: bytes) -> None:
    answer = client.post("/api/search", content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    refused(answer, answer.status_code)


def test_unknown_places_and_methods(client: TestClient) -> None:
    refused(client.get("/api/nowhere"), 404, "GET /api/nowhere")
    refused(client.get("/api/search"), 405)
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404


def test_thumbnails_show_the_tile(client: TestClient, config: ServerConfig) -> None:
    hit = next(h for h in ask(client, text="forest", k=ROWS)["hits"] if h["source"] == "a.tif")
    shown = picture(client.get(f"/api/thumbnail/{hit['id']}.png", params={"size": 32}))
    row, col, height, width = hit["window"]
    assert (height, width) == (32, 32)
    with open_raster(config.archive.parent / "scenes" / "a.tif") as file:
        pixels = np.moveaxis(file.read().pixels, 0, -1)
    # 8-bit display values are shown as they are
    np.testing.assert_array_equal(shown[..., :3], pixels[row : row + 32, col : col + 32])
    assert (shown[..., 3] == 255).all()
    assert picture(client.get(f"/api/thumbnail/{hit['id']}.png")).shape == (128, 128, 4)
    refused(client.get("/api/thumbnail/nowhere.png"), 404, "nowhere")
    refused(client.get(f"/api/thumbnail/{hit['id']}.png", params={"size": 10_000}), 422, "size")


def test_a_thumbnail_of_a_file_that_is_gone_is_grey_and_says_so(fresh: ServerConfig) -> None:
    with client_of(fresh) as client:
        hit = next(h for h in ask(client, text="forest", k=ROWS)["hits"] if h["source"] == "b.tif")
        os.rename(fresh.archive.parent / "scenes" / "b.tif", fresh.archive.parent / "b.tif")
        answer = client.get(f"/api/thumbnail/{hit['id']}.png", params={"size": 200})
        shfresh = picture(answer)
        assert answer.headers["x-alidade-missing"] == "1"
        assert tuple(shfresh[-1, -1, :3]) == (229, 231, 235)
        assert len(np.unique(shfresh.reshape(-1, 4), axis=0)) > 2, "there is a sentence in it"
        refused(client.get(f"/api/scenes/{hit['scene']}/tiles/0/0/0.png"), 404, "no such file")
        os.rename(fresh.archive.parent / "b.tif", fresh.archive.parent / "scenes" / "b.tif")
        again = client.get(f"/api/thumbnail/{hit['id']}.png", params={"size": 200})
        assert "x-alidade-missing" not in again.headers


def test_scenes_are_registered_under_ids(client: TestClient) -> None:
    told = client.get("/api/scenes").json()
    assert told["total"] == 3
    by_name = {s["name"]: s for s in told["scenes"]}
    assert {name: s["tiles"] for name, s in by_name.items()} == {"a.tif": 12, "b.tif": 4, "radar.tif": 2}
    assert by_name["radar.tif"]["sensor"] == "sentinel-1-rtc"
    boxes = [h["bbox"] for h in ask(client, text="forest", k=ROWS)["hits"] if h["scene"] == by_name["a.tif"]["id"]]
    west, south, east, north = np.array(boxes).T
    np.testing.assert_allclose(by_name["a.tif"]["bbox"], [west.min(), south.min(), east.max(), north.max()], atol=1e-9)
    part = client.get("/api/scenes", params={"offset": 1, "limit": 1}).json()
    assert (part["total"], [s["id"] for s in part["scenes"]]) == (3, [told["scenes"][1]["id"]])
    refused(client.get("/api/scenes/0123/tiles/0/0/0.png"), 404, "0123")
    refused(client.get("/api/scenes/..%2f..%2fetc/tiles/0/0/0.png"), 404)


def test_no_route_takes_an_address_or_a_path(client: TestClient) -> None:
    names = {
        parameter["name"]
        for route in client.get("/api/openapi.json").json()["paths"].values()
        for method in route.values()
        for parameter in method.get("parameters", ())
    }
    assert names == {
        "sensor", "gsd", "format", "tile_id", "size", "offset", "limit", "scene_id", "query_id", "z", "x", "y", "name"
    }  # fmt: skip


@pytest.mark.parametrize("z", [3, 11, 14, 17])
def test_a_scenes_map_tile_shows_each_place_where_it_is(client: TestClient, config: ServerConfig, z: int) -> None:
    scene = next(s for s in client.get("/api/scenes").json()["scenes"] if s["name"] == "a.tif")
    with open_raster(config.archive.parent / "scenes" / "a.tif") as file:
        raster = file.read()
    west, south, east, north = scene["bbox"]
    x, y = (float(v) for v in from_degrees((west + east) / 2, (south + north) / 2))
    numbers = f"{z}/{int(x * 2**z)}/{int(y * 2**z)}"
    shown = picture(client.get(f"/api/scenes/{scene['id']}/tiles/{numbers}.png"))
    across = (int(x * 2**z) + (np.arange(256) + 0.5) / 256) / 2**z
    down = (int(y * 2**z) + (np.arange(256) + 0.5) / 256) / 2**z
    lon = across * 360 - 180
    lat = np.degrees(np.arctan(np.sinh(math.pi * (1 - 2 * down))))
    rows, cols = raster.grid.from_lonlat(lon[None, :], lat[:, None])
    height, width = raster.grid.height, raster.grid.width
    inside = (rows >= 1) & (rows < height - 1) & (cols >= 1) & (cols < width - 1)
    outside = (rows < -1) | (rows >= height + 1) | (cols < -1) | (cols >= width + 1)
    assert not shown[outside][:, 3].any()
    assert shown[inside][:, 3].all()
    if z >= 14:
        # a pixel of the tile is no larger than one of the scene, so its colour is that of a pixel
        expected = np.moveaxis(raster.pixels, 0, -1)[rows[inside].astype(int), cols[inside].astype(int)]
        same = (shown[inside][:, :3] == expected).all(axis=1)
        assert same.mean() > 0.98


def test_tiles_that_do_not_exist(client: TestClient) -> None:
    scene = client.get("/api/scenes").json()["scenes"][0]["id"]
    query = ask(client, text="forest")["query_id"]
    for base in (f"/api/scenes/{scene}/tiles", f"/api/similarity/{query}"):
        refused(client.get(f"{base}/1/2/0.png"), 404, "1/2/0")
        refused(client.get(f"{base}/99/0/0.png"), 422)
        refused(client.get(f"{base}/a/0/0.png"), 422)
        assert not picture(client.get(f"{base}/4/0/0.png"))[..., 3].any()
    refused(client.get("/api/similarity/none/0/0/0.png"), 404, "Ask the search again")


def test_the_similarity_map_is_brightest_at_the_best_tile(client: TestClient) -> None:
    told = ask(client, text="open water", sensor="naip-rgb", k=ROWS)
    legend = client.get(f"/api/similarity/{told['query_id']}").json()
    assert legend["shown"] == told["matches"] == 16
    scores = [h["score"] for h in told["hits"]]
    assert (legend["low"], legend["high"]) == pytest.approx((min(scores), max(scores)), abs=1e-5)
    for hit, expected in ((told["hits"][0], legend["colours"][-1]), (told["hits"][-1], legend["colours"][0])):
        x, y = (float(v) for v in from_degrees(*hit["centre"]))
        z = 15
        numbers = f"{z}/{int(x * 2**z)}/{int(y * 2**z)}"
        shown = picture(client.get(f"/api/similarity/{told['query_id']}/{numbers}.png"))
        pixel = shown[int(y * 2**z * 256) % 256, int(x * 2**z * 256) % 256]
        assert "#" + bytes(pixel[:3].tolist()).hex() == expected
    world = picture(client.get(f"/api/similarity/{told['query_id']}/0/0/0.png"))
    assert world[..., 3].any()


@pytest.mark.parametrize("form", ["json", "geojson", "parquet", "csv"])
def test_exports_hold_the_hits(client: TestClient, form: str) -> None:
    told = ask(client, text="forest", k=5)
    ids = [h["id"] for h in told["hits"]]
    answer = client.post("/api/export", params={"format": form}, json={"query_id": told["query_id"]})
    assert answer.status_code == 200, answer.text
    assert f"alidade-{told['query_id']}.{form}" in answer.headers["content-disposition"]
    if form == "parquet":
        assert pq.read_table(io.BytesIO(answer.content))["id"].to_pylist() == ids
    elif form == "csv":
        assert [line.split(",")[2] for line in answer.text.splitlines()[1:]] == ids
    else:
        content = answer.json()
        assert [h["id"] for h in content["hits" if form == "json" else "features"]] == ids
        about = content if form == "json" else content["alidade"]
        assert about["query"]["text"] == "forest"


def test_an_export_of_accepted_tiles_only(client: TestClient) -> None:
    told = ask(client, text="forest", k=5)
    chosen = [told["hits"][i]["id"] for i in (3, 1)]
    body = {"query_id": told["query_id"], "ids": chosen}
    answer = client.post("/api/export", params={"format": "json"}, json=body)
    assert [h["id"] for h in answer.json()["hits"]] == [told["hits"][i]["id"] for i in (1, 3)]
    body["ids"] = ["nowhere"]
    refused(client.post("/api/export", params={"format": "json"}, json=body), 422, "nowhere")
    refused(client.post("/api/export", params={"format": "exe"}, json=body), 422, "format")
    refused(client.post("/api/export", params={"format": "csv"}, json={"query_id": "none"}), 404)


def test_an_uploaded_image_finds_its_own_tile(client: TestClient, config: ServerConfig) -> None:
    data = (config.archive.parent / "scenes" / "b.tif").read_bytes()
    answer = client.post("/api/upload", content=data)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["sensor"], answer.json()["height"], answer.json()["width"]) == ("naip-rgb", 64, 64)
    told = ask(client, upload=answer.json()["token"], k=3, sensor="naip-rgb")
    assert told["hits"][0]["score"] > 0.5
    assert told["note"] is None
    mixed = ask(client, upload=answer.json()["token"])
    assert (mixed["note"] is None) == tiny_model().aligned
    refused(client.post("/api/search", json={"upload": "none"}), 404, "Upload the image again")


def test_labels_are_kept_beside_the_archive(own: ServerConfig) -> None:
    with client_of(own) as client:
        assert client.get("/api/labels").json() == {"name": "default", "names": [], "labels": {}}
        body = {"labels": {"t1": {"mark": "yes"}, "t2": {"mark": "no", "note": "Wölkchen \u2028 😀"}}}
        assert client.put("/api/labels", json=body).json() == {"name": "default", "count": 2}
        assert client.put("/api/labels", json={"labels": {"t1": {"mark": None}}}).json()["count"] == 1
        client.put("/api/labels", json={"name": "ships-2", "labels": {"t1": {"mark": "unsure"}}})
    with client_of(own) as client:
        told = client.get("/api/labels").json()
        assert told["names"] == ["default", "ships-2"]
        assert {k: (v["mark"], v["note"]) for k, v in told["labels"].items()} == {"t2": ("no", "Wölkchen \u2028 😀")}
        for bad in ({"labels": {"t": {"mark": "maybe"}}}, {"name": "../x", "labels": {}}, {"labels": []}):
            refused(client.put("/api/labels", json=bad), 422)
        refused(client.get("/api/labels", params={"name": "a/b"}), 422)
    lines = (own.archive / "labels" / "default.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["t2"]


def test_two_servers_of_one_archive_lose_no_label_of_each_other(own: ServerConfig) -> None:
    with client_of(own) as first, client_of(own) as second:
        for number in range(6):
            client = (first, second)[number % 2]
            assert client.put("/api/labels", json={"labels": {f"t{number}": {"mark": "yes"}}}).status_code == 200
        assert len(first.get("/api/labels").json()["labels"]) == 6


def test_a_disk_that_refuses_is_told(own: ServerConfig) -> None:
    (own.archive / "labels").write_text("in the way")
    with client_of(own) as client:
        refused(client.put("/api/labels", json={"labels": {"t": {"mark": "yes"}}}), 409, "writing")


def test_what_a_kill_left_behind_is_removed_and_told(own: ServerConfig) -> None:
    (own.archive / "labels").mkdir()
    left = own.archive / "labels" / ".default.jsonl.0a1b2c3d.alidade-part"
    left.write_text('{"id": "t1", "ma')
    with client_of(own) as client:
        assert left.name in client.get("/api/health").json()["repairs"][0]
    assert not left.exists()


def test_a_damaged_label_file_is_named_and_nothing_else_breaks(own: ServerConfig) -> None:
    (own.archive / "labels").mkdir()
    (own.archive / "labels" / "default.jsonl").write_text('{"id": 5}\n')
    with client_of(own) as client:
        refused(client.get("/api/labels"), 422, "default.jsonl: line 1")
        refused(client.put("/api/labels", json={"labels": {}}), 409, "default.jsonl: line 1")
        assert ask(client, text="forest")["hits"]


def test_a_saved_search_runs_again_on_new_imagery(own: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alidade.server.keeper._NEWS_SECONDS", 0.0)
    with client_of(own) as client:
        body = {"text": "forest", "sensor": "naip-rgb", "k": 50}
        assert client.put("/api/searches/my forest", json=body).json() == {"name": "my forest"}
        (saved,) = client.get("/api/searches").json()["searches"]
        assert (saved["name"], saved["query"]) == ("my forest", body)
        first = client.post("/api/searches/my forest/run").json()
        assert len(first["new"]) == len(first["hits"]) == 16
        assert client.post("/api/searches/my forest/run").json()["new"] == []
        more_rows(own, 7)
        deadline = time.monotonic() + 20
        while client.get("/api/health").json()["rows"] == ROWS:
            assert time.monotonic() < deadline
            ask(client, text="forest")
            time.sleep(0.05)
        again = client.post("/api/searches/my forest/run").json()
        assert (len(again["new"]), len(again["hits"])) == (4, 20)
        assert client.delete("/api/searches/my forest").status_code == 200
        refused(client.post("/api/searches/my forest/run"), 404)
        refused(client.delete("/api/searches/my forest"), 404)
        refused(client.put("/api/searches/x", json={"upload": "t"}), 422, "not kept")
        refused(client.put("/api/searches/x", json={"k": 5}), 422)


def test_an_archive_that_disappears_while_it_is_served(fresh: ServerConfig) -> None:
    with client_of(fresh) as client:
        before = ask(client, text="forest", k=4)
        shutil.rmtree(fresh.archive)
        shutil.rmtree(fresh.archive.parent / "scenes")
        after = ask(client, text="forest", k=4)
        assert after["hits"] == before["hits"]
        tile = client.get(f"/api/thumbnail/{after['hits'][0]['id']}.png")
        assert tile.status_code == 200
        assert tile.headers["x-alidade-missing"] == "1"
        assert picture(client.get(f"/api/similarity/{after['query_id']}/0/0/0.png"))[..., 3].any()
        refused(client.put("/api/labels", json={"labels": {"t": {"mark": "yes"}}}), 409)


def test_an_index_that_is_removed_while_it_is_served(own: ServerConfig) -> None:
    build_index(own.archive)
    with client_of(own) as client:
        assert client.get("/api/health").json()["indexed"] == ROWS
        before = ask(client, text="forest", sensor="naip-rgb", k=4)
        shutil.rmtree(own.archive / "index")
        after = ask(client, text="forest", sensor="naip-rgb", k=4)
        assert after["hits"] == before["hits"]
        assert ask(client, positive=[after["hits"][0]["id"]], k=1)["hits"][0]["id"] == after["hits"][0]["id"]
        told = client.get("/api/health").json()
        assert told["indexed"] == 0
        assert "without the index" in told["repairs"][0]


def test_an_empty_archive_answers_with_nothing(own: ServerConfig) -> None:
    shutil.rmtree(own.archive)
    with ArchiveWriter(own.archive, model=tiny_model().identity, dim=tiny_model().dim, tile=32):
        pass
    with client_of(own) as client:
        told = ask(client, text="forest")
        assert (told["hits"], told["matches"]) == ([], 0)
        assert not picture(client.get(f"/api/similarity/{told['query_id']}/0/0/0.png"))[..., 3].any()
        assert client.get(f"/api/similarity/{told['query_id']}").json()["shown"] == 0
        assert client.get("/api/scenes").json() == {"total": 0, "scenes": []}
        for form in ("json", "geojson", "parquet", "csv"):
            answer = client.post("/api/export", params={"format": form}, json={"query_id": told["query_id"]})
            assert answer.status_code == 200
        refused(client.post("/api/search", json={"place": [9, 47]}), 422, "got", "none")


def test_an_archive_of_another_model_is_refused_by_name(own: ServerConfig) -> None:
    other = make_model(own.archive.parent / "other", "otherwise")
    with client_of(replace(own, model=str(other))) as client:
        told = client.get("/api/health")
        assert told.status_code == 503
        assert told.json()["status"] == "failed"
        assert tiny_model().identity in told.json()["problem"]
        assert tiny_model("otherwise").identity in told.json()["problem"]
        refused(client.post("/api/search", json={"text": "forest"}), 503, tiny_model().identity)
        assert client.get("/api/openapi.json").status_code == 200
    with pytest.raises(ArchiveError, match="--model"):
        Engine(own.archive, tiny_model("otherwise"), "otherwise", own.declared)


def test_a_server_that_is_not_ready_says_when_to_ask_again(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = threading.Event()

    def slowly(name: str, *, weights: str | None) -> Model:
        assert loading.wait(30)
        return load(name, weights=weights)

    monkeypatch.setattr("alidade.server.keeper.load", slowly)
    with client_of(config, wait=False) as client:
        answer = client.post("/api/search", json={"text": "forest"})
        refused(answer, 503, "starting")
        assert int(answer.headers["retry-after"]) >= 1
        health = client.get("/api/health")
        assert (health.status_code, health.json()["status"]) == (503, "starting")
        assert health.headers["retry-after"]
        loading.set()
        deadline = time.monotonic() + 20
        while client.get("/api/health").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert ask(client, text="forest")["hits"]


def test_a_server_that_cannot_load_says_so_and_not_that_it_is_starting(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: str, *, weights: str | None) -> Model:
        raise RuntimeError("the secret inside")

    monkeypatch.setattr("alidade.server.keeper.load", broken)
    with client_of(config) as client:
        told = client.get("/api/health").json()
        assert told["status"] == "failed"
        assert "an unexpected RuntimeError" in told["problem"]
        assert "secret" not in told["problem"]
        assert "the secret inside" in caplog.text


def test_an_unexpected_error_tells_nothing_of_the_inside(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the secret inside")

    with client_of(config) as client:
        monkeypatch.setattr(Engine, "answer", broken)
        answer = client.post("/api/search", json={"text": "forest"})
        refused(answer, 500, "an unexpected error")
        assert "secret" not in answer.text
        assert "the secret inside" in caplog.text

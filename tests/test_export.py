"""Answers as tables, JSON, GeoJSON, GeoParquet and CSV, read back by other programs' rules."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import shapely.geometry

from alidade.errors import ArchiveError
from alidade.imagery.footprint import Footprint
from alidade.search.archive import Archive
from alidade.search.export import CSV_HEADER, TABLE_HEADER, table_rows, to_csv, to_geojson, to_json, write
from alidade.search.manifest import Coverage
from alidade.search.scan import Hits, Scanner
from alidade.search.schema import TileRow
from alidade.search.writer import ArchiveWriter

PLACES = (Footprint.box((8, 47, 9, 48)), Footprint.box((179, -17, -179, -16)), None)


@pytest.fixture(scope="module")
def hits(tmp_path_factory: pytest.TempPathFactory) -> Hits:
    """Three hits: an ordinary tile, one across the antimeridian, and one without a place, a time or a cloud share."""
    rows = [
        TileRow(
            id=f"row-{i}",
            footprint=place,
            time=None if place is None else datetime(2021, 6, 1 + i, 10, 30, tzinfo=UTC),
            sensor="sentinel-2-l2a",
            gsd_m=10.0,
            valid_share=1.0,
            cloud_share=None if place is None else 0.25,
            source=f"scenes/{i} é.tif",
            source_id="s",
            row=0,
            col=32 * i,
            height=32,
            width=32,
            embedding=np.array([1.0, 0.1 * i, 0.0]),
        )
        for i, place in enumerate(PLACES)
    ]
    path = tmp_path_factory.mktemp("export") / "a"
    coverage = Coverage(source="s", relative="s", source_id="s", total=3, tiles=((0, 3),), empty=())
    with ArchiveWriter(path, model="tiny-01", dim=3, tile=32) as w:
        w.append(rows, [coverage])
    start = datetime(2000, 1, 1, tzinfo=UTC)
    scanner = Scanner(Archive.open(path))
    timed = scanner.search([1, 0, 0], 5, time=(start, None), describe="lake.tif")
    assert timed.query["time"] == ["2000-01-01T00:00:00+00:00", None]
    found = scanner.search([1, 0, 0], 5, sensor="sentinel-2-l2a", describe="lake.tif")
    return replace(found, seconds=0.01234)


ABOUT = {
    "model": "tiny-01",
    "query": {"like": "lake.tif", "k": 5, "sensor": "sentinel-2-l2a"},
    "matches": 3,
    "scanned": 3,
    "exact": True,
    "milliseconds": 12.3,
}


def test_geojson_follows_rfc_7946(hits: Hits, tmp_path: Path) -> None:
    write(hits, tmp_path / "hits.geojson")
    collection = json.loads((tmp_path / "hits.geojson").read_text(encoding="utf-8"))
    assert collection["type"] == "FeatureCollection"
    assert collection["alidade"] == ABOUT
    plain, crossing, nowhere = collection["features"]
    for rank, feature in enumerate(collection["features"], start=1):
        assert feature["type"] == "Feature"
        assert feature["properties"]["rank"] == rank
    shape = shapely.geometry.shape(plain["geometry"])
    assert shape.equals(shapely.box(8, 47, 9, 48))
    assert shape.exterior.is_ccw
    assert plain["bbox"] == [8, 47, 9, 48]
    assert plain["id"] == "row-0"
    assert plain["properties"]["score"] == pytest.approx(1.0)
    assert plain["properties"]["time"] == "2021-06-01T10:30:00+00:00"
    assert plain["properties"]["source"] == "scenes/0 é.tif"
    assert crossing["geometry"]["type"] == "MultiPolygon"
    assert crossing["bbox"] == [179, -17, -179, -16]
    for part in shapely.geometry.shape(crossing["geometry"]).geoms:
        assert part.exterior.is_ccw
        assert -180 <= part.bounds[0] <= part.bounds[2] <= 180
    assert nowhere["geometry"] is None
    assert "bbox" not in nowhere
    assert nowhere["properties"]["time"] is None


def test_json_holds_all_facts_best_first(hits: Hits, tmp_path: Path) -> None:
    write(hits, tmp_path / "out", "json")
    told = json.loads((tmp_path / "out").read_text(encoding="utf-8"))
    assert {k: v for k, v in told.items() if k != "hits"} == ABOUT
    assert [h["id"] for h in told["hits"]] == ["row-0", "row-1", "row-2"]
    assert told["hits"][1]["bbox"] == [179, -17, -179, -16]
    assert told["hits"][2]["bbox"] is None
    assert told["hits"][0]["cloud_share"] == 0.25
    assert told == to_json(hits)


def test_parquet_is_geoparquet_with_score_and_query(hits: Hits, tmp_path: Path) -> None:
    write(hits, tmp_path / "hits.parquet")
    table = pq.read_table(tmp_path / "hits.parquet")
    metadata = table.schema.metadata
    assert json.loads(metadata[b"alidade"]) == ABOUT
    geo = json.loads(metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["geometry_types"] == ["MultiPolygon", "Polygon"]
    assert table["score"].to_pylist() == sorted(table["score"].to_pylist(), reverse=True)
    assert shapely.from_wkb(table["geometry"][0].as_py()).equals(shapely.box(8, 47, 9, 48))
    assert "embedding" not in table.column_names


def test_csv_is_flat_and_has_centre_and_footprint(hits: Hits, tmp_path: Path) -> None:
    write(hits, tmp_path / "hits.csv")
    text = (tmp_path / "hits.csv").read_bytes().decode("utf-8")
    assert "\r" not in text
    first, second, third = csv.DictReader(io.StringIO(text))
    assert tuple(first) == CSV_HEADER
    assert set(first) == {*hits.table.column_names, "rank", "lon", "lat", "wkt"} - {"geometry", "bbox"}, "all facts"
    assert (first["rank"], first["score"], first["id"], first["source"]) == ("1", "1.000000", "row-0", "scenes/0 é.tif")
    assert (first["lon"], first["lat"]) == ("8.5000000", "47.5000000")
    assert (first["gsd_m"], first["cloud_share"], first["time"]) == ("10", "0.25", "2021-06-01T10:30:00+00:00")
    assert shapely.from_wkt(first["wkt"]).equals(shapely.box(8, 47, 9, 48))
    across = shapely.from_wkt(second["wkt"])
    assert across.geom_type == "MultiPolygon"
    assert across.equals(shapely.MultiPolygon([shapely.box(179, -17, 180, -16), shapely.box(-180, -17, -179, -16)]))
    for row in (first, second, third):
        assert row["model"] == "tiny-01"
    assert [third[name] for name in ("time", "lon", "lat", "cloud_share", "wkt")] == [""] * 5


def test_csv_quotes_what_would_break_it(hits: Hits) -> None:
    names = ['a,b".tif', "line\nfeed.tif", "größe.tif"]
    table = hits.table.set_column(hits.table.column_names.index("source"), "source", [names])
    odd = list(csv.DictReader(io.StringIO(to_csv(replace(hits, table=table)))))
    assert [row["source"] for row in odd] == names


def test_an_approximate_answer_says_so_everywhere(hits: Hits) -> None:
    rough = replace(hits, exact=False, scanned=2)
    for told in (to_json(rough), to_geojson(rough)["alidade"]):
        assert (told["exact"], told["scanned"]) == (False, 2)


def test_table_cells_are_short_and_complete(hits: Hits) -> None:
    first, second, third = table_rows(hits)
    assert len(first) == len(TABLE_HEADER)
    assert first == (
        "1", "1.000", "sentinel-2-l2a", "2021-06-01", "10 m", "8.5000,47.5000", "0,0 32x32", "0 é.tif"
    )  # fmt: skip
    assert table_rows(hits, ids=True)[0] == (*first, "row-0")
    assert second[5] in ("180.0000,-16.5000", "-180.0000,-16.5000")
    assert (third[3], third[5]) == ("-", "-")


def test_an_empty_answer_exports_too(hits: Hits, tmp_path: Path) -> None:
    nothing = Hits(**{**vars(hits), "table": hits.table.slice(0, 0), "matches": 0})
    for name in ("a.json", "a.geojson", "a.parquet", "a.csv"):
        write(nothing, tmp_path / name)
    assert (tmp_path / "a.csv").read_text() == ",".join(CSV_HEADER) + "\n"
    assert json.loads((tmp_path / "a.geojson").read_text())["features"] == []
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 0
    assert to_geojson(nothing)["alidade"]["matches"] == 0
    assert table_rows(nothing) == []


def test_an_export_appears_whole_or_not_at_all(hits: Hits, tmp_path: Path) -> None:
    (tmp_path / "hits.json").write_text("old")
    with pytest.raises(ArchiveError, match="format of the export: got 'xlsx', expected one of json, geojson, parq"):
        write(hits, tmp_path / "hits.xlsx")
    with pytest.raises(ArchiveError, match="none/hits.json: writing: got No such file or directory"):
        write(hits, tmp_path / "none" / "hits.json")
    with pytest.raises(ArchiveError, match="hits.png: format of the export: got 'png', expected one of json, geo"):
        write(hits, tmp_path / "hits.png", "json")
    write(hits, tmp_path / "hits.json")
    assert json.loads((tmp_path / "hits.json").read_text())["model"] == "tiny-01"
    assert [p.name for p in tmp_path.iterdir()] == ["hits.json"]

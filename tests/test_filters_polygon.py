"""Polygons: parity with plain geometry and with boxes, the antimeridian, holes, and every fault in one line."""

from __future__ import annotations

import copy
import json
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from alidade.errors import AlidadeError, GridError
from alidade.imagery import polygon as module
from alidade.imagery.footprint import Footprint, bbox_mask, enclosing_box
from alidade.imagery.polygon import MAX_CORNERS, Polygon, parse_geojson, read_geojson

SQUARE = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
HOLE = [[2, 2], [2, 8], [8, 8], [8, 2], [2, 2]]


class Footprints:
    """Footprints as columns, and how many of them were decoded."""

    def __init__(self, shapes: list[Footprint | None]) -> None:
        nowhere = (np.nan,) * 4
        self.boxes = np.array([nowhere if s is None else s.bbox() for s in shapes]).T
        self.wkb = np.array([None if s is None else s.wkb() for s in shapes], dtype=object)
        self.decoded = 0

    def of(self, rows: np.ndarray) -> np.ndarray:
        self.decoded += len(rows)
        return self.wkb[rows]


def polygon(*rings: list[list[float]]) -> Polygon:
    return parse_geojson({"type": "Polygon", "coordinates": list(rings)})


def star(rng: np.random.Generator, corners: int = 60, least: float = 10.0) -> Polygon:
    """A star-shaped area with a hole, somewhere away from the antimeridian."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    x0, y0 = rng.uniform(-100, 100), rng.uniform(-40, 40)
    rings = []
    for radius in (rng.uniform(least, 30, corners), np.full(corners, 8.0)):
        x, y = x0 + radius * np.cos(angle), y0 + radius * np.sin(angle)
        ring = np.stack([x, y], axis=1).tolist()
        rings.append([*ring, ring[0]])
    return polygon(*rings)


def scattered(rng: np.random.Generator, area: Polygon, count: int, size: float) -> Footprints:
    """Slanted footprints around an area, some without a place."""
    west, south, east, north = area.bbox()
    shapes: list[Footprint | None] = []
    for _ in range(count):
        x, y = rng.uniform(west - 5, east + 5), rng.uniform(south - 5, north + 5)
        dx, dy, skew = rng.uniform(0.01, size, 3)
        shapes.append(Footprint.around([x, x + dx, x + dx + skew, x + skew], [y, y + skew, y + dy + skew, y + dy]))
    shapes[:: max(1, count // 3)] = [None] * len(shapes[:: max(1, count // 3)])
    return Footprints(shapes)


@pytest.mark.parametrize("count", [300, 6_000], ids=["each decoded", "by cells"])
def test_the_same_footprints_as_plain_geometry_finds(count: int) -> None:
    rng = np.random.default_rng(3)
    for _ in range(3):
        area = star(rng)
        prints = scattered(rng, area, count, size=1.5)
        ((outer, *holes),) = area.parts
        shape = shapely.Polygon(outer, holes)
        expected = shapely.intersects(shapely.from_wkb(prints.wkb), shape)
        found = area.meets(prints.boxes, prints.of)
        np.testing.assert_array_equal(found, expected)
        assert 0.1 < found.mean() < 0.9
        inside_hole = shapely.contains_properly(shapely.Polygon(holes[0]), shapely.from_wkb(prints.wkb))
        assert inside_hole.any()
        assert not found[inside_hole].any()


def test_boxes_settle_most_footprints() -> None:
    rng = np.random.default_rng(5)
    area = star(rng, least=25.0)
    prints = scattered(rng, area, 6_000, size=0.2)
    found = area.meets(prints.boxes, prints.of)
    assert found.sum() > 2_000
    assert prints.decoded < 0.3 * found.sum()


degrees = st.integers(-36, 36).map(lambda n: 5.0 * n)
latitudes = st.integers(-18, 18).map(lambda n: 5.0 * n)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[float, float, float, float]:
    west, east = draw(degrees), draw(degrees)
    south, north = sorted((draw(latitudes), draw(latitudes)))
    return west, south, east, north


def has_area(box: tuple[float, float, float, float]) -> bool:
    return box[0] != box[2] and box[1] < box[3] and not (box[0] == 180.0 or box[2] == -180.0)


@given(area=boxes().filter(has_area), rows=st.lists(boxes().filter(has_area), min_size=1, max_size=8))
def test_a_box_drawn_as_a_polygon_finds_what_the_box_finds(
    area: tuple[float, float, float, float], rows: list[tuple[float, float, float, float]]
) -> None:
    # corners on one coarse grid, so that most cases touch, also at the antimeridian
    rings = Footprint.box(area).rings
    middle = [x for ring in rings for x, _ in ring]
    if any(180.0 < max(x for x, _ in r) - min(x for x, _ in r) < 360.0 for r in rings):
        return  # drawn as a polygon such an edge is refused: see below
    assert middle
    drawn = Polygon(tuple((ring,) for ring in rings))
    prints = Footprints([Footprint.box(row) for row in rows])
    np.testing.assert_array_equal(drawn.meets(prints.boxes, prints.of), bbox_mask(*prints.boxes, area))
    assert bbox_mask(*[[v] for v in drawn.bbox()], area).all()


def test_an_area_over_the_antimeridian_is_two_parts() -> None:
    fiji = Polygon(tuple((ring,) for ring in Footprint.box((177, -20, -178, -15)).rings))
    assert fiji.bbox() == (177, -20, -178, -15)
    places = [
        (178, -18, 179, -17), (-179, -18, -178.5, -17), (179.5, -18, -179.5, -17), (170, -18, 171, -17),
        (-178, -18, -177, -17), (-170, -18, -169, -17), (0, -18, 1, -17), (177.5, -15, 178, -14),
    ]  # fmt: skip
    prints = Footprints([Footprint.box(p) for p in places])
    assert fiji.meets(prints.boxes, prints.of).tolist() == [True, True, True, False, True, False, False, True]
    # the same, many at a time
    many = Footprints([Footprint.box(p) for p in places] * 1000)
    assert fiji.meets(many.boxes, many.of).tolist() == [True, True, True, False, True, False, False, True] * 1000


def test_both_names_of_the_antimeridian_are_one_line() -> None:
    prints = Footprints([Footprint.box((-180, 0, -179, 1)), Footprint.box((179, 0, 180, 1))])
    assert polygon([[170, 0], [180, 0], [180, 5], [170, 5], [170, 0]]).meets(prints.boxes, prints.of).tolist() == [
        True,
        True,
    ]
    assert polygon([[-180, 0], [-170, 0], [-170, 5], [-180, 5], [-180, 0]]).meets(prints.boxes, prints.of).tolist() == [
        True,
        True,
    ]
    whole = polygon([[-180, -90], [180, -90], [180, 90], [-180, 90], [-180, -90]])
    assert whole.meets(prints.boxes, prints.of).all()
    assert whole.bbox() == (-180, -90, 180, 90)


def test_holes_parts_and_features() -> None:
    ring = polygon(SQUARE, HOLE)
    prints = Footprints(
        [Footprint.box(b) for b in ((4, 4, 6, 6), (1, 1, 3, 3), (2, 2, 3, 3), (11, 0, 12, 1), (20, 20, 21, 21))]
    )
    assert ring.meets(prints.boxes, prints.of).tolist() == [False, True, True, False, False]
    assert ring.corners == 8
    far = [[20, 20], [22, 20], [22, 22], [20, 20]]
    both = {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE], [far]]}
    assert parse_geojson(both).meets(prints.boxes, prints.of).tolist() == [False, True, True, False, True]
    collection = {
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}},
        "features": [
            {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [SQUARE, HOLE]}},
            {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [far]}},
        ],
    }
    assert parse_geojson(collection) == parse_geojson(both)
    assert parse_geojson(parse_geojson(both).geojson()) == parse_geojson(both), "written and read again"
    overlapping = {"type": "MultiPolygon", "coordinates": [[SQUARE], [[[4, 4], [15, 4], [15, 6], [4, 4]]]]}
    assert parse_geojson(overlapping).meets(prints.boxes, prints.of).tolist() == [True, True, True, False, False]
    high = polygon([[*point, 437.5] for point in SQUARE])
    assert high == polygon(SQUARE), "heights are left out"
    assert hash(high) == hash(polygon(SQUARE))
    assert polygon(SQUARE[::-1]).meets(prints.boxes, prints.of)[0], "either way round"


def test_a_place_that_is_unknown_is_in_no_polygon() -> None:
    prints = Footprints([None, Footprint.box((1, 1, 2, 2))])
    assert polygon(SQUARE).meets(prints.boxes, prints.of).tolist() == [False, True]
    assert polygon(SQUARE).meets(np.empty((4, 0)), prints.of).tolist() == []


def many_corners(count: int) -> list[list[float]]:
    angle = np.linspace(0, 2 * np.pi, count)[:-1]
    ring = np.stack([10 * np.cos(angle), 10 * np.sin(angle)], axis=1).tolist()
    return [*ring, ring[0]]


FAULTS: dict[str, tuple[object, str]] = {
    "no object": ([SQUARE], r"polygon: got \[\[\[0, 0\], .*expected a Polygon or MultiPolygon"),
    "no type": ({"coordinates": [SQUARE]}, "polygon: got {'coordinates'"),
    "a point": ({"type": "Point", "coordinates": [0, 0]}, "polygon: got type 'Point'"),
    "a list of types": ({"type": ["Polygon"], "coordinates": [SQUARE]}, r"polygon: got type \['Polygon'\]"),
    "a feature without geometry": ({"type": "Feature", "geometry": None}, "polygon: got None"),
    "no features": ({"type": "FeatureCollection", "features": []}, "polygon: got no ring"),
    "features of nothing": ({"type": "FeatureCollection"}, "polygon: features: coordinates: got None"),
    "no coordinates": ({"type": "Polygon"}, "polygon: coordinates: got None"),
    "no rings": ({"type": "Polygon", "coordinates": []}, "polygon: got no ring"),
    "no parts": ({"type": "MultiPolygon", "coordinates": []}, "polygon: got no ring"),
    "a ring of numbers": ({"type": "Polygon", "coordinates": [[0, 1, 2]]}, "polygon: coordinates: got 0"),
    "a ring too shallow": ({"type": "Polygon", "coordinates": SQUARE}, "polygon: coordinates: got 0"),
    "an object for a list": ({"type": "Polygon", "coordinates": {"0": SQUARE}}, "coordinates: got {'0'"),
    "one number": ({"type": "Polygon", "coordinates": [[[0], [1], [2], [0]]]}, r"corner: got \[0\]"),
    "text": ({"type": "Polygon", "coordinates": [[["0", "0"]] * 4]}, "corner: got"),
    "truth": ({"type": "Polygon", "coordinates": [[[True, False]] * 4]}, r"corner: got \[True, False\]"),
    "null": ({"type": "Polygon", "coordinates": [[[None, 0]] * 4]}, "corner: got"),
    "huge": ({"type": "Polygon", "coordinates": [[[10**400, 0]] * 4]}, "corner: got"),
    "nan": ({"type": "Polygon", "coordinates": [[[float("nan"), 0]] * 4]}, "the corner nan,0, expected longitudes"),
    "metres": ({"type": "Polygon", "coordinates": [[[5e5, 5e6]] * 4]}, "the corner 500000,5e"),
    "latitude": (
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 91], [1, 0], [0, 0]]]},
        "polygon, part 1, outer ring: got the corner 1,91, expected .*latitudes within ±90",
    ),
    "beyond 180": ({"type": "Polygon", "coordinates": [[[175, 0], [185, 0], [185, 5], [175, 0]]]}, "cut the polygon"),
    "not cut": (
        {"type": "Polygon", "coordinates": [[[175, 0], [-175, 0], [-175, 5], [175, 0]]]},
        "an edge from longitude 175 to -175, .* Cut the polygon at the antimeridian",
    ),
    "open": ({"type": "Polygon", "coordinates": [SQUARE[:-1]]}, "expected a closed ring"),
    "three corners": ({"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, 0]]]}, "got 3 corners"),
    "hole open": ({"type": "Polygon", "coordinates": [SQUARE, HOLE[:-1]]}, "polygon, part 1, hole 1: got first corner"),
    "bow tie": (
        {"type": "Polygon", "coordinates": [[[0, 0], [2, 2], [2, 0], [0, 2], [0, 0]]]},
        r"polygon, part 1: got Self-intersection.*1 1.*expected rings that do not cross",
    ),
    "no area": ({"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [2, 2], [0, 0]]]}, "expected rings that do not"),
    "hole outside": (
        {"type": "Polygon", "coordinates": [SQUARE, [[20, 0], [21, 0], [21, 1], [20, 0]]]},
        "Hole lies outside shell",
    ),
    "second part": (
        {"type": "MultiPolygon", "coordinates": [[SQUARE], [[[0, 0], [1, 0]]]]},
        "polygon, part 2, outer ring: got 2 corners",
    ),
    "too many corners": (
        {"type": "Polygon", "coordinates": [many_corners(MAX_CORNERS + 1)]},
        "polygon: got 10,001 corners, expected at most 10,000. Simplify",
    ),
    "another crs": (
        {"type": "Polygon", "coordinates": [SQUARE], "crs": {"properties": {"name": "EPSG:3857"}}},
        "polygon: crs: got .*EPSG:3857.*expected longitude and latitude",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_one_clear_line(name: str) -> None:
    value, told = FAULTS[name]
    before = copy.deepcopy(value)
    with pytest.raises(GridError, match=told) as caught:
        parse_geojson(value)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)
    assert repr(value) == repr(before)


def test_the_most_corners_are_taken() -> None:
    area = polygon(many_corners(MAX_CORNERS))
    assert area.corners == MAX_CORNERS - 1
    prints = scattered(np.random.default_rng(0), area, 200, size=1.5)
    assert 0 < area.meets(prints.boxes, prints.of).sum() < 200


def test_files(tmp_path: Path) -> None:
    good = tmp_path / "area.geojson"
    good.write_text(json.dumps({"type": "Polygon", "coordinates": [SQUARE]}))
    assert read_geojson(good) == polygon(SQUARE)
    for name, data, told in (
        ("none.geojson", None, "none.geojson: got No such file"),
        ("text.geojson", b"POLYGON ((0 0, 1 1))", "text.geojson: got JSONDecodeError"),
        ("bytes.geojson", b"\xff\xfe\x00", "bytes.geojson: got"),
        ("deep.geojson", b"[" * 200_000, "deep.geojson: got RecursionError"),
        ("large.geojson", b" " * (8 * 2**20 + 1), "large.geojson: got more than 8 MiB"),
    ):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(GridError, match=told):
            read_geojson(tmp_path / name)
    with pytest.raises(GridError, match="Is a directory"):
        read_geojson(tmp_path)


def test_without_shapely_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "shapely" else util.find_spec(name))
    with pytest.raises(AlidadeError, match=r'a polygon: got an installation without shapely.*"alidade\[search\]"'):
        polygon(SQUARE)


@given(rows=st.lists(boxes().filter(lambda b: b[1] <= b[3]), min_size=1, max_size=6))
def test_the_enclosing_box_holds_all_boxes_and_is_the_smallest(rows: list[tuple[float, float, float, float]]) -> None:
    west, south, east, north = enclosing_box(np.array(rows).T)
    assert (south, north) == (min(r[1] for r in rows), max(r[3] for r in rows))

    def span(w: float, e: float) -> float:
        return 360.0 if e - w == 360.0 else (e - w) % 360.0

    def holds(w: float, length: float) -> bool:
        return all(length == 360.0 or (r[0] - w) % 360.0 + span(r[0], r[2]) <= length for r in rows)

    assert holds(west, span(west, east))
    # no arc that starts where a box starts is shorter
    shortest = min(length for w in {r[0] for r in rows} for length in range(0, 361, 5) if holds(w, length))
    assert span(west, east) == shortest


def test_a_box_that_need_not_cross_does_not() -> None:
    assert enclosing_box(np.array([(8, 47, 9, 48), (-100, 40, -99, 41)]).T) == (-100, 40, 9, 48)
    assert enclosing_box(np.array([(170, 0, 175, 1), (-175, 2, -170, 3)]).T) == (170, 0, -170, 3)
    assert enclosing_box(np.array([(-90, 0, 0, 1), (90, 0, 180, 1)]).T) == (-90, 0, 180, 1)
    assert enclosing_box(np.array([(-180, 0, 0, 1), (0, 0, 180, 1)]).T) == (-180, 0, 180, 1)

"""Makes the page's basemap, ``land.json``, from the npm package world-atlas (Natural Earth 1:110m, public domain).

    npm pack world-atlas && tar xzf world-atlas-*.tgz
    python scripts/make_land.py package/land-110m.json src/alidade/server/page/static/land.json

The page draws it three times side by side, so longitudes may go beyond 180. TopoJSON stores each stretch of coast
once, as differences of whole numbers; rings name the stretches they consist of, a negative number (``~n``) meaning
stretch n backwards.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

DECIMALS = 2
"""A hundredth of a degree, about a kilometre: finer than the outline itself."""

Point = tuple[float, float]


def stretches(topology: dict) -> list[list[Point]]:
    """Every arc in degrees."""
    (scale_x, scale_y), (west, south) = topology["transform"]["scale"], topology["transform"]["translate"]
    found = []
    for arc in topology["arcs"]:
        x = y = 0
        points = []
        for dx, dy in arc:
            x, y = x + dx, y + dy
            points.append((round(x * scale_x + west, DECIMALS), round(y * scale_y + south, DECIMALS)))
        found.append(points)
    return found


def ring(numbers: list[int], arcs: list[list[Point]]) -> list[Point]:
    """A closed ring, without points that rounding made equal to the one before."""
    points: list[Point] = []
    for number in numbers:
        points += arcs[number] if number >= 0 else arcs[~number][::-1]
    return [p for before, p in zip([None, *points], points, strict=False) if p != before]


def unrolled(points: list[Point]) -> list[Point]:
    """A ring whose longitudes run on over the antimeridian instead of jumping back; one around a pole goes over it."""
    found = [points[0]]
    for lon, lat in points[1:]:
        before = found[-1][0]
        found.append((round(lon + 360 * round((before - lon) / 360), DECIMALS), lat))
    (first, _), (last, lat) = found[0], found[-1]
    if abs(last - first) > 180:
        pole = 90.0 if lat > 0 else -90.0
        found += [(last, pole), (first, pole), found[0]]
    return found


def main(source: Path, target: Path) -> None:
    topology = json.loads(source.read_text())
    arcs = stretches(topology)
    geometries = topology["objects"]["land"]["geometries"]
    polygons = [[unrolled(ring(r, arcs)) for r in polygon] for g in geometries for polygon in g["arcs"]]
    kept = [[r for r in polygon if len(r) >= 4] for polygon in polygons]
    land = {"type": "MultiPolygon", "coordinates": [p for p in kept if p]}
    target.write_text(json.dumps(land, separators=(",", ":")) + "\n")
    print(f"{target}: {len(land['coordinates'])} polygons, {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""The XYZ tiles of web maps: squares of 256 px in spherical Mercator, numbered from the north-west."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from alidade.imagery.footprint import Box
from alidade.server.problems import unknown

SIDE = 256
"""Pixels along one side of a tile."""
DEEPEST = 22
"""At this zoom a pixel is 4 cm wide at the equator."""
EDGE_LAT = math.degrees(math.atan(math.sinh(math.pi)))
"""Where the map ends, north and south."""
EQUATOR_M = 40_075_016.686
FloatArray = npt.NDArray[np.float64]


def check_tile(z: int, x: int, y: int) -> tuple[int, int, int]:
    """The numbers of a tile, when there is such a tile.

    Raises:
        Refused: there is none (404).
    """
    if 0 <= z <= DEEPEST and 0 <= x < 2**z and 0 <= y < 2**z:
        return z, x, y
    raise unknown(
        "map tile",
        f"{z}/{x}/{y}"[:80],
        f"a zoom of 0 to {DEEPEST}, and x and y from 0 to 2^zoom - 1",
        "Ask for z/x/y as web maps number them.",
    )


def from_degrees(lon: npt.ArrayLike, lat: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Places on the map, 0 to 1 eastward from the antimeridian and southward from 85.05° north; latitudes are clipped.

    Args:
        lon: degrees, -180 to 180.
        lat: degrees, of the same shape.
    """
    phi = np.radians(np.clip(np.asarray(lat, dtype=np.float64), -EDGE_LAT, EDGE_LAT))
    return (np.asarray(lon, dtype=np.float64) + 180.0) / 360.0, 0.5 - np.arcsinh(np.tan(phi)) / (2.0 * math.pi)


def to_degrees(x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Longitudes and latitudes of places on the map; the inverse of :func:`from_degrees`."""
    phi = np.arctan(np.sinh(math.pi * (1.0 - 2.0 * np.asarray(y, dtype=np.float64))))
    return np.asarray(x, dtype=np.float64) * 360.0 - 180.0, np.degrees(phi)


def box_of(z: int, x: int, y: int) -> Box:
    """(west, south, east, north) of a tile in degrees."""
    (west, east), (north, south) = to_degrees(np.array([x, x + 1]) / 2**z, np.array([y, y + 1]) / 2**z)
    return float(west), float(south), float(east), float(north)


def metres_per_pixel(z: int, lat: float) -> float:
    """Ground metres that a tile's pixel spans at a latitude."""
    return EQUATOR_M * math.cos(math.radians(lat)) / (SIDE * 2.0**z)

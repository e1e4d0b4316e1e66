"""Sentences from physics: what green, red and near infrared say about water and vegetation, without any label.

- NDWI = (green − NIR) / (green + NIR) above 0 is open water: S. K. McFeeters, The use of the Normalized Difference
  Water Index (NDWI) in the delineation of open water features, International Journal of Remote Sensing 17(7), 1996.
- NDVI = (NIR − red) / (NIR + red) below 0.2 is bare ground (or built up), from 0.5 it is full vegetation, and in
  between a mixture: J. A. Sobrino, J. C. Jiménez-Muñoz, L. Paolini, Land surface temperature retrieval from LANDSAT
  TM 5, Remote Sensing of Environment 90(4), 2004.
- Green reflectance above 0.39 is cloud or snow, before either index is asked (see ``imagery.clouds``): snow has a
  positive NDWI, too. Values made for display have no reflectance, so there this question is not asked.

Eight-bit counts, such as NAIP's, are no reflectance either; cameras and years differ in their gains, and the same
limits are then a rough rule. Some shadows count as water, and turbid water may count as bare ground.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alidade.errors import SensorError
from alidade.imagery.bands import Unit
from alidade.imagery.clouds import GREEN_VERY_BRIGHT
from alidade.imagery.raster import Raster
from alidade.training.captions.captioned import CaptionError
from alidade.training.captions.cover import cover_captions, cover_shares

NDWI_WATER = 0.0
NDVI_SPARSE = 0.2
NDVI_DENSE = 0.5

WORDS = {1: "open water", 2: "dense vegetation", 3: "sparse vegetation", 4: "bare ground", 5: "cloud or snow"}
"""Numbers of ``surface``; 0 is a pixel that tells nothing."""

_NEAR_INFRARED = ("nir", "nir08")
_UNITS = (Unit.REFLECTANCE, Unit.DISPLAY)


@dataclass(frozen=True, kw_only=True, eq=False)
class Indices:
    """Spectral indices of one image.

    Attributes:
        ndvi: float32 ``[H, W]``, −1 to 1; NaN where ``known`` is False.
        ndwi: likewise.
        green: green reflectance (or counts), NaN where ``known`` is False.
        known: where the pixel is valid, its values are finite and not negative, and neither index divides by zero.
        unit: of the bands.
    """

    ndvi: NDArray[np.float32]
    ndwi: NDArray[np.float32]
    green: NDArray[np.float32]
    known: NDArray[np.bool_]
    unit: Unit


def indices(raster: Raster) -> Indices:
    """NDVI and NDWI from the units that the raster's encodings declare.

    Near infrared is the band with the common name ``nir`` (Sentinel-2 B08, NAIP N), else ``nir08`` (Landsat).

    Raises:
        CaptionError: no green, red or near infrared band, or one that is neither reflectance nor display counts.
        SensorError: an offset that has not been resolved.
    """
    common = {b.common_name for b in raster.bands}
    infrared = next((n for n in _NEAR_INFRARED if n in common), None)
    if infrared is None or not {"green", "red"} <= common:
        bands = ", ".join(b.name for b in raster.bands)
        raise _bad(raster, "bands", f"{bands} of {raster.sensor.id}", "green, red and near infrared")
    try:
        chosen = raster.select(("green", "red", infrared))
    except SensorError as error:
        raise _bad(raster, "bands", str(error.got), "one green, one red and one near infrared band") from None
    units = {e.unit for e in chosen.encodings}
    if len(units) != 1 or not units <= set(_UNITS):
        raise _bad(raster, "units", ", ".join(sorted(units)), "reflectance, or display counts, in all three bands")
    values = chosen.physical()
    green, red, near = values
    known = chosen.valid & np.isfinite(values).all(axis=0) & (values >= 0).all(axis=0)
    known &= (green + near > 0) & (red + near > 0)
    return Indices(
        ndvi=_normalised(near, red, known),
        ndwi=_normalised(green, near, known),
        green=np.where(known, green, np.float32(np.nan)),
        known=known,
        unit=units.pop(),
    )


def surface(raster: Raster) -> NDArray[np.uint8]:
    """What each pixel shows, as numbers of ``WORDS`` ``[H, W]``; 0 where it is not known.

    Raises:
        AlidadeError: as ``indices``.
    """
    found = indices(raster)
    classes = np.full(found.known.shape, 4, dtype=np.uint8)
    classes[found.ndvi >= NDVI_SPARSE] = 3
    classes[found.ndvi >= NDVI_DENSE] = 2
    classes[found.ndwi > NDWI_WATER] = 1
    if found.unit is Unit.REFLECTANCE:
        classes[found.green > GREEN_VERY_BRIGHT] = 5
    classes[~found.known] = 0
    return classes


def surface_shares(raster: Raster) -> dict[str, float]:
    """Shares of the known pixels by the words of ``WORDS``, the largest first; together 1.

    Raises:
        CaptionError: as ``indices``, or no pixel is known.
        SensorError: an offset that has not been resolved.
    """
    classes = surface(raster)
    if not classes.any():
        raise _bad(raster, "pixels", "none that tells anything", "at least one valid pixel")
    return cover_shares(classes, WORDS)


def physics_captions(raster: Raster, rng: np.random.Generator, *, count: int = 5) -> tuple[str, ...]:
    """``count`` different sentences about water and vegetation of an image; the same ``rng``, the same sentences.

    Raises:
        AlidadeError: as ``surface_shares``.
    """
    return cover_captions(surface_shares(raster), rng, count=count)


def _normalised(plus: NDArray[np.float32], minus: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    out = np.full(known.shape, np.nan, dtype=np.float32)
    np.divide(plus - minus, plus + minus, out=out, where=known)
    return out


def _bad(raster: Raster, what: str, got: str, expected: str) -> CaptionError:
    return CaptionError(
        f"{raster.source}: {what}", got=got, expected=expected,
        next_step="Use images with a near infrared band, or make captions from labels or land cover.",
    )  # fmt: skip

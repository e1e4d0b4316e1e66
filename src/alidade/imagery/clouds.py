"""How much of a raster is cloud: from its scene classification, or from the brightness of green and red."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alidade.imagery.bands import Unit
from alidade.imagery.raster import Raster

SCL_BAND = "SCL"
SCL_NO_DATA = 0
SCL_CLOUDY = (3, 8, 9, 10)
"""Sentinel-2 scene classes that hide the ground: cloud shadow, cloud of medium and of high probability, thin
cirrus (ESA, Sentinel-2 Level-2A Algorithm Theoretical Basis Document)."""

GREEN_BRIGHT = 0.175
GREEN_VERY_BRIGHT = 0.39
"""Green reflectance from which a pixel is cloud if green exceeds red, and from which it is cloud in any case.

Braaten, Cohen and Yang, Automated cloud and cloud shadow identification in Landsat MSS imagery for
temperate ecosystems, Remote Sensing of Environment 169, 2015, doi:10.1016/j.rse.2015.08.006.
"""


def reflectance_cloud_share(raster: Raster) -> float | None:
    """The share of valid pixels, 0 to 1, that cloud (or, with a scene classification, cloud shadow) covers.

    A raster with a band called ``"SCL"`` is judged by it. Otherwise green and red reflectance decide, by a
    rule made for top-of-atmosphere values: it finds thick cloud, takes snow and bright sand for cloud, and
    overlooks thin cirrus.

    Returns:
        ``None`` where it cannot be told: no scene classification and no green and red reflectance (radar,
        display values), or no valid pixel.

    Raises:
        SensorError: the offset of the reflectance has not been resolved.
    """
    names = [b.name for b in raster.bands]
    if SCL_BAND in names:
        classes = raster.pixels[names.index(SCL_BAND)]
        return _share(np.isin(classes, SCL_CLOUDY), raster.valid & (classes != SCL_NO_DATA))
    visible = {
        b.common_name
        for b, e in zip(raster.bands, raster.encodings, strict=True)
        if e.unit is Unit.REFLECTANCE and b.common_name in ("green", "red")
    }
    if visible != {"green", "red"}:
        return None
    green, red = raster.select(("green", "red")).physical()
    # the paper's (green - red) / (green + red) > 0, without the division: a sum of zero is no cloud
    greener = (green > red) & (green > -red)
    return _share((greener & (green > GREEN_BRIGHT)) | (green > GREEN_VERY_BRIGHT), raster.valid)


def _share(cloudy: NDArray[np.bool_], counted: NDArray[np.bool_]) -> float | None:
    total = int(counted.sum())
    return int((cloudy & counted).sum()) / total if total else None

"""alidade: satellite and aerial imagery of any sensor and ground resolution, as representations.

raster = alidade.read("scene.tif")
model = alidade.load()
vector = model.embed(raster)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alidade.errors import AlidadeError
    from alidade.imagery.bands import Sensor
    from alidade.imagery.files import open_raster, read
    from alidade.imagery.grid import Grid
    from alidade.imagery.raster import Raster
    from alidade.imagery.sensors import SENSORS
    from alidade.imagery.windows import Window
    from alidade.models.model import Model
    from alidade.models.registry import load, models
    from alidade.models.tokens import Tokens

__version__ = "0.1.0"

# torch takes seconds to import: reading a file's facts should not wait for it
_HOMES = {
    "AlidadeError": "alidade.errors",
    "Sensor": "alidade.imagery.bands",
    "SENSORS": "alidade.imagery.sensors",
    "Grid": "alidade.imagery.grid",
    "Raster": "alidade.imagery.raster",
    "Window": "alidade.imagery.windows",
    "open_raster": "alidade.imagery.files",
    "read": "alidade.imagery.files",
    "Model": "alidade.models.model",
    "Tokens": "alidade.models.tokens",
    "load": "alidade.models.registry",
    "models": "alidade.models.registry",
}

__all__ = [  # noqa: RUF022  (grouped by meaning)
    "read",
    "open_raster",
    "Raster",
    "Grid",
    "Window",
    "Sensor",
    "SENSORS",
    "load",
    "models",
    "Model",
    "Tokens",
    "AlidadeError",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'alidade' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""The parts of the page that run in the browser: map, gallery and the button that sends an image. Thin: see static/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

# registers Leaflet, as NiceGUI brings it along, under the name that map.js imports
import nicegui.elements.leaflet  # noqa: F401
from nicegui.element import Element

from alidade.server.page.rows import Row, gradient
from alidade.server.page.view import Geometry

STATIC = Path(__file__).parent / "static"


class ArchiveMap(Element, component="static/map.js"):
    """Scenes, similarity and results on a land outline.

    Emits ``ready``, ``area`` (``{geometry}``), ``place`` (``{lon, lat}``), ``picked`` (``{id}``), ``layers`` and
    ``moved`` (``{lat, lon, zoom}``).
    """

    def __init__(self) -> None:
        super().__init__()
        self.add_resource(STATIC)
        self._props["ramp"] = gradient()

    def set_scenes(self, scenes: Sequence[Row]) -> None:
        """The registered scenes, see :func:`alidade.server.page.rows.scene_rows`."""
        self.run_method("setScenes", scenes)

    def set_results(self, rows: Sequence[Row], visible: int, query_id: str | None, marks: Mapping[str, str]) -> None:
        """Tiles of which the first ``visible`` are seen, and the search whose similarity can be shown."""
        self.run_method("setResults", rows, visible, query_id, marks)

    def trim(self, visible: int) -> None:
        """See only the first ``visible``."""
        self.run_method("trim", visible)

    def set_marks(self, marks: Mapping[str, str]) -> None:
        """``"yes"`` and ``"no"`` by tile id."""
        self.run_method("setMarks", marks)

    def set_area(self, area: Geometry | None) -> None:
        """The area that is searched."""
        self.run_method("setArea", area)

    def set_eye(self, lat: float, lon: float, zoom: float) -> None:
        """Look there."""
        self.run_method("setView", lat, lon, zoom)

    def show_heat(self, heat: bool) -> None:
        """Switch the similarity layer."""
        self.run_method("showLayers", {"heat": heat})

    def select(self, tile_id: str | None, go: str) -> None:
        """Outline one tile. ``go``: ``"there"`` goes to it, ``"look"`` only when it cannot be seen, ``""`` never."""
        self.run_method("select", tile_id, go)

    def fit(self) -> None:
        """Look at all results, or at all scenes."""
        self.run_method("fitAll")


class Gallery(Element, component="static/gallery.js"):
    """Chips, of which only those in sight exist in the browser.

    Emits ``current`` (``{id, go}``), ``mark`` (``{id, mark}``) and ``example`` (``{id, sign}``).
    """

    def __init__(self, label: str) -> None:
        super().__init__()
        self._props["label"] = label

    def set_rows(self, rows: Sequence[Row], visible: int, marks: Mapping[str, str]) -> None:
        """Chips of which the first ``visible`` are seen."""
        self.run_method("setRows", rows, visible, marks)

    def trim(self, visible: int) -> None:
        """See only the first ``visible``."""
        self.run_method("trim", visible)

    def set_marks(self, marks: Mapping[str, str]) -> None:
        """``"yes"`` and ``"no"`` by tile id."""
        self.run_method("setMarks", marks)

    def set_examples(self, more: Sequence[str], less: Sequence[str]) -> None:
        """Which tiles are examples."""
        self.run_method("setExamples", more, less)

    def select(self, tile_id: str) -> None:
        """Make one the current chip and bring it into sight."""
        self.run_method("select", tile_id)


class ImageButton(Element, component="static/attach.js"):
    """Sends an image to ``/api/upload``. Emits ``sent`` (``{token, name}``) and ``failed`` (``{message}``)."""

"""The forms of answers and of further requests, as OpenAPI describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from alidade.server.asking import MOST_EXAMPLES, TileId
from alidade.server.config import LONGEST_K
from alidade.server.labels import Mark
from alidade.server.services import Services

NotesName = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_-]{0,63}$")]


def services_of(request: Request) -> Services:
    """The services of the app that got the request."""
    found: Services = request.app.state.services
    return found


Serving = Annotated[Services, Depends(services_of)]


class Problem(BaseModel):
    """Every refusal: what is wrong, what was found, what was expected, and what to do next."""

    what: str
    got: str
    expected: str
    next_step: str


class Health(BaseModel):
    """How the server is."""

    status: Literal["starting", "ready", "failed", "stopping"]
    archive: str
    model: str | None
    rows: int
    indexed: int = Field(description="Rows that an index covers; 0 without one.")
    exact_limit: int | None = Field(description="Up to so many matches every one is compared; null: always.")
    version: str
    problem: str | None = Field(description="Why it cannot serve.")
    repairs: list[str] = Field(description="What was put right at the start.")


class Hit(BaseModel):
    """One tile that was found."""

    id: str
    score: float = Field(description="Cosine with the query, -1 to 1.")
    sensor: str
    time: str | None
    gsd_m: float
    cloud_share: float | None
    valid_share: float
    scene: str = Field(description="Id of its scene, for map tiles.")
    source: str
    window: tuple[int, int, int, int] = Field(description="Row, column, height and width in pixels of its scene.")
    bbox: tuple[float, float, float, float] | None
    centre: tuple[float, float] | None
    geometry: dict[str, Any] | None = Field(description="GeoJSON.")


class Found(BaseModel):
    """The answer to a search, best first."""

    query_id: str = Field(description="For the similarity map and for exports; the same question gives the same id.")
    exact: bool = Field(description="Whether every match was compared; otherwise an index chose which were.")
    scanned: int
    matches: int = Field(description="Tiles that met the conditions.")
    milliseconds: float
    note: str | None
    hits: list[Hit]


class FoundAgain(Found):
    """The answer to a saved search, and which of its tiles the last answer did not have."""

    new: list[str]


class Uploaded(BaseModel):
    """A query image that was taken in."""

    token: str = Field(description="For `upload` in a search; good until the server ends or many more were sent.")
    sensor: str
    height: int
    width: int


class SceneForm(BaseModel):
    """One registered scene."""

    id: str
    name: str
    sensor: str
    time: str | None
    gsd_m: float
    tiles: int
    bbox: tuple[float, float, float, float] | None
    footprint: dict[str, Any] | None = Field(description="Box around its tiles as GeoJSON.")


class Scenes(BaseModel):
    """Some of the registered scenes."""

    total: int
    scenes: list[SceneForm]


class Legend(BaseModel):
    """What the colours of a similarity map mean."""

    low: float = Field(description="Score at the first colour; lower ones have it, too.")
    high: float
    shown: int = Field(description="Tiles on the map.")
    colours: list[str] = Field(description="From low to high.")


class ExportBody(BaseModel):
    """Which search to export."""

    model_config = ConfigDict(extra="forbid")

    query_id: str = Field(max_length=64)
    ids: list[TileId] | None = Field(default=None, max_length=LONGEST_K, description="Only these of its tiles.")


class LabelChange(BaseModel):
    """A label for a tile; without a mark, the label is taken away."""

    model_config = ConfigDict(extra="forbid")

    mark: Mark | None
    note: str = Field(default="", max_length=1_000)


class LabelsBody(BaseModel):
    """Changes to a set of labels."""

    model_config = ConfigDict(extra="forbid")

    name: NotesName = "default"
    labels: dict[TileId, LabelChange] = Field(max_length=MOST_EXAMPLES * 10)


class LabelForm(BaseModel):
    """What was said of a tile, and when."""

    mark: Mark
    note: str
    time: str


class LabelSet(BaseModel):
    """A set of labels, and the names of all sets."""

    name: str
    names: list[str]
    labels: dict[str, LabelForm]


class LabelsKept(BaseModel):
    """How many labels a set has after a change, all of them on the disk."""

    name: str
    count: int


class SavedForm(BaseModel):
    """A saved search."""

    name: str
    query: dict[str, Any]
    time: str = Field(description="When it was saved or last asked.")
    rows: int = Field(description="Rows of the archive when it was last asked; 0 before.")


class SavedList(BaseModel):
    """All saved searches."""

    searches: list[SavedForm]


class Done(BaseModel):
    """It is done, and on the disk."""

    name: str


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "Not JSON, or cut off."},
    401: {"model": Problem, "description": "Without the token."},
    403: {"model": Problem, "description": "From another site."},
    404: {"model": Problem, "description": "There is no such thing."},
    409: {"model": Problem, "description": "The disk refuses."},
    413: {"model": Problem, "description": "Too long."},
    421: {"model": Problem, "description": "Another host."},
    422: {"model": Problem, "description": "It cannot be understood or answered."},
    429: {"model": Problem, "description": "Too many at once; see Retry-After."},
    503: {"model": Problem, "description": "Not ready, or shutting down; see Retry-After."},
}
PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "A picture."}}

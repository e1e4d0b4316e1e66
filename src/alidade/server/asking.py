"""A search as it comes over HTTP: its form, its limits, and what it means."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from alidade.errors import AlidadeError
from alidade.imagery.polygon import parse_geojson
from alidade.search.filters import Filter, parse_time
from alidade.search.query import QueryImage, Question
from alidade.server.config import LONGEST_K

LONGEST_TEXT = 1_000
MOST_EXAMPLES = 1_000

TileId = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class SearchBody(BaseModel):
    """What tiles shall be like (at least one of text, place, positive and upload), and what they must meet."""

    model_config = ConfigDict(extra="forbid")

    text: Text | None = Field(default=None, description="Words for what the tiles show.")
    negative_text: Text | None = Field(default=None, description="Words for what they do not show.")
    place: tuple[Number, Number] | None = Field(default=None, description="Like the tile at [longitude, latitude].")
    positive: list[TileId] = Field(default=[], max_length=MOST_EXAMPLES, description="Ids of tiles like these.")
    negative: list[TileId] = Field(default=[], max_length=MOST_EXAMPLES, description="Ids of tiles not like these.")
    upload: str | None = Field(default=None, max_length=64, description="Token of an uploaded image.")
    bbox: tuple[Number, Number, Number, Number] | None = Field(
        default=None, description="[west, south, east, north] in degrees; west > east crosses the antimeridian."
    )
    polygon: dict[str, Any] | None = Field(default=None, description="GeoJSON Polygon or MultiPolygon.")
    time: str | None = Field(default=None, max_length=100, description="START/END in ISO 8601; one date is that day.")
    sensor: str | None = Field(default=None, max_length=100, description="Sensor id.")
    gsd: tuple[Number | None, Number | None] | None = Field(
        default=None, description="[finest, coarsest] ground metres per pixel; null leaves a side open."
    )
    keep_labelled: bool = Field(default=True, description="Whether tiles given as examples may be in the answer.")
    k: int = Field(default=10, ge=1, description="How many results.", json_schema_extra={"maximum": LONGEST_K})


def question_of(body: SearchBody, image: QueryImage | None = None) -> Question:
    """What a search means.

    Args:
        body: the search.
        image: its uploaded image.

    Raises:
        AlidadeError: too many results asked for, nothing that tiles could be like, or a condition that cannot be
            understood.
    """
    if body.k > LONGEST_K:
        raise AlidadeError(
            "number of results",
            got=f"{body.k:,}"[:40],
            expected=f"at most {LONGEST_K:,} over HTTP",
            next_step="Narrow the search by place or time; for all rows read the archive's shards (GeoParquet).",
        )
    return Question(
        text=body.text,
        negative_text=body.negative_text,
        images=() if image is None else (image,),
        place=body.place,
        positive=tuple(body.positive),
        negative=tuple(body.negative),
        conditions=conditions_of(body),
        k=body.k,
        keep_labelled=body.keep_labelled,
    )


def conditions_of(body: SearchBody) -> Filter:
    """What a search's tiles must meet.

    Raises:
        AlidadeError: a condition that cannot be understood.
    """
    return Filter(
        bbox=body.bbox,
        time=None if body.time is None else parse_time(body.time),
        sensor=body.sensor,
        polygon=None if body.polygon is None else parse_geojson(body.polygon),
        gsd=body.gsd,
    )

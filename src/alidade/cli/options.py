"""Options that several commands share: what the user declares about files, and how text becomes values."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from alidade.errors import AlidadeError
from alidade.imagery.bands import Unit
from alidade.imagery.files import Declared

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of text.")]
ModelName = Annotated[str | None, typer.Option("--model", help="Model name or directory. [default: the shipped one]")]
Weights = Annotated[str | None, typer.Option("--weights", help="Checkpoint file, for croma-base and croma-large.")]
SensorName = Annotated[str | None, typer.Option("--sensor", help="Sensor of the files, e.g. sentinel-2-l2a.")]
Bands = Annotated[str | None, typer.Option("--bands", help="Band names in file order, e.g. B02,B03,B04.")]
UnitName = Annotated[str | None, typer.Option("--unit", help="Unit: reflectance, dB, power or display.")]
Scale = Annotated[float | None, typer.Option("--scale", help="value = stored * SCALE + OFFSET.")]
Offset = Annotated[float | None, typer.Option("--offset", help="See --scale; Sentinel-2: 0 or -0.1.")]
Nodata = Annotated[float | None, typer.Option("--nodata", help="Stored number that means no data.")]
Taken = Annotated[str | None, typer.Option("--taken", help="Time of acquisition, ISO 8601, UTC unless it says.")]
Gsd = Annotated[float | None, typer.Option("--gsd", help="Ground metres per pixel, for files without a CRS.")]


def declared_from(
    sensor: str | None,
    bands: str | None,
    unit: str | None,
    scale: float | None,
    offset: float | None,
    nodata: float | None,
    taken: str | None,
    gsd: float | None,
) -> Declared:
    """The options as what the user declares about a file.

    Raises:
        AlidadeError: a unit or a time that cannot be read.
    """
    return Declared(
        sensor=sensor,
        bands=tuple(name.strip() for name in bands.split(",")) if bands else None,
        unit=parse_unit(unit) if unit else None,
        scale=scale,
        offset=offset,
        nodata=nodata,
        time=parse_moment(taken) if taken else None,
        gsd_m=gsd,
    )


def parse_unit(text: str) -> Unit:
    """A unit by its name, case-insensitive."""
    for unit in Unit:
        if unit.value.casefold() == text.casefold():
            return unit
    raise AlidadeError(
        "--unit", got=repr(text), expected=f"one of {', '.join(Unit)}", next_step="Name the files' own unit."
    )


def parse_moment(text: str) -> datetime:
    """A moment in ISO 8601; UTC when it names no zone."""
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise AlidadeError(
            "--taken", got=repr(text), expected="a time such as 2024-06-30T10:15:00", next_step="Write it so."
        ) from None

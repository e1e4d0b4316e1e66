"""``alidade inspect``: what a file is, and how each fact was found out."""

from __future__ import annotations

from typing import Any

from alidade.cli.output import out, show_json, show_table
from alidade.imagery.files import Declared, open_raster


def facts(file: str, declared: Declared) -> dict[str, Any]:
    """Everything a person or a program asks of a file, as plain values.

    Raises:
        AlidadeError: the file cannot be read, or a fact cannot be told.
    """
    with open_raster(file, declared) as raster:
        grid = raster.grid
        gx, gy = grid.gsd_m()
        footprint = grid.footprint()
        return {
            "file": file,
            "sensor": raster.sensor.id,
            "title": raster.sensor.title,
            "width": grid.width,
            "height": grid.height,
            "crs": grid.crs.to_string() if grid.crs else None,
            "gsd_m": [round(gx, 4), round(gy, 4)],
            "bbox": list(footprint.bbox()) if footprint else None,
            "time": raster.time.isoformat() if raster.time else None,
            "block": list(raster.block_shape),
            "bands": [
                {
                    "name": band.name,
                    "common_name": band.common_name,
                    "wavelength_um": band.wavelength_um,
                    "native_gsd_m": band.gsd_m,
                    "unit": encoding.unit.value,
                    "scale": encoding.scale,
                    "offset": encoding.offset,
                    "nodata": encoding.nodata,
                }
                for band, encoding in zip(raster.bands, raster.encodings, strict=True)
            ],
            "how": dict(raster.how),
        }


def show(found: dict[str, Any], *, as_json: bool) -> None:
    """The facts as JSON, or as a person reads them."""
    if as_json:
        show_json(found)
        return
    gx, gy = found["gsd_m"]
    out.print(found["file"], style="bold")
    out.print(f"{found['title']} ({found['sensor']})")
    out.print(f"{found['width']} x {found['height']} px, {gx:g} x {gy:g} m per pixel on the ground")
    out.print(f"CRS {found['crs'] or 'none'}, taken {found['time'] or 'at an unknown time'}")
    if found["bbox"]:
        west, south, east, north = found["bbox"]
        out.print(f"longitude {west:.5f} to {east:.5f}, latitude {south:.5f} to {north:.5f}")
    out.print()
    columns = ("band", "common", "um", "native m", "unit", "scale", "offset", "nodata")
    keys = ("name", "common_name", "wavelength_um", "native_gsd_m", "unit", "scale", "offset", "nodata")
    show_table(columns, [[_cell(band[key]) for key in keys] for band in found["bands"]])
    out.print()
    show_table(("fact", "how it was found"), list(found["how"].items()))


def _cell(value: object) -> str | None:
    return f"{value:g}" if isinstance(value, float) else None if value is None else str(value)

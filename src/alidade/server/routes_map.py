"""Thumbnails, registered scenes, and map tiles of scenes and of searches."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from alidade.server.forms import PNG, PROBLEMS, Legend, SceneForm, Scenes, Serving
from alidade.server.mercator import DEEPEST
from alidade.server.scenes import SceneInfo
from alidade.server.similarity import legend_colours
from alidade.server.thumbnails import LARGEST, SMALLEST

router = APIRouter(prefix="/api", responses=PROBLEMS)
_KEEP = {"Cache-Control": "private, max-age=3600"}

Zoom = Annotated[int, Path(ge=0, le=DEEPEST)]
Number = Annotated[int, Path(ge=0, lt=2**DEEPEST)]


@router.get("/thumbnail/{tile_id}.png", response_class=Response, responses=PNG)
async def thumbnail(
    tile_id: str, serving: Serving, size: Annotated[int, Query(ge=SMALLEST, le=LARGEST)] = 128
) -> Response:
    """A small picture of a tile; grey, with a sentence in it, when its file is gone."""
    found = await serving.maps.thumbnail(tile_id, size)
    headers = _KEEP if found.missing is None else {"Cache-Control": "no-store", "X-Alidade-Missing": "1"}
    return Response(found.png, headers=headers, media_type="image/png")


@router.get("/scenes")
async def scenes(
    serving: Serving,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
) -> Scenes:
    """The scenes that the archive was made from."""
    found = serving.maps.scenes()
    part = islice(found.values(), offset, offset + limit)
    return Scenes(total=len(found), scenes=[_form(scene) for scene in part])


@router.get("/scenes/{scene_id}/tiles/{z}/{x}/{y}.png", response_class=Response, responses=PNG)
async def scene_tile(scene_id: str, z: Zoom, x: Number, y: Number, serving: Serving) -> Response:
    """A registered scene in one web map tile (XYZ, 256 px), transparent where it has no data."""
    return Response(await serving.maps.scene_tile(scene_id, z, x, y), headers=_KEEP, media_type="image/png")


@router.get("/similarity/{query_id}")
async def legend(query_id: str, serving: Serving) -> Legend:
    """What the colours of a search's map mean."""
    layer = await serving.maps.layer(query_id)
    return Legend(low=layer.low, high=layer.high, shown=layer.shown, colours=legend_colours())


@router.get("/similarity/{query_id}/{z}/{x}/{y}.png", response_class=Response, responses=PNG)
async def similarity_tile(query_id: str, z: Zoom, x: Number, y: Number, serving: Serving) -> Response:
    """All tiles that meet a search's conditions, coloured by score, in one web map tile (XYZ, 256 px)."""
    return Response(await serving.maps.similarity_tile(query_id, z, x, y), headers=_KEEP, media_type="image/png")


def _form(scene: SceneInfo) -> SceneForm:
    return SceneForm(
        id=scene.id, name=scene.name, sensor=scene.sensor, gsd_m=scene.gsd_m, tiles=scene.tiles, bbox=scene.bbox,
        time=None if scene.time is None else scene.time.isoformat(), footprint=scene.footprint(),
    )  # fmt: skip

"""Health, search, uploads and exports."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from alidade.imagery.header import Declared
from alidade.server.asking import SearchBody
from alidade.server.exports import MEDIA_TYPES, answer_json
from alidade.server.forms import PROBLEMS, ExportBody, Found, Health, Serving, Uploaded
from alidade.server.problems import Refused
from alidade.server.searching import Upload
from alidade.server.security import too_large

router = APIRouter(prefix="/api", responses=PROBLEMS)
_UPLOADED: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The file itself.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.get("/health", responses={200: {"model": Health}})
async def health(serving: Serving) -> Response:
    """How the server is: 200 when it answers searches, 503 before and after."""
    told = serving.health()
    ready = told["status"] == "ready"
    headers = {} if ready else {"Retry-After": "2"}
    return Response(json.dumps(told), 200 if ready else 503, headers, "application/json")


@router.post("/search", responses={200: {"model": Found}})
async def search(body: SearchBody, serving: Serving) -> Response:
    """Find the tiles that are most like words, places, tiles or an uploaded image, and meet the conditions."""
    answer = await serving.searching.search(body)
    content = await serving.keeper.run("search", answer_json, answer.asked.id, answer.hits, answer.note)
    return Response(content, media_type="application/json")


@router.post("/upload", openapi_extra=_UPLOADED)
async def upload(
    request: Request,
    serving: Serving,
    sensor: Annotated[str | None, Query(max_length=100, description="Its sensor, where the file does not say.")] = None,
    gsd: Annotated[
        float | None, Query(allow_inf_nan=False, gt=0, description="Ground metres per pixel, for files without a CRS.")
    ] = None,
) -> Uploaded:
    """Take in a query image: a GeoTIFF, PNG or JPEG as the body itself."""
    searching = serving.searching
    with searching.receiving.inside():
        data = await _received(request, serving.config.uploads.upload_bytes, serving.config.upload_seconds)
        taken: Upload = await searching.upload(data, Declared(sensor=sensor, gsd_m=gsd))
    return Uploaded(token=taken.token, sensor=taken.sensor, height=taken.height, width=taken.width)


@router.post("/export", response_class=Response, responses={200: {"content": {k: {} for k in MEDIA_TYPES.values()}}})
async def export(
    body: ExportBody, serving: Serving, format: Annotated[Literal["json", "geojson", "csv", "parquet"], Query()]
) -> Response:
    """The hits of a search as a file, with the question in it."""
    content = await serving.searching.export(body.query_id, format, body.ids)
    name = f'attachment; filename="alidade-{body.query_id}.{format}"'
    return Response(content, headers={"Content-Disposition": name}, media_type=MEDIA_TYPES[format])


async def _received(request: Request, most: int, seconds: float) -> bytes:
    """A body, held to its length while it comes in.

    Raises:
        Refused: it is longer (413), or takes too long (408).
    """
    told = request.headers.get("content-length", "0")
    if not told.isdecimal() or int(told[:20]) > most:
        raise too_large("upload", told, most)
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise too_large("upload", f"more than {most:,}", most)
    except TimeoutError:
        raise Refused(
            "upload",
            got=f"{len(data):,} bytes in {seconds:g} s",
            expected=f"all of it within {seconds:g} s",
            next_step="Send a smaller part of the image.",
            status=408,
        ) from None
    return bytes(data)

"""Pictures and map tiles, made in threads and handed out."""

from __future__ import annotations

import asyncio

from alidade.server.batcher import Door
from alidade.server.keeper import Keeper
from alidade.server.lru import Lru
from alidade.server.mercator import check_tile
from alidade.server.scenes import SceneInfo
from alidade.server.searching import Asked, Searching
from alidade.server.similarity import Layer, Mosaic, Shades, png
from alidade.server.thumbnails import Thumbnail, Thumbnails

_AT_ONCE = 256
_KEPT_LAYERS = 16


class Maps:
    """Draws what is seen. Its methods belong to the server's event loop.

    Args:
        keeper: has the archive.
        searching: knows the searches.
    """

    def __init__(self, keeper: Keeper, searching: Searching) -> None:
        self._keeper, self._searching = keeper, searching
        self.door = Door("picture", most=_AT_ONCE)
        self._thumbnails = Thumbnails()
        self._layers: Lru[tuple[str, str], Layer] = Lru(_KEPT_LAYERS)
        self._making: dict[tuple[str, str], asyncio.Task[Layer]] = {}

    async def thumbnail(self, tile_id: str, size: int = 128) -> Thumbnail:
        """A small picture of a tile, grey when its file is gone.

        Raises:
            AlidadeError: no such tile (404), a bad size; :class:`Refused` when it can be had later.
        """
        engine = self._keeper.engine
        with self.door.inside():
            place = self._searching.places.get(tile_id)
            if place is None:
                place = await self._keeper.run("search", engine.place_of, tile_id)
                self._searching.places.put(tile_id, place)
            return await self._keeper.run("scene", self._thumbnails.get, engine.scenes, place, size)

    def scenes(self) -> dict[str, SceneInfo]:
        """The registered scenes by id.

        Raises:
            Refused: not ready (503).
        """
        return self._keeper.engine.scenes.scenes

    async def scene_tile(self, scene_id: str, z: int, x: int, y: int) -> bytes:
        """A scene in one map tile, as a PNG.

        Raises:
            Refused: no such scene or tile, or its file is gone (404), or it can be had later.
        """
        engine = self._keeper.engine
        with self.door.inside():
            return await self._keeper.run("scene", engine.scenes.tile, scene_id, z, x, y)

    async def layer(self, query_id: str) -> Layer:
        """The map of a search: made once, kept a while.

        Raises:
            AlidadeError: the search is not known any more; :class:`Refused` when it can be had later.
        """
        return (await self._layer(self._searching.asked(query_id)))[0]

    async def similarity_tile(self, query_id: str, z: int, x: int, y: int) -> bytes:
        """A search's map in one map tile, as a PNG.

        Raises:
            AlidadeError: the search is not known any more, no such tile; :class:`Refused` when it can be had later.
        """
        check_tile(z, x, y)
        asked = self._searching.asked(query_id)
        with self.door.inside():
            layer, mosaic = await self._layer(asked)
            return await self._keeper.run("map", _painted, mosaic, layer.shades, z, x, y)

    async def _layer(self, asked: Asked) -> tuple[Layer, Mosaic]:
        engine = self._keeper.engine
        key = (engine.revision, asked.id)
        kept = self._layers.get(key)
        if kept is None:
            # a page asks for many tiles of one map at once: they wait for the same work
            if key not in self._making:
                work = self._keeper.run("search", engine.layer, asked.vector, asked.question.conditions)
                self._making[key] = asyncio.create_task(work)
                self._making[key].add_done_callback(lambda _: self._making.pop(key, None))
            kept = await asyncio.shield(self._making[key])
            self._layers.put(key, kept)
        return kept, engine.mosaic


def _painted(mosaic: Mosaic, shades: Shades, z: int, x: int, y: int) -> bytes:
    return png(mosaic.paint(shades, z, x, y))

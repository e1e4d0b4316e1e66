"""Searches: words and images become vectors in batches, vectors become answers, answers can be had again."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from alidade.imagery.files import Declared
from alidade.imagery.quicklook import Colours, of_raster
from alidade.imagery.raster import Raster
from alidade.imagery.sandbox import decode_upload
from alidade.imagery.windows import Window
from alidade.search.query import QueryImage, Question
from alidade.search.scan import Hits
from alidade.server import exports
from alidade.server.asking import SearchBody, question_of
from alidade.server.batcher import Batcher, Door
from alidade.server.config import ServerConfig
from alidade.server.engine import Engine, Vector
from alidade.server.keeper import UPLOADS_AT_ONCE, Keeper
from alidade.server.lru import Lru
from alidade.server.problems import unknown
from alidade.server.thumbnails import PLACE_COLUMNS, TilePlace

_RECEIVED_AT_ONCE = 8
_KEPT_QUERIES, _KEPT_UPLOADS, _KEPT_TEXTS, _KEPT_PLACES = 4096, 64, 4096, 50_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """A search that was answered: enough to answer it again, to map it and to export it.

    Attributes:
        id: the same for the same question to the same archive.
        question: what was asked.
        texts: vectors of its words.
        vector: all of it as a unit vector ``[D]``.
    """

    id: str
    question: Question
    texts: Mapping[str, Vector]
    vector: Vector


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """Hits, the search that they answer, and what one should know about the scores (``None`` mostly)."""

    asked: Asked
    hits: Hits
    note: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Upload:
    """A query image that was taken in: its embedding, sensor, size in pixels, and picture ``[H, W, 3]``."""

    token: str
    vector: Vector
    sensor: str
    height: int
    width: int
    colours: Colours


class Searching:
    """Asks the archive. Its methods belong to the server's event loop.

    Attributes:
        door: in front of searches.
        receiving: in front of uploads that are on their way in: each holds its bytes in memory.
        places: where the pixels of tiles are that were found lately: pictures of them will be wanted next.

    Args:
        config: the server's settings.
        keeper: has the archive.
    """

    def __init__(self, config: ServerConfig, keeper: Keeper) -> None:
        self._config, self._keeper = config, keeper
        self._texts: Batcher[str, Vector] = Batcher("text", self._embed_texts, keeper.pool("model"), config.queue)
        self._images: Batcher[Raster, Vector] = Batcher("image", self._embed_images, keeper.pool("model"), config.queue)
        self.door = Door("search", most=config.most_searches, target_s=config.target_s)
        self.upload_door = Door("upload", most=2 * UPLOADS_AT_ONCE)
        self.receiving = Door("upload", most=_RECEIVED_AT_ONCE)
        self._queries: Lru[str, Asked] = Lru(_KEPT_QUERIES)
        self._uploads: Lru[str, Upload] = Lru(_KEPT_UPLOADS)
        self._vectors: Lru[str, Vector] = Lru(_KEPT_TEXTS)
        self.places: Lru[str, TilePlace] = Lru(_KEPT_PLACES)

    async def search(self, body: SearchBody) -> Answer:
        """The tiles that are most like what is asked for.

        Raises:
            AlidadeError: the question cannot be understood or answered; :class:`Refused` when it can later.
        """
        engine = self._keeper.engine
        upload = None if body.upload is None else self.uploaded(body.upload)
        image = None if upload is None else QueryImage(name="an uploaded image", vector=upload.vector)
        question = question_of(body, image)
        with self.door.inside():
            texts = {t: await self._vector_of(t) for t in (question.text, question.negative_text) if t is not None}
            answer = await self._keeper.run("search", self._answer, engine, question, texts)
        self._keeper.look_for_news()
        return answer if upload is None else replace(answer, note=_note(engine, upload, question))

    def asked(self, query_id: str) -> Asked:
        """A search that was answered before.

        Raises:
            Refused: it is not known, or not any more (404).
        """
        found = self._queries.get(query_id)
        if found is None:
            raise unknown("query", repr(query_id[:80]), "the query_id of a search", "Ask the search again.")
        return found

    async def again(self, query_id: str) -> Hits:
        """The hits of a search that was answered before, in the archive as it is now.

        Raises:
            AlidadeError: it is not known any more; :class:`Refused` when it can be answered later.
        """
        asked, engine = self.asked(query_id), self._keeper.engine
        with self.door.inside():
            return await self._keeper.run("search", engine.answer, asked.question, asked.texts)

    async def export(self, query_id: str, format: str, ids: Sequence[str] | None = None) -> bytes:
        """A search's hits as a file; with ``ids`` only those.

        Raises:
            AlidadeError: an unknown query, format or id; :class:`Refused` when it can be had later.
        """
        exports.check_format(format)
        hits = await self.again(query_id)
        return await self._keeper.run(
            "search", exports.as_bytes, hits if ids is None else exports.only(hits, ids), format
        )

    async def upload(self, data: bytes, declared: Declared | None = None) -> Upload:
        """Take a query image in; of one larger than a tile of the archive, the central part is what is looked for.

        Args:
            data: a GeoTIFF, PNG or JPEG.
            declared: what the file does not say itself, such as the ground resolution of a photograph.

        Raises:
            AlidadeError: it cannot be decoded or embedded; :class:`Refused` when it can be sent later.
        """
        engine, limits = self._keeper.engine, self._config.uploads
        with self.upload_door.inside():
            raster = await self._keeper.run("upload", lambda: decode_upload(data, limits=limits, declared=declared))
            part = _centre(raster, engine.archive.header.tile)
            vector = await self._images.ask(part)
            colours = await self._keeper.run("upload", of_raster, part)
        upload = Upload(
            token=secrets.token_urlsafe(16), vector=vector, sensor=raster.sensor.id,
            height=raster.grid.height, width=raster.grid.width, colours=colours,
        )  # fmt: skip
        self._uploads.put(upload.token, upload)
        return upload

    def uploaded(self, token: str) -> Upload:
        """An image that was taken in.

        Raises:
            Refused: there is none of that token, or not any more (404).
        """
        found = self._uploads.get(token)
        if found is None:
            raise unknown("upload", repr(token[:80]), "the token of an uploaded image", "Upload the image again.")
        return found

    async def close(self) -> None:
        """Let nobody in any more, and end what is being embedded."""
        for door in (self.door, self.upload_door, self.receiving):
            door.closed = True
        await self._texts.close()
        await self._images.close()

    def _answer(self, engine: Engine, question: Question, texts: Mapping[str, Vector]) -> Answer:
        hits = engine.answer(question, texts)
        told = json.dumps([hits.query, engine.revision], sort_keys=True)
        key = hashlib.sha256(hits.vector.tobytes() + told.encode()).hexdigest()[:20]
        asked = Asked(id=key, question=question, texts=texts, vector=hits.vector)
        self._queries.put(key, asked)
        for row in hits.table.select(PLACE_COLUMNS).to_pylist():
            self.places.put(row["id"], TilePlace.of(row))
        return Answer(asked=asked, hits=hits)

    async def _vector_of(self, text: str) -> Vector:
        known = self._vectors.get(text)
        if known is None:
            known = await self._texts.ask(text)
            self._vectors.put(text, known)
        return known

    def _embed_texts(self, texts: list[str]) -> Sequence[Vector]:
        return list(self._keeper.engine.model.embed_text(texts))

    def _embed_images(self, rasters: list[Raster]) -> Sequence[Vector]:
        return list(self._keeper.engine.model.embed(rasters))


def _centre(raster: Raster, tile: int) -> Raster:
    height, width = min(tile, raster.grid.height), min(tile, raster.grid.width)
    row, col = (raster.grid.height - height) // 2, (raster.grid.width - width) // 2
    return raster.crop(Window(row=row, col=col, height=height, width=width))


def _note(engine: Engine, upload: Upload, question: Question) -> str | None:
    if engine.model.aligned or question.conditions.sensor is not None or not engine.sensors - {upload.sensor}:
        return None
    return (
        f"{engine.model.identity} has not learned to compare sensors: scores between {upload.sensor} and other sensors "
        f"mean nothing. Ask for sensor {upload.sensor} only."
    )

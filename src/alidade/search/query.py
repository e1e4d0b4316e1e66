"""One question that combines everything: words, images, a place and labelled tiles, for and against, and conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from alidade.errors import ArchiveError
from alidade.imagery.footprint import Footprint
from alidade.search.feedback import example_vector, rocchio, unit
from alidade.search.filters import Columns, Filter, check_k, check_point
from alidade.search.scan import Hits, great_circle
from alidade.search.schema import embeddings_of, unit_rows, wkb_rings
from alidade.search.store import Store

MAX_LABELS = 10_000
"""Labels of one question, both signs together."""

Vector = npt.NDArray[np.float64]


class TextModel(Protocol):
    """What a question in words needs of a model; ``alidade.models.Model`` has it."""

    @property
    def identity(self) -> str:
        """Name of the embedding space."""

    def embed_text(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors ``[N, D]``; ModelError when the model knows no words, TextError for a text it cannot take."""


class KnownTexts:
    """A ``TextModel`` for questions whose words have become vectors before.

    Args:
        identity: name of the embedding space.
        vectors: ``[D]`` by text.
    """

    def __init__(self, identity: str, vectors: Mapping[str, npt.NDArray[np.float32]]) -> None:
        self._identity, self._vectors = identity, vectors

    @property
    def identity(self) -> str:
        """Name of the embedding space."""
        return self._identity

    def embed_text(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The vectors ``[N, D]``."""
        return np.stack([self._vectors[text] for text in texts])


@dataclass(frozen=True, kw_only=True, eq=False)
class QueryImage:
    """An image as a vector ``[D]`` of the archive's space, and what to call it."""

    name: str
    vector: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """What tiles shall be like, what they shall not be like, and which conditions they must meet.

    Attributes:
        text: words for what they show.
        negative_text: words for what they do not show.
        images: what they look like.
        negative_images: what they do not look like.
        place: (longitude, latitude) in degrees of a tile that they are like.
        positive: ids of tiles that they are like.
        negative: ids of tiles that they are not like.
        conditions: what narrows the search.
        k: how many.
        keep_labelled: whether tiles of ``positive`` and ``negative`` may be in the answer.

    Raises:
        ArchiveError: nothing asked, or only what tiles shall not be like; an empty text; an id on both sides; more
            than ``MAX_LABELS`` ids; a ``k`` out of range.
        GridError: a place that is no point on Earth.
    """

    text: str | None = None
    negative_text: str | None = None
    images: tuple[QueryImage, ...] = ()
    negative_images: tuple[QueryImage, ...] = ()
    place: tuple[float, float] | None = None
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    conditions: Filter = field(default_factory=Filter)
    k: int = 10
    keep_labelled: bool = True

    def __post_init__(self) -> None:
        """See the class for what is refused; an id that is named twice counts once."""
        object.__setattr__(self, "positive", tuple(dict.fromkeys(self.positive)))
        object.__setattr__(self, "negative", tuple(dict.fromkeys(self.negative)))
        for text in (self.text, self.negative_text):
            if text is not None and not text.strip():
                raise _refused("text of the query", "an empty text", "words", "Write what the tiles show.")
        if both := sorted(set(self.positive) & set(self.negative)):
            got = f"{both[0]!r:.80} on both sides" + (f", and {len(both) - 1:,} more" if len(both) > 1 else "")
            raise _refused("labels", got, "each tile liked or not liked", "Take one of the two labels back.")
        if len(self.positive) + len(self.negative) > MAX_LABELS:
            got = f"{len(self.positive) + len(self.negative):,} tiles"
            raise _refused("labels", got, f"at most {MAX_LABELS:,}", "Leave some out: more change little.")
        if self.text is None and self.place is None and not self.images and not self.positive:
            only = self.negative_text is not None or self.negative_images or self.negative
            raise _refused(
                "query",
                "only what tiles shall not be like" if only else "nothing that tiles shall be like",
                "words, an image, a place or a liked tile",
                "Say what the tiles should be like.",
            )
        if self.place is not None:
            check_point(*self.place)
        check_k(self.k)

    def sentence(self) -> str:
        """The question in a few words: ``"open water" and lake.tif, not "ships"``."""
        liked = [
            self._quoted(self.text),
            *(i.name for i in self.images),
            self._placed(),
            _tiles(self.positive, "liked"),
        ]
        disliked = [
            self._quoted(self.negative_text), *(i.name for i in self.negative_images), _tiles(self.negative, "disliked")
        ]  # fmt: skip
        without = " or ".join(part for part in disliked if part)
        return " and ".join(part for part in liked if part) + (f", not {without}" if without else "")

    def describe(self) -> dict[str, object]:
        """What was asked as plain values for an export, without the conditions; what was not asked is left out."""
        values: dict[str, object] = {
            "text": self.text,
            "negative_text": self.negative_text,
            "images": [image.name for image in self.images],
            "negative_images": [image.name for image in self.negative_images],
            "place": None if self.place is None else list(self.place),
            "positive": list(self.positive),
            "negative": list(self.negative),
            "keep_labelled": None if self.keep_labelled else False,
        }
        return {name: value for name, value in values.items() if value is not None and value != []}

    @staticmethod
    def _quoted(text: str | None) -> str:
        return "" if text is None else f'"{text}"'

    def _placed(self) -> str:
        return "" if self.place is None else "the tile at {:.10g},{:.10g}".format(*self.place)


def query_vector(question: Question, store: Store, model: TextModel | None = None) -> npt.NDArray[np.float32]:
    """The vector ``[D]`` of unit length that a question stands for.

    Words, images, the place and the labelled tiles are one part each: a unit vector. A part with both sides is
    Rocchio's ``mean(for) + (mean(for) - mean(against))``; labelled tiles become a linear probe from ten on (see
    :func:`alidade.search.feedback.example_vector`). The question is the mean of its parts. What is only against, such
    as disliked tiles beside words, is taken off that mean by the same rule.

    Args:
        question: what is asked.
        store: has the labelled tiles and the tile at the place.
        model: for words; may be left out where there are none.

    Raises:
        ArchiveError: an id or a place without a tile, words without a model or with one of another space, parts that
            cancel out, or an image of another dimension.
        ModelError: a model that knows no words.
        TextError: a text that it cannot take.
    """
    return _compose(question, store, model)[0]


def answer(question: Question, store: Store, model: TextModel | None = None, *, words: str | None = None) -> Hits:
    """The best tiles for a question.

    Args:
        question: what is asked.
        store: where.
        model: for words; may be left out where there are none.
        words: what to call the model's words in the answer, see :func:`words_of`. Two models may have one image space
            and different words.

    Returns:
        Hits whose ``query`` has what was asked, the words used (``words``) and how labels were used (``examples``).

    Raises:
        ArchiveError: see :func:`query_vector` and :meth:`Store.search`.
        ModelError: see :func:`query_vector`.
        TextError: see :func:`query_vector`.
    """
    vector, method, labelled = _compose(question, store, model)
    hidden = 0 if question.keep_labelled or labelled is None else labelled.num_rows
    hits = store.search(vector, check_k(question.k + hidden), question.conditions, describe=question.sentence())
    if hidden and labelled is not None:
        hits = _without(hits, labelled, question)
    in_words = question.text is not None or question.negative_text is not None
    told: dict[str, object] = {"like": question.sentence(), "k": question.k, **question.describe()}
    if method is not None:
        told["examples"] = method
    if in_words and words is not None:
        told["words"] = words
    return replace(hits, query={**told, **question.conditions.describe()})


def words_of(name: str, text_identity: str) -> str:
    """Which words a search uses: the model as the user names it, and the text encoder: ``tiny (sentence:…)``."""
    return f"{name} ({text_identity})"


def tile_at(store: Store, lon: float, lat: float) -> str:
    """Id of the tile whose footprint contains a point (degrees); of several, the one with the nearest centre.

    Raises:
        GridError: not a point on Earth.
        ArchiveError: no tile there.
    """
    lon, lat = check_point(lon, lat)
    here = Filter(bbox=(lon, lat, lon, lat))
    found: list[tuple[float, str]] = []
    if count := store.count(here):
        anything = np.ones(store.dim, np.float32)
        table = store.search(anything, count, here).table
        for identifier, wkb in zip(table["id"].to_pylist(), table["geometry"].to_pylist(), strict=True):
            footprint = Footprint(wkb_rings(wkb))
            if footprint.contains(lon, lat):
                found.append((great_circle(footprint.centre(), (lon, lat)), identifier))
    if found:
        return min(found)[1]
    raise ArchiveError(
        f"{store.archive_id}: tile at {lon:g},{lat:g}",
        got="none",
        expected="a point inside the archive",
        next_step="Choose a point inside one of its scenes.",
    )


def check_space(store: Store, identity: str) -> None:
    """Refuse to compare vectors of two models.

    Raises:
        ArchiveError: ``identity`` is not the store's model.
    """
    if identity != store.model:
        raise ArchiveError(
            f"{store.archive_id}: model of the query",
            got=identity,
            expected=f"{store.model}, with which this archive was made",
            next_step="Load that model for the query: embeddings of two models cannot be compared.",
        )


def _compose(
    question: Question, store: Store, model: TextModel | None
) -> tuple[npt.NDArray[np.float32], str | None, pa.Table | None]:
    """The query, how labels were used, and the rows that are labelled."""
    text, against_text = _texts(question, store, model)
    images, against_images = (_stacked(i, store) for i in (question.images, question.negative_images))
    labelled, liked, disliked = _labelled(question, store)
    parts, against = [], []
    for positive, negative in ((text, against_text), (images, against_images)):
        if len(positive) and len(negative):
            parts.append(rocchio(positive, negative))
        elif len(positive):
            parts.append(unit(positive.mean(axis=0)))
        elif len(negative):
            against.append(unit(negative.mean(axis=0)))
    if question.place is not None:
        parts.append(_embeddings(store.rows([tile_at(store, *question.place)]))[0])
    method = None
    if len(liked):
        vector, method = example_vector(liked, disliked)
        parts.append(vector)
    elif len(disliked):
        against.append(unit(disliked.mean(axis=0)))
    whole = rocchio(np.stack(parts), np.stack(against)) if against else unit(np.mean(parts, axis=0))
    return whole.astype(np.float32), method, labelled


def _texts(question: Question, store: Store, model: TextModel | None) -> tuple[Vector, Vector]:
    asked = [text for text in (question.text, question.negative_text) if text is not None]
    if not asked:
        return np.empty((0, store.dim)), np.empty((0, store.dim))
    if model is None:
        raise _refused("text of the query", "no model", "the model that made this archive", "Load it for the query.")
    check_space(store, model.identity)
    vectors = np.asarray(model.embed_text(asked), dtype=np.float64)
    split = 0 if question.text is None else 1
    return vectors[:split], vectors[split:]


def _stacked(images: Sequence[QueryImage], store: Store) -> Vector:
    rows = [unit_rows(image.vector[None], dim=store.dim, what=f"{image.name}: vector")[0] for image in images]
    return np.stack(rows).astype(np.float64) if rows else np.empty((0, store.dim))


def _labelled(question: Question, store: Store) -> tuple[pa.Table | None, Vector, Vector]:
    if not question.positive and not question.negative:
        return None, np.empty((0, store.dim)), np.empty((0, store.dim))
    table = store.rows([*question.positive, *question.negative])
    vectors, split = _embeddings(table), len(question.positive)
    return table, vectors[:split], vectors[split:]


def _embeddings(table: pa.Table) -> Vector:
    """Embeddings ``[N, D]``, of unit length again after their rounding to float16."""
    vectors = embeddings_of(table).astype(np.float64)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _without(hits: Hits, labelled: pa.Table, question: Question) -> Hits:
    """The answer without the labelled rows, at most ``k``."""
    new = pc.invert(pc.is_in(hits.table["id"], labelled["id"].combine_chunks()))
    conditions, columns = question.conditions, Columns.of(labelled)
    known = conditions.sensor is None or conditions.sensor in columns.sensor_names
    mask = conditions.mask(columns) if known else np.zeros(labelled.num_rows, dtype=bool)
    matching = labelled.num_rows if mask is None else int(np.count_nonzero(mask))
    return replace(hits, table=hits.table.filter(new).slice(0, question.k), matches=hits.matches - matching)


def _tiles(ids: Sequence[str], how: str) -> str:
    return "" if not ids else f"{len(ids):,} {how} {'tile' if len(ids) == 1 else 'tiles'}"


def _refused(what: str, got: str, expected: str, next_step: str) -> ArchiveError:
    return ArchiveError(what, got=got, expected=expected, next_step=next_step)

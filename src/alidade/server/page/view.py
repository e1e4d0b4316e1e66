"""What the page shows, as one value: it comes from the address bar and goes back there, so that a link tells all."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from pydantic import ValidationError

from alidade.errors import AlidadeError
from alidade.server.asking import SearchBody, conditions_of

T = TypeVar("T")

USUAL_K = 200
USUAL_LIST = "review"
Geometry = dict[str, Any]
"""``{"type": "Box", "coordinates": [west, south, east, north]}`` or a GeoJSON Polygon."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A question, its conditions, and how the answer is looked at.

    Attributes:
        text, without: words for what tiles show, and do not show.
        more, less: ids of tiles like which others shall be, and shall not be.
        place: (longitude, latitude) of a tile like which others shall be.
        upload: token of an uploaded image; no part of a link, because images are not kept.
        upload_name: its file name.
        area: where tiles must lie.
        start, end: first and last day, ISO 8601.
        sensor: its id.
        gsd: (finest, coarsest) ground metres per pixel.
        k: how many results.
        least: the lowest score that is shown.
        labels: name of the list that accepted and rejected tiles go to.
        eye: (latitude, longitude, zoom) of the map.
        heat: whether the similarity layer is on.
    """

    text: str = ""
    without: str = ""
    more: tuple[str, ...] = ()
    less: tuple[str, ...] = ()
    place: tuple[float, float] | None = None
    upload: str | None = None
    upload_name: str = ""
    area: Geometry | None = None
    start: str = ""
    end: str = ""
    sensor: str = ""
    gsd: tuple[float, float] | None = None
    k: int = USUAL_K
    least: float | None = None
    labels: str = USUAL_LIST
    eye: tuple[float, float, float] | None = None
    heat: bool = False

    @property
    def asks(self) -> bool:
        """Whether it says what tiles shall be like."""
        return bool(self.text or self.more or self.place or self.upload)

    @property
    def conditioned(self) -> bool:
        """Whether it narrows the search."""
        return bool(self.area or self.start or self.end or self.sensor or self.gsd)

    def body(self) -> SearchBody:
        """The search that it asks for.

        Raises:
            AlidadeError: it says something that no search can mean.
        """
        box = self.area is not None and self.area["type"] == "Box"
        try:
            return SearchBody.model_validate(
                {
                    "text": self.text or None,
                    "negative_text": self.without or None,
                    "positive": list(self.more),
                    "negative": list(self.less),
                    "place": self.place,
                    "upload": self.upload,
                    "bbox": self.area["coordinates"] if self.area and box else None,
                    "polygon": self.area if self.area and not box else None,
                    "time": f"{self.start or '..'}/{self.end or '..'}" if self.start or self.end else None,
                    "sensor": self.sensor or None,
                    "gsd": self.gsd,
                    "k": self.k,
                }
            )
        except ValidationError as error:
            first = error.errors()[0]
            raise AlidadeError(
                "search: " + ".".join(str(part) for part in first["loc"]),
                got=repr(first.get("input"))[:80],
                expected=str(first["msg"]),
                next_step="Correct it, or open the page without it.",
            ) from error

    def question(self) -> View:
        """The part that decides which tiles are found."""
        return replace(self, least=None, eye=None, heat=False, labels=USUAL_LIST, upload_name="")

    def labelled(self, tile: str, sign: int) -> View:
        """With a tile among those that others shall be like (1) or not like (-1), or among neither (0)."""
        more, less = (tuple(i for i in side if i != tile) for side in (self.more, self.less))
        return replace(self, more=(*more, tile) if sign > 0 else more, less=(*less, tile) if sign < 0 else less)

    def bare(self, part: str | None) -> View:
        """Without its ``"place"``, its ``"upload"``, the example with this id, or (``None``) any example."""
        if part is None:
            return replace(self, more=(), less=())
        if part == "place":
            return replace(self, place=None)
        if part == "upload":
            return replace(self, upload=None, upload_name="")
        return self.labelled(part, 0)

    def link(self) -> str:
        """The query string that brings the same view back, with its question mark; empty when there is nothing."""
        pairs: list[tuple[str, str]] = []
        for name, value in (
            ("q", self.text), ("not", self.without), ("more", ",".join(self.more)), ("less", ",".join(self.less)),
            ("at", _numbers(self.place)), ("area", _area_text(self.area)), ("from", self.start), ("to", self.end),
            ("sensor", self.sensor), ("gsd", _numbers(self.gsd)), ("k", "" if self.k == USUAL_K else str(self.k)),
            ("least", "" if self.least is None else f"{self.least:.4f}"),
            ("list", "" if self.labels == USUAL_LIST else self.labels), ("map", _numbers(self.eye)),
            ("heat", "1" if self.heat else ""),
        ):  # fmt: skip
            if value:
                pairs.append((name, value))
        return "?" + urlencode(pairs, quote_via=quote, safe=",:;") if pairs else ""

    @classmethod
    def of_link(cls, params: Mapping[str, str]) -> tuple[View, list[str]]:
        """A view from a query string's values, and a sentence for each of them that cannot be understood."""
        problems: list[str] = []

        def read(name: str, means: Callable[[str], T], otherwise: T) -> T:
            if not params.get(name):
                return otherwise
            try:
                return means(params[name])
            except ValueError:
                problems.append(f"The link’s “{name}” could not be understood and was left out.")
                return otherwise

        view = cls(
            text=params.get("q", "").strip(),
            without=params.get("not", "").strip(),
            more=_ids(params.get("more", "")),
            less=_ids(params.get("less", "")),
            place=read("at", lambda t: _pair(t), None),
            area=read("area", _area, None),
            start=read("from", _day, ""),
            end=read("to", _day, ""),
            sensor=params.get("sensor", "").strip(),
            gsd=read("gsd", lambda t: _pair(t), None),
            k=read("k", int, USUAL_K),
            least=read("least", _number, None),
            labels=list_name(params.get("list", "")),
            eye=read("map", _eye, None),
            heat=params.get("heat") == "1",
        )
        return view, problems

    @classmethod
    def of_body(cls, query: Mapping[str, Any]) -> View:
        """The view of a saved search; see :meth:`body`."""
        start, _, end = str(query.get("time") or "").partition("/")
        box = query.get("bbox")
        gsd, place = query.get("gsd"), query.get("place")
        return cls(
            text=query.get("text") or "",
            without=query.get("negative_text") or "",
            more=tuple(query.get("positive") or ()),
            less=tuple(query.get("negative") or ()),
            place=None if place is None else (place[0], place[1]),
            area=query.get("polygon") if box is None else {"type": "Box", "coordinates": list(box)},
            start="" if start == ".." else start,
            end="" if end == ".." else end,
            sensor=query.get("sensor") or "",
            gsd=None if gsd is None else (gsd[0], gsd[1]),
            k=int(query.get("k", USUAL_K)),
        )


def check_area(area: Geometry) -> Geometry:
    """An area that a search can be narrowed to.

    Raises:
        AlidadeError: it is none.
    """
    conditions_of(View(text="x", area=area).body())
    return area


def list_name(text: str) -> str:
    """A name that a list of labels may have, from what somebody typed: ``"Lakes, Ohio"`` becomes ``"lakes-ohio"``."""
    return re.sub(r"[^a-z0-9_]+", "-", text.casefold()).strip("-_")[:64] or USUAL_LIST


def _ids(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part for part in text.split(",") if part))


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _pair(text: str) -> tuple[float, float]:
    first, second = (_number(part) for part in text.split(","))
    return first, second


def _eye(text: str) -> tuple[float, float, float]:
    lat, lon, zoom = (_number(part) for part in text.split(","))
    if not (abs(lat) <= 90 and abs(lon) <= 180 and 0 <= zoom <= 22):
        raise ValueError(text)
    return lat, lon, zoom


def _day(text: str) -> str:
    return date.fromisoformat(text[:10]).isoformat()


def _area(text: str) -> Geometry:
    if ";" not in text:
        west, south, east, north = (_number(part) for part in text.split(","))
        return check_area({"type": "Box", "coordinates": [west, south, east, north]})
    ring = [list(_pair(corner)) for corner in text.split(";")]
    return check_area({"type": "Polygon", "coordinates": [[*ring, ring[0]]]})


def _area_text(area: Geometry | None) -> str:
    """A box as four numbers, a polygon as its corners; what else there may be (a saved search) as JSON cannot occur."""
    if area is None:
        return ""
    if area["type"] == "Box":
        return _numbers(area["coordinates"])
    if area["type"] != "Polygon" or len(area["coordinates"]) != 1:
        return json.dumps(area, separators=(",", ":"))
    return ";".join(_numbers(corner) for corner in area["coordinates"][0][:-1])


def _numbers(values: Iterable[float] | None) -> str:
    return "" if values is None else ",".join(f"{value:.10g}" for value in values)

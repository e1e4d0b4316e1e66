"""Items of a STAC API or a static catalogue, one by one. Imported where STAC is asked for: needs ``pystac-client``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from pystac.link import HREF, Link
from pystac.utils import make_absolute_href
from pystac_client import Client
from pystac_client.item_search import ItemSearch
from pystac_client.stac_api_io import StacApiIO

from alidade.errors import AlidadeError, RasterError
from alidade.imagery.remote import Caller, Door, bare, is_address, refused

MAX_PAGES = 10_000
"""Catalogues of so many pages are not walked to their end."""

Json = dict[str, Any]
Failed = Callable[[str, AlidadeError], None]


@dataclass(frozen=True, kw_only=True)
class Search:
    """Which items are wanted; ``None`` and ``()`` ask for all.

    Attributes:
        collections: ids of collections.
        bbox: (west, south, east, north) in degrees; west > east across the antimeridian.
        begin, end: of the time, both included; ``None`` is open.
    """

    collections: tuple[str, ...] = ()
    bbox: tuple[float, float, float, float] | None = None
    begin: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """An item as JSON, the address or path where its relative links start, and the name that messages give it."""

    item: Json
    base: str
    told: str


class DoorIO(StacApiIO):
    """What pystac reads with: local files where the catalogue is one, and addresses through the door."""

    def __init__(self, door: Door, *, local: bool) -> None:
        super().__init__(max_retries=None)
        self._caller, self._local = Caller(door, named_only=True), local

    def request(
        self, href: str, method: str | None = None, headers: Json | None = None, parameters: Json | None = None
    ) -> str:
        """One page; see ``Caller.ask``."""
        url, body, told = href, None, {"Accept": "application/geo+json, application/json", **(headers or {})}
        if (method or "GET").upper() == "POST":
            body, told = json.dumps(parameters or {}).encode(), {**told, "Content-Type": "application/json"}
        elif parameters:
            url += ("&" if "?" in url else "?") + urlencode(parameters)
        answer = self._caller.ask(url, method="POST" if body is not None else "GET", headers=told, body=body)
        if not 200 <= answer.status < 300:
            raise RasterError(
                bare(href), got=f"status {answer.status}", expected="a page of a STAC catalogue",
                next_step="Check the address and the search.",
            )  # fmt: skip
        return _text(answer.body, bare(href))

    def read_text(
        self, source: HREF, method: str | None = None, headers: Json | None = None, parameters: Json | None = None
    ) -> str:
        """A page by its link, address or, for a local catalogue, path."""
        if isinstance(source, Link):
            # how the next page is asked for is written in the link
            return super().read_text(source, parameters=parameters or {})
        href = str(source)
        if is_address(href):
            return self.request(href, method, headers, parameters)
        if not self._local:
            raise refused(href, "a path on this machine in a catalogue from another", "an http address")
        try:
            with open(href, "rb") as file:
                return _text(file.read(), href)
        except OSError as error:
            raise RasterError(
                href, got=error.strerror or str(error), expected="a STAC catalogue, collection or item",
                next_step="Check the path.",
            ) from None  # fmt: skip

    def page(self, href: str) -> Json:
        """A page as JSON.

        Raises:
            RasterError: it cannot be fetched, or is no JSON object.
        """
        # outside of the ``try``: a page that cannot be fetched has an error of its own, which is a ValueError too
        text = self.read_text(href)
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _no_stac(href, f"no JSON ({error})") from None
        if not isinstance(found, dict):
            raise _no_stac(href, f"JSON of type {type(found).__name__}")
        return found


def items(place: str, search: Search, door: Door, failed: Failed) -> Iterator[Found]:
    """The items of a place; an API is asked to search, the rest is walked.

    Args:
        place: address or path of an API, a catalogue, a collection, an item, or a collection of items.
        search: is left to an API; in a static catalogue it only spares collections that are not wanted.
        door: which hosts may be asked.
        failed: is told of pages that cannot be read; the others go on.

    Raises:
        RasterError: the first page cannot be read, or an API fails.
    """
    source = DoorIO(door, local=not is_address(place))
    root = source.page(place)
    links = [link for link in _links(root) if link.get("rel") == "search"]
    if root.get("type") == "Catalog" and links:
        yield from _searched(source, root, place, search)
    else:
        yield from _walked(source, root, place, search, failed)


def _searched(source: DoorIO, root: Json, place: str, search: Search) -> Iterator[Found]:
    client = Client.from_dict(root, href=place)
    url = make_absolute_href(str(client.get_single_link("search").href), place, start_is_dir=False)  # type: ignore[union-attr]
    posts = any(link.get("rel") == "search" and link.get("method") == "POST" for link in _links(root))
    begin, end = (None if t is None else t.isoformat().replace("+00:00", "Z") for t in (search.begin, search.end))
    asked = ItemSearch(
        url=url, method="POST" if posts else "GET", max_items=None, stac_io=source, limit=100,
        collections=list(search.collections) or None,
        bbox=list(search.bbox) if search.bbox else None,
        datetime=None if begin is None and end is None else f"{begin or '..'}/{end or '..'}",
    )  # fmt: skip
    seen: set[str] = set()
    try:
        for page in asked.pages_as_dicts():
            found = {_identity(f): f for f in page.get("features", []) if isinstance(f, dict)}
            fresh = {key: f for key, f in found.items() if key not in seen}
            if not fresh:
                raise _no_stac(url, "pages that come again and again")
            seen.update(fresh)
            for feature in fresh.values():
                yield _found(feature, url)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, AlidadeError):
            raise
        raise _no_stac(url, f"no page of items ({type(error).__name__}: {error})") from None


def _walked(source: DoorIO, root: Json, place: str, search: Search, failed: Failed) -> Iterator[Found]:
    """Depth first, each page once: catalogues may link to themselves."""
    seen = {place}
    waiting: list[str] = []
    page, href = root, place
    for _ in range(MAX_PAGES):
        kind = page.get("type")
        if kind == "Feature":
            yield Found(item=page, base=href, told=bare(href))
        elif kind == "FeatureCollection":
            yield from (_found(f, href) for f in page.get("features", []) if isinstance(f, dict))
        elif kind in ("Catalog", "Collection"):
            if kind == "Catalog" or not search.collections or page.get("id") in search.collections:
                linked = [make_absolute_href(str(k["href"]), href, start_is_dir=False) for k in _links(page)
                          if k.get("rel") in ("child", "item") and "href" in k]  # fmt: skip
                fresh = [link for link in dict.fromkeys(linked) if link not in seen]
                seen.update(fresh)
                waiting.extend(reversed(fresh))
        else:
            failed(bare(href), _no_stac(href, f"the type {kind!r}"))
        while waiting:
            href = waiting.pop()
            try:
                page = source.page(href)
                break
            except AlidadeError as error:
                failed(bare(href), error)
        else:
            return
    failed(bare(place), _no_stac(place, f"more than {MAX_PAGES:,} pages; the rest was left"))


def _links(page: Json) -> list[Mapping[str, Any]]:
    found = page.get("links")
    return [link for link in found if isinstance(link, dict)] if isinstance(found, list) else []


def _identity(feature: Json) -> str:
    return f"{feature.get('collection')}/{feature.get('id')}"


def _found(feature: Json, page: str) -> Found:
    """An item that a page of several holds."""
    own = [str(k["href"]) for k in _links(feature) if k.get("rel") == "self" and "href" in k]
    base = make_absolute_href(own[0], page, start_is_dir=False) if own else page
    return Found(item=feature, base=base, told=bare(base) if own else _identity(feature))


def _text(content: bytes, told: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise _no_stac(told, "bytes that are no text") from None


def _no_stac(href: str, got: str) -> RasterError:
    return RasterError(
        bare(href), got=got, expected="a STAC API, catalogue, collection or item",
        next_step="Check the address; an API's own page is the one that lists its collections.",
    )  # fmt: skip

"""All that can be asked of a served archive, as plain Python: routes and the page call the same methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version

from pydantic import ValidationError

from alidade.errors import AlidadeError
from alidade.server.asking import SearchBody, question_of
from alidade.server.config import ServerConfig
from alidade.server.keeper import Keeper
from alidade.server.labels import Label, Labels, SavedSearch, SavedSearches, now_text
from alidade.server.maps import Maps
from alidade.server.searching import Answer, Searching


class Services:
    """A served archive. Made at once, ready a little later: ``begin`` loads it in the background.

    ``async`` methods belong to the server's event loop; what takes time runs in threads.

    Attributes:
        config: the settings.
        keeper: the opened archive; its ``state`` and ``failure``.
        searching: ``search``, ``again``, ``export``, ``upload``.
        maps: ``thumbnail``, ``scenes``, ``scene_tile``, ``layer``, ``similarity_tile``.
        when_known: is called once the archive is ready or has failed.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.keeper = Keeper(config)
        self.searching = Searching(config, self.keeper)
        self.maps = Maps(self.keeper, self.searching)
        self._labels, self._searches = Labels(config.archive), SavedSearches(config.archive)
        self.when_known: Callable[[Services], None] = lambda _: None

    def begin(self) -> None:
        """Load archive and model in the background; call in the running event loop."""

        def repair() -> tuple[str, ...]:
            return (*self._labels.repair(), *self._searches.repair())

        self.keeper.begin(repair, lambda: self.when_known(self))

    async def close(self) -> None:
        """Refuse what comes, end what is under way, and close all files."""
        self.maps.door.closed = True
        await self.searching.close()
        await self.keeper.close()

    def health(self) -> dict[str, object]:
        """State, archive, model, rows and version as plain values."""
        keeper, engine = self.keeper, self.keeper.opened
        return {
            "status": keeper.state,
            "archive": str(self.config.archive),
            "model": None if engine is None else engine.store.model,
            "rows": 0 if engine is None else len(engine.store),
            "indexed": 0 if engine is None else engine.indexed,
            "exact_limit": None if engine is None else engine.exact_limit,
            "version": version("alidade"),
            "problem": None if keeper.failure is None else str(keeper.failure),
            "repairs": [*keeper.repairs, *(() if engine is None else engine.notes)],
        }

    async def label_sets(self) -> list[str]:
        """Names of the sets of labels."""
        return await self.keeper.run("note", self._labels.names)

    async def read_labels(self, name: str) -> dict[str, Label]:
        """See :meth:`Labels.read`."""
        return await self.keeper.run("note", self._labels.read, name)

    async def put_labels(self, name: str, changes: Mapping[str, tuple[str | None, str]]) -> dict[str, Label]:
        """See :meth:`Labels.put`."""
        return await self.keeper.run("note", self._labels.put, name, changes)

    async def saved_searches(self) -> dict[str, SavedSearch]:
        """See :meth:`SavedSearches.all`."""
        return await self.keeper.run("note", self._searches.all)

    async def save_search(self, name: str, body: SearchBody) -> None:
        """Keep a search under a name.

        Raises:
            AlidadeError: it asks for an uploaded image, which is not kept; it cannot be understood; or the disk
                refuses.
        """
        if body.upload is not None:
            raise AlidadeError(
                "saved search",
                got="an uploaded image, which is not kept",
                expected="words, a place or tiles as examples",
                next_step="Mark some of its results as examples, and save that search.",
            )
        question_of(body)
        query = body.model_dump(exclude_defaults=True, mode="json")
        await self.keeper.run("note", self._searches.put, name, SavedSearch(query=query, time=now_text()))

    async def delete_search(self, name: str) -> None:
        """See :meth:`SavedSearches.delete`."""
        await self.keeper.run("note", self._searches.delete, name)

    async def run_saved(self, name: str) -> tuple[Answer, list[str]]:
        """Ask a saved search again: the answer, and the ids in it that its last answer did not have.

        Raises:
            AlidadeError: there is none of that name, or as :meth:`Searching.search`.
        """
        saved = await self.keeper.run("note", self._searches.get, name)
        try:
            body = SearchBody.model_validate(saved.query)
        except ValidationError as error:
            raise AlidadeError(
                f"saved search {name}",
                got=str(error.errors()[0]["msg"]),
                expected="a search as this version of alidade writes it",
                next_step="Save it again.",
            ) from error
        answer = await self.searching.search(body)
        ids = answer.hits.table["id"].to_pylist()
        rows = len(self.keeper.engine.store)
        await self.keeper.run("note", lambda: self._searches.asked(name, rows=rows, ids=ids))
        seen = set(saved.seen)
        return answer, [i for i in ids if i not in seen]

"""Searches that are kept under a name and asked again when there is new imagery."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from nicegui import ui

from alidade.server.services import Services


class SavedMenu:
    """A button with the saved searches: run one again, delete one, keep the one on the page.

    Args:
        services: keep them.
        run: asks one of them again, by name.
        keep: keeps the search on the page under a name.
        guarded: runs something and tells its error on the page.
    """

    def __init__(
        self,
        services: Services,
        *,
        run: Callable[[str], Awaitable[None]],
        keep: Callable[[str], Awaitable[None]],
        guarded: Callable[[Awaitable[None]], Awaitable[None]],
    ) -> None:
        self._services, self._run, self._keep, self._guarded = services, run, keep, guarded
        with (
            ui.button("Saved", icon="bookmark_border", color=None)
            .props("flat dense no-caps")
            .classes("al-tool") as button
        ):
            with ui.menu().classes("al-menu") as self._menu:
                self._list = ui.element("div").classes("al-saved")
        button.on("click", lambda: self._guarded(self._fill()))

    async def _fill(self) -> None:
        # whoever looks here wants what is new: let the archive be looked at while they choose
        self._services.keeper.look_for_news()
        saved = await self._services.saved_searches()
        self._list.clear()
        with self._list:
            if not saved:
                ui.label("No search is saved yet. Saved searches are asked again with one click, and say what is new.")
            for name, search in saved.items():
                with ui.element("div").classes("al-saved-one"):
                    open_it = ui.button(name, on_click=lambda name=name: self._chosen(name), color=None)
                    open_it.props("flat dense no-caps align=left").classes("al-saved-name")
                    ui.label(f"asked {search.time[:10]}" if search.seen else "not asked yet").classes("al-muted")
                    delete = ui.button(icon="delete_outline", on_click=lambda name=name: self._forget(name), color=None)
                    delete.props(f'flat dense round size=sm aria-label="Delete {name}"')
            with ui.element("form").classes("al-save").props('onsubmit="return false"'):
                named = ui.input(placeholder="Name for this search").props(
                    "dense outlined maxlength=60 autocomplete=off"
                )
                save = ui.button("Save", on_click=lambda: self._save(named.value), color=None).props(
                    "unelevated dense no-caps"
                )
                named.on("keydown.enter", lambda: self._save(named.value))
                save.classes("al-go")

    async def _chosen(self, name: str) -> None:
        self._menu.close()
        await self._guarded(self._run(name))

    async def _save(self, name: str | None) -> None:
        if not (name or "").strip():
            return
        self._menu.close()
        await self._guarded(self._keep((name or "").strip()))

    async def _forget(self, name: str) -> None:
        await self._guarded(self._services.delete_search(name))
        await self._guarded(self._fill())

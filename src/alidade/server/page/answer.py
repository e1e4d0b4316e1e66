"""The right side of the page: the answer in a line, examples, the slider that trims, lists, and the gallery."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from nicegui import ui
from nicegui.events import ValueChangeEventArguments

from alidade.server.page.elements import Gallery
from alidade.server.page.rows import method_line
from alidade.server.page.view import USUAL_LIST, View

Tab = Literal["results", "yes", "no"]
_TABS: dict[Tab, str] = {"results": "Results", "yes": "Accepted", "no": "Rejected"}
WORDS = ("open water", "dense forest", "a field of crops", "dense residential area", "river", "airport")
"""Something to begin with: words that the shipped model is good at."""
FORMATS = {"csv": "CSV, a table", "geojson": "GeoJSON, for maps", "parquet": "GeoParquet, for analysis"}
_KEYS = (("Y", "accept"), ("N", "reject"), ("Space", "next"), ("+ −", "more, not like this"), ("Enter", "show on map"))
_SHOWN_EXAMPLES = 24


class AnswerPanel:
    """Shows what was found.

    Args:
        search: asks again.
        try_words: asks for these words.
        trimmed: is called with the lowest score to show.
        turned: is called with the list to show.
        export: is called with a format.
        drop: is called with the id of an example to forget, or ``None`` for all.
        adopt: makes examples of what is accepted and rejected.
        choose_list: is called with the name of another list.
    """

    def __init__(
        self,
        *,
        search: Callable[[], Awaitable[None]],
        try_words: Callable[[str], Awaitable[None]],
        trimmed: Callable[[float], None],
        turned: Callable[[Tab], Awaitable[None]],
        export: Callable[[str], Awaitable[None]],
        drop: Callable[[str | None], None],
        adopt: Callable[[], None],
        choose_list: Callable[[str], Awaitable[None]],
    ) -> None:
        self._search, self._try_words, self._drop, self._choose_list = search, try_words, drop, choose_list
        self._quiet = False
        self._examples_shown: object = None
        with ui.element("aside").classes("al-panel").props('aria-label="Answer"'):
            with ui.element("div").classes("al-answer"):
                self.line = ui.label("").classes("al-line").props('role="status" aria-live="polite"')
                with (
                    ui.button(icon="download", color=None)
                    .props('flat dense round size=sm aria-label="Export"')
                    .classes("al-export")
                ):
                    ui.tooltip("Take what is shown away as a file")
                    with ui.menu():
                        for name, told in FORMATS.items():
                            ui.menu_item(told, lambda name=name: export(name)).props(f'data-format="{name}"')
            self.notes = ui.element("div").classes("al-notes")
            self.examples = ui.element("div").classes("al-examples")
            with ui.element("div").classes("al-trim") as self.trim_row:
                ui.label("Score from")
                self.slider = ui.slider(min=0, max=1, step=0.001, value=0)
                self.slider.props('dense aria-label="Lowest score shown"')
                self.slider.on_value_change(lambda event: self._slid(event, trimmed))
                self.least = ui.label("").classes("al-least")
            with ui.element("div").classes("al-tabs").props('role="tablist"'):
                self._tabs = {tab: self._tab(tab, name, turned) for tab, name in _TABS.items()}
            with ui.element("div").classes("al-list") as self.list_row:
                ui.label("List")
                self.list = ui.select(
                    [USUAL_LIST], value=USUAL_LIST, new_value_mode="add-unique", on_change=self._listed
                )
                self.list.props('dense borderless options-dense input-debounce=0 aria-label="Name of this list"')
                self.list.classes("al-choice")
                adopted = ui.button("Use as examples", on_click=adopt, color=None).props("flat dense no-caps size=sm")
                adopted.classes("al-adopt")
            self.empty = ui.element("div").classes("al-empty")
            self.gallery = Gallery("Results, best first")
            with ui.element("div").classes("al-keys") as self.keys:
                for key, does in _KEYS:
                    with ui.element("span"):
                        ui.html(f"<kbd>{key}</kbd>", sanitize=False)
                        ui.label(does)
        self.show_examples(View(), stale=False)
        self.show_trim(None, 0)
        self.show_counts("results", {"results": 0, "yes": 0, "no": 0})

    def say(self, line: str) -> None:
        """The answer in one line."""
        self.line.set_text(line)

    def tell(self, notes: Sequence[str], kind: Literal["note", "error"] = "note") -> None:
        """Sentences below the line, in place of those there were."""
        self.notes.clear()
        with self.notes:
            for text in notes:
                with ui.element("div").classes(f"al-{kind}").props('role="alert"' if kind == "error" else ""):
                    ui.icon("error_outline" if kind == "error" else "info_outline")
                    ui.label(text)

    def show_empty(self, text: str, *, offer: bool = False) -> None:
        """A sentence in place of chips (nothing for ``""``), perhaps with words to try."""
        self.empty.clear()
        self.empty.set_visibility(bool(text))
        self.gallery.set_visibility(not text)
        self.keys.set_visibility(not text)
        with self.empty:
            ui.label(text)
            if offer:
                with ui.element("div").classes("al-try"):
                    for words in WORDS:
                        ui.button(words, on_click=lambda words=words: self._try_words(words), color=None).props(
                            "outline no-caps dense"
                        )

    def show_trim(self, scores: tuple[float, float] | None, shown: int, least: float | None = None) -> None:
        """The slider between the lowest and the highest score; hidden without scores."""
        self.trim_row.set_visibility(scores is not None and scores[1] > scores[0])
        if scores is None:
            return
        low, high = scores
        self._quiet = True
        self.slider.props["min"], self.slider.props["max"] = low, high
        self.slider.update()
        self.slider.value = low if least is None else min(max(least, low), high)
        self._quiet = False
        self.show_least(self.slider.value, shown)

    def show_least(self, least: float, shown: int) -> None:
        """What the slider's place means."""
        self.least.set_text(f"{least:.3f} · {shown:,} shown")

    def show_counts(self, tab: Tab, counts: dict[str, int]) -> None:
        """Which list is shown, and how many there are in each."""
        for name, button in self._tabs.items():
            button.set_text(f"{_TABS[name]} {counts[name]:,}")
            button.props(f"aria-selected={'true' if name == tab else 'false'}")
            button.classes(add="on" if name == tab else "", remove="" if name == tab else "on")
        self.list_row.set_visibility(tab != "results")

    def show_lists(self, names: Sequence[str], name: str) -> None:
        """The lists there are, and which is used."""
        self._quiet = True
        self.list.set_options(sorted({*names, name}), value=name)
        self._quiet = False

    def show_examples(self, view: View, *, stale: bool) -> None:
        """Examples with the way they are used, and the step that asks with them."""
        shows = (view.more, view.less, view.place, view.upload, stale)
        if shows == self._examples_shown:
            return
        self._examples_shown = shows
        self.examples.clear()
        told = method_line(len(view.more), len(view.less))
        extra = []
        if view.place is not None:
            extra.append(("place", f"like the place {view.place[1]:.4f}, {view.place[0]:.4f}"))
        if view.upload is not None:
            extra.append(("upload", f"like the image {view.upload_name or 'that was sent'}"))
        self.examples.set_visibility(bool(told or extra or stale))
        with self.examples:
            if told:
                with ui.element("div").classes("al-strip"):
                    signed = [(i, "more") for i in view.more] + [(i, "less") for i in view.less]
                    for tile, sign in signed[:_SHOWN_EXAMPLES]:
                        with ui.element("button").props('type="button"').classes(f"al-example {sign}") as held:
                            ui.element("img").props(f'src="/api/thumbnail/{tile}.png?size=128" alt=""')
                            ui.tooltip(
                                "More like this; click to forget it"
                                if sign == "more"
                                else "Not like this; click to forget it"
                            )
                        held.on("click", lambda tile=tile: self._drop(tile))
            with ui.element("div").classes("al-asked"):
                for name, text in extra:
                    chip = ui.button(text, icon="close", on_click=lambda name=name: self._drop(name), color=None)
                    chip.props("flat dense no-caps size=sm").classes("al-part")
                if told:
                    ui.label(told).classes("al-method")
                if told:
                    ui.button("Forget all", on_click=lambda: self._drop(None), color=None).props(
                        "flat dense no-caps size=sm"
                    ).classes("al-forget")
                if stale:
                    ui.button("Search again", icon="refresh", on_click=self._search, color=None).props(
                        "unelevated dense no-caps size=sm"
                    ).classes("al-again")

    def _tab(self, tab: Tab, name: str, turned: Callable[[Tab], Awaitable[None]]) -> ui.button:
        button = ui.button(name, on_click=lambda: turned(tab), color=None).props(
            f'flat dense no-caps role="tab" data-tab="{tab}"'
        )
        return button.classes("al-tab")

    async def _listed(self, event: ValueChangeEventArguments[str | None]) -> None:
        if not self._quiet and event.value:
            await self._choose_list(event.value)

    def _slid(self, event: ValueChangeEventArguments[float | None], trimmed: Callable[[float], None]) -> None:
        if not self._quiet and event.value is not None:
            trimmed(float(event.value))

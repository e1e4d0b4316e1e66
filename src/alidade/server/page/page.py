"""One browser's page: asks the services, and keeps question, answer, map, gallery and address bar in step."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from dataclasses import replace

import numpy as np
from nicegui import context, ui
from nicegui.events import GenericEventArguments

from alidade.errors import AlidadeError
from alidade.search.scan import Hits
from alidade.server import exports
from alidade.server.page import rows
from alidade.server.page.answer import AnswerPanel, Tab
from alidade.server.page.elements import STATIC, ArchiveMap
from alidade.server.page.marks import Marks, marked_hits, marks_of, with_labels
from alidade.server.page.question import QuestionBar
from alidade.server.page.saved import SavedMenu
from alidade.server.page.view import View, list_name
from alidade.server.searching import Answer
from alidade.server.services import Services

_LOOK_SECONDS = 0.5
_NOTHING_TO_ASK = "Say what to find: type words, click a place inside a scene, send an image, or mark a tile with +."


class Page:
    """What one browser sees. Made within a NiceGUI page function.

    Args:
        services: of the server.
        view: what the link asks for.
        problems: what of the link could not be understood.
    """

    def __init__(self, services: Services, view: View, problems: list[str]) -> None:
        self._services, self._view, self._problems = services, view, problems
        self._client = context.client
        self._answer: Answer | None = None
        self._asked: View | None = None
        self._shown: Hits | None = None
        self._scores = np.empty(0)
        self._visible = 0
        self._tab: Tab = "results"
        self._marks: Marks = {}
        self._busy = False
        self._build()

    def _build(self) -> None:
        ui.add_css(STATIC / "page.css")
        ui.dark_mode(None)
        with ui.element("div").classes("al-page"):
            with ui.element("header").classes("al-head"):
                ui.html('<span class="al-name">alidade</span>', sanitize=False)
                self.bar = QuestionBar(self._search, self._refresh, self._image, self._fail)
                with ui.element("div").classes("al-tools"):
                    SavedMenu(self._services, run=self._run_saved, keep=self._keep, guarded=self._guarded)
                    link = ui.button("Link", icon="link", color=None).props("flat dense no-caps").classes("al-tool")
                    link.on("click", js_handler="() => navigator.clipboard.writeText(location.href)")
                    link.on("click", lambda: ui.notify("The link to this view is in the clipboard.", position="bottom"))
                    theme = ui.button(icon="contrast", color=None).props('flat dense round aria-label="Light or dark"')
                    theme.classes("al-tool").on("click", js_handler=_TURN_THEME)
            with ui.element("div").classes("al-filters"):
                self.bar.conditions()
                self.where = ui.label("").classes("al-where")
            with ui.element("main").classes("al-main"):
                self.map = ArchiveMap()
                self.panel = AnswerPanel(
                    search=self._search, try_words=self._try_words, trimmed=self._trim, turned=self._turn,
                    export=lambda kind: self._guarded(self._export(kind)), drop=self._drop, adopt=self._adopt,
                    choose_list=self._choose_list,
                )  # fmt: skip
        self.map.on("ready", lambda: self._guarded(self._ready()))
        self.map.on("area", self._area)
        self.map.on("place", self._place)
        self.map.on("picked", lambda event: self.panel.gallery.select(event.args["id"]))
        self.map.on("moved", self._moved)
        self.map.on("layers", self._layers)
        gallery = self.panel.gallery
        gallery.on("current", lambda event: self.map.select(event.args["id"], event.args["go"]))
        gallery.on("mark", lambda event: self._guarded(self._mark(event)))
        gallery.on("example", self._example)
        self.bar.fill(self._view)
        self._refresh()

    async def begin(self) -> None:
        """Nothing more until the browser has drawn the map; then :meth:`_ready` goes on."""
        self.panel.say("")
        self.panel.show_empty("The archive is being opened …")

    # ---- beginning
    async def _ready(self) -> None:
        self._client.run_javascript(_SET_THEME)
        keeper = self._services.keeper
        while keeper.state == "starting":
            await asyncio.sleep(_LOOK_SECONDS)
        try:
            engine = keeper.engine
        except AlidadeError as error:
            self.panel.show_empty("This archive cannot be searched.")
            self._fail(str(keeper.failure or error))
            return
        scenes = list(self._services.maps.scenes().values())
        self.bar.offer(scenes, engine.model.words is not None)
        self.map.set_scenes(rows.scene_rows(scenes))
        self.map.set_area(self._view.area)
        self.map.show_heat(self._view.heat)
        await self._read_marks()
        self.panel.tell(self._problems)
        if not len(engine.store):
            self.panel.show_empty(
                f"This archive holds no tiles yet. Fill it with: alidade embed PATHS --out {engine.archive.path}"
            )
            return
        self.where.set_text(f"{len(engine.store):,} tiles of {len(scenes):,} scenes · {engine.store.model}")
        if self._view.eye is not None:
            self.map.set_eye(*self._view.eye)
        else:
            self.map.fit()
        if self._view.asks:
            self.panel.show_empty("Searching …")
            await self._search(remember=False)
            if self._answer is None:
                self.panel.show_empty("Change the question or its conditions, and search again.")
        else:
            self.panel.show_empty(
                "Type what to find, click a place inside a scene on the map, or try:"
                if engine.model.words is not None
                else "Click a place inside a scene on the map, or send an image.",
                offer=engine.model.words is not None,
            )

    async def _read_marks(self) -> None:
        self._marks = marks_of(await self._services.read_labels(self._view.labels))
        self.panel.show_lists(await self._services.label_sets(), self._view.labels)
        self._show_marks()

    async def _choose_list(self, name: str) -> None:
        async def choose() -> None:
            self._view = replace(self._view, labels=list_name(name))
            await self._read_marks()
            await self._turn(self._tab)
            self._write_link(False)

        await self._guarded(choose())

    # ---- asking
    async def _search(self, *_: object, remember: bool = True) -> None:
        self._view = self.bar.read(self._view)
        if not self._view.asks:
            self._fail(_NOTHING_TO_ASK)
            return
        if self._busy:
            return
        await self._guarded(self._ask(self._view, remember))

    async def _ask(self, view: View, remember: bool) -> None:
        self._set_busy(True)
        try:
            answer = await self._services.searching.search(view.body())
        finally:
            self._set_busy(False)
        await self._take(answer, view, remember=remember)

    async def _take(
        self, answer: Answer, view: View, *, remember: bool = True, new: frozenset[str] = frozenset()
    ) -> None:
        # a new question begins untrimmed; the one that a link brings keeps its slider
        if self._asked is not None and view.question() != self._asked:
            view = replace(view, least=None)
        self._answer, self._view, self._asked, self._tab = answer, view, view.question(), "results"
        notes = [answer.note] if answer.note else []
        self.panel.say(rows.answer_line(answer.hits))
        await self._show(answer.hits, new)
        if without := sum(1 for g in answer.hits.table["geometry"].to_pylist() if g is None):
            notes.append(f"{without:,} of them have no place on the map: their files do not say where they were taken.")
        self.panel.tell([*self._problems, *notes])
        self._problems = []
        self._refresh()
        self._write_link(remember)

    async def _show(self, hits: Hits | None, new: frozenset[str] = frozenset()) -> None:
        """Hits in gallery and map, trimmed as the view says."""
        self._shown = hits
        table = None if hits is None else hits.table
        told = [] if table is None else await asyncio.to_thread(rows.rows_of, table, new)
        self._scores = np.array([row["score"] for row in told], dtype=np.float64)
        ends = None if not len(told) or self._tab != "results" else _ends(self._scores)
        self._visible = rows.above(self._scores, self._view.least if self._tab == "results" else None)
        self.panel.show_trim(ends, self._visible, self._view.least)
        self._count()
        self._say_empty(len(told))
        query = None if self._answer is None else self._answer.asked.id
        self.panel.gallery.set_rows(told, self._visible, self._marks)
        self.map.set_results(told, self._visible, query, self._marks)

    def _say_empty(self, found: int) -> None:
        text = ""
        if self._tab == "results" and not found:
            text = "No tile meets these conditions. Take a larger area or a longer time, or any sensor and detail."
        elif self._tab == "results" and not self._visible:
            text = "No result has such a score. Move the slider to the left."
        elif not found:
            key, does = ("Y", "accepted") if self._tab == "yes" else ("N", "rejected")
            text = f"Nothing is {does} yet. Choose a result and press {key}."
        self.panel.show_empty(text)

    async def _try_words(self, words: str) -> None:
        self._view = replace(self.bar.read(self._view), text=words)
        self.bar.fill(self._view)
        await self._search()

    async def _image(self, token: str, name: str) -> None:
        self._view = replace(self.bar.read(self._view), upload=token, upload_name=name)
        await self._search()

    async def _place(self, event: GenericEventArguments) -> None:
        self._view = replace(self.bar.read(self._view), place=(event.args["lon"], event.args["lat"]))
        await self._search()

    def _area(self, event: GenericEventArguments) -> None:
        self._view = replace(self._view, area=event.args["geometry"])
        self._refresh()

    # ---- examples
    def _example(self, event: GenericEventArguments) -> None:
        self._view = self._view.labelled(event.args["id"], event.args["sign"])
        self._refresh()

    def _drop(self, what: str | None) -> None:
        self._view = self._view.bare(what)
        self._refresh()

    def _adopt(self) -> None:
        """Accepted and rejected tiles become the examples."""
        more, less = (tuple(i for i, mark in self._marks.items() if mark == sign)[-500:] for sign in ("yes", "no"))
        self._view = replace(self._view, more=more, less=less)
        self._refresh()

    # ---- lists
    async def _mark(self, event: GenericEventArguments) -> None:
        tile, mark = event.args["id"], event.args["mark"]
        before = dict(self._marks)
        self._marks.pop(tile, None)
        if mark is not None:
            self._marks[tile] = mark
        self._show_marks()
        try:
            await self._services.put_labels(self._view.labels, {tile: (mark, "")})
        except AlidadeError:
            self._marks = before
            self._show_marks()
            raise

    def _show_marks(self) -> None:
        self.panel.gallery.set_marks(self._marks)
        self.map.set_marks(self._marks)
        self._count()

    async def _turn(self, tab: Tab) -> None:
        self._tab = tab
        answer = None if self._answer is None else self._answer.hits
        if tab == "results":
            if answer is None:
                self._count()
                self.panel.show_empty("Type what to find, or try:", offer=True)
                return
            await self._show(answer)
            return
        await self._guarded(self._show_list(tab, answer))

    async def _show_list(self, tab: Tab, answer: Hits | None) -> None:
        ids = [tile for tile, mark in self._marks.items() if mark == tab]
        store = self._services.keeper.engine.store
        await self._show(await self._services.keeper.run("search", marked_hits, store, ids, answer))

    def _count(self) -> None:
        kinds = list(self._marks.values())
        found = 0 if self._answer is None else len(self._answer.hits)
        results = self._visible if self._tab == "results" else found
        self.panel.show_counts(self._tab, {"results": results, "yes": kinds.count("yes"), "no": kinds.count("no")})

    # ---- looking
    def _trim(self, least: float) -> None:
        if self._tab != "results" or not len(self._scores):
            return
        lowest = float(self._scores[-1])
        self._view = replace(self._view, least=None if least <= lowest else least)
        self._visible = rows.above(self._scores, self._view.least)
        self.panel.show_least(least, self._visible)
        self.panel.gallery.trim(self._visible)
        self.map.trim(self._visible)
        self._say_empty(len(self._scores))
        self._count()
        self._write_link(False)

    def _moved(self, event: GenericEventArguments) -> None:
        self._view = replace(self._view, eye=(event.args["lat"], event.args["lon"], event.args["zoom"]))
        self._write_link(False)

    def _layers(self, event: GenericEventArguments) -> None:
        self._view = replace(self._view, heat=bool(event.args["heat"]))
        self._write_link(False)

    def _refresh(self) -> None:
        """Show what is asked, and whether the answer is still one to it."""
        self._view = self.bar.read(self._view)
        stale = self._asked is not None and self._view.asks and self._view.question() != self._asked
        self.bar.show_state(busy=self._busy, stale=stale)
        self.panel.show_examples(self._view, stale=stale)
        self.panel.gallery.set_examples(self._view.more, self._view.less)

    def _set_busy(self, busy: bool) -> None:
        self._busy = busy
        self._refresh()

    def _write_link(self, remember: bool) -> None:
        how = "pushState" if remember else "replaceState"
        # what was typed and not asked yet is not in the answer: the link tells what is seen
        view = self._view if self._asked is None else replace(
            self._asked, least=self._view.least, eye=self._view.eye, heat=self._view.heat, labels=self._view.labels
        )  # fmt: skip
        self._client.run_javascript(f"history.{how}(null, '', location.pathname + {json.dumps(view.link())})")

    # ---- keeping
    async def _export(self, kind: str) -> None:
        if self._shown is None or not self._visible:
            self._fail("There is nothing to take away yet: search first, or accept some tiles.")
            return
        hits = with_labels(rows.first(self._shown, self._visible), self._marks)
        data = await self._services.keeper.run("search", exports.as_bytes, hits, kind)
        named = {"results": "results", "yes": "accepted", "no": "rejected"}[self._tab]
        ui.download.content(data, f"alidade-{named}.{kind}", exports.MEDIA_TYPES[kind])

    async def _keep(self, name: str) -> None:
        view = self.bar.read(self._view)
        if not view.asks:
            self._fail(_NOTHING_TO_ASK)
            return
        await self._services.save_search(name, view.body())
        answer, _ = await self._services.run_saved(name)
        await self._take(answer, view)
        ui.notify(f"Saved as “{name}”. Ask it again from the list when there is new imagery.", position="bottom")

    async def _run_saved(self, name: str) -> None:
        saved = (await self._services.saved_searches())[name]
        answer, new = await self._services.run_saved(name)
        view = replace(View.of_body(saved.query), labels=self._view.labels, eye=self._view.eye, heat=self._view.heat)
        self.bar.fill(view)
        self.map.set_area(view.area)
        await self._take(answer, view, new=frozenset(new))
        told = f"{len(new):,} new" if new else "Nothing new"
        self.panel.tell([f"“{name}”: {told} since it was last asked ({saved.time.replace('T', ' ')[:16]} UTC)."])

    # ---- what goes wrong
    async def _guarded(self, work: Awaitable[None]) -> None:
        """Do something; an error becomes a sentence on the page."""
        # the button that began it may be gone by now, as one beside an example that was dropped
        with self._client:
            try:
                await work
            except AlidadeError as error:
                self._fail(str(error))

    def _fail(self, sentence: str) -> None:
        self.panel.tell([sentence[:1].upper() + sentence[1:]], "error")


def _ends(scores: np.ndarray) -> tuple[float, float]:
    """The lowest and the highest score, to the slider's three digits and outwards."""
    return float(np.floor(scores[-1] * 1000) / 1000), float(np.ceil(scores[0] * 1000) / 1000)


_SET_THEME = """
const kept = localStorage.getItem("alidade-theme");
if (kept) Quasar.Dark.set(kept === "dark");
window.addEventListener("popstate", () => location.reload());
"""
_TURN_THEME = """() => {
  Quasar.Dark.toggle();
  localStorage.setItem("alidade-theme", Quasar.Dark.isActive ? "dark" : "light");
}"""

"""The upper edge of the page: words, an image, dates, sensor, detail, and how many results."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from nicegui import ui
from nicegui.events import GenericEventArguments

from alidade.server.page.elements import ImageButton
from alidade.server.page.rows import gsd_choices, sensor_choices
from alidade.server.page.view import View
from alidade.server.scenes import SceneInfo

_COUNTS = (50, 200, 1000, 5000, 10_000)
Do = Callable[[], Awaitable[None]]


class QuestionBar:
    """Fields that a view is read from and written into.

    Args:
        search: is called to ask.
        changed: is called when a field has another value.
        sent: is called with the token and name of an image that was sent.
        failed: is called with the reason when one could not be.
    """

    def __init__(
        self, search: Do, changed: Callable[[], None], sent: Callable[[str, str], Awaitable[None]],
        failed: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._changed, self._sent, self._failed = changed, sent, failed
        self._quiet = False
        with ui.element("form").classes("al-ask").props('role="search" onsubmit="return false"'):
            self.text = self._input("What to find, for example open water", "al-words", "search")
            self.text.on("keydown.enter", search)
            with self.text.add_slot("append"):
                image = ImageButton()
                image.on("sent", self._image)
                image.on("failed", lambda event: self._failed(event.args["message"]))
            self.without = self._input("but not…", "al-not", "do_not_disturb_on")
            self.without.on("keydown.enter", search)
            self.button = ui.button("Search", on_click=search, color=None).props("unelevated no-caps").classes("al-go")

    def conditions(self) -> None:
        """The fields that narrow the search, where they shall stand."""
        with ui.element("div").classes("al-conditions").props('role="group" aria-label="Conditions"'):
            self.start = self._date("from")
            self.end = self._date("to")
            self.sensor = self._select({"": "any sensor"}, "", "Sensor")
            self.gsd = self._select({"": "any detail"}, "", "Ground resolution")
            self.k = self._select({n: f"best {n:,}" for n in _COUNTS}, _COUNTS[1], "Number of results")

    def offer(self, scenes: list[SceneInfo], knows_words: bool) -> None:
        """Let those sensors and resolutions be chosen that there are."""
        self._quiet = True
        for choice, choices in ((self.sensor, sensor_choices(scenes)), (self.gsd, gsd_choices(scenes))):
            # a link may ask for what the archive does not have; the answer will say so
            named = dict(choice.options)
            asked = {choice.value: named[choice.value]} if choice.value not in choices else {}
            choice.set_options(choices | asked, value=choice.value)
        if not knows_words:
            for field in (self.text, self.without):
                field.disable()
            self.text.props('placeholder="This archive’s model knows no words: click the map, or send an image"')
        self._quiet = False

    def fill(self, view: View) -> None:
        """Show a view."""
        self._quiet = True
        self.text.value, self.without.value = view.text, view.without
        self.start.value, self.end.value = view.start, view.end
        gsd = "" if view.gsd is None else f"{view.gsd[0]:g},{view.gsd[1]:g}"
        # a link may ask for what the lists do not offer
        for field, value, name in (
            (self.sensor, view.sensor, view.sensor),
            (self.gsd, gsd, gsd.replace(",", "–") + " m"),
            (self.k, view.k, f"best {view.k:,}"),
        ):
            named = dict(field.options)
            field.set_options({**named, value: named.get(value, name)}, value=value)
        self._quiet = False

    def read(self, view: View) -> View:
        """``view`` with what the fields say."""
        low, _, high = str(self.gsd.value or "").partition(",")
        return replace(
            view,
            text=(self.text.value or "").strip(),
            without=(self.without.value or "").strip(),
            start=self.start.value or "",
            end=self.end.value or "",
            sensor=self.sensor.value or "",
            gsd=(float(low), float(high)) if low and high else None,
            k=int(self.k.value),
        )

    def show_state(self, *, busy: bool, stale: bool) -> None:
        """What the button says: whether the answer is to an older question than the fields and examples ask."""
        self.button.set_text("Search again" if stale else "Search")
        if busy:
            self.button.props("loading")
        else:
            self.button.props(remove="loading")
        self.button.classes(add="al-stale" if stale else "", remove="" if stale else "al-stale")

    async def _image(self, event: GenericEventArguments) -> None:
        await self._sent(event.args["token"], event.args["name"])

    def _input(self, hint: str, style: str, icon: str) -> ui.input:
        field = ui.input(placeholder=hint, on_change=self._say).classes(style)
        field.props(f'dense outlined clearable maxlength=1000 autocomplete=off aria-label="{hint}"')
        with field.add_slot("prepend"):
            ui.icon(icon)
        return field

    def _date(self, name: str) -> ui.input:
        with ui.element("label").classes("al-field"):
            ui.label(name)
            return ui.input(on_change=self._say).props(f'type=date dense borderless aria-label="{name} this day"')

    def _select(self, options: dict[str, str] | dict[int, str], value: str | int, name: str) -> ui.select:
        field = ui.select(options, value=value, on_change=self._say).classes("al-choice")
        field.props(f'dense borderless options-dense aria-label="{name}"')
        return field

    def _say(self) -> None:
        if not self._quiet:
            self._changed()

"""What commands show: tables, JSON and bars. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from alidade.evaluation.timing import Row
    from alidade.models.model import Model
    from alidade.search.plan import Failure
    from alidade.training.tiles.scenes import Failure as TilesFailure

# a pipe or a file has no edge to fold tables at
out = Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else 1000)
err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def show_json(value: object) -> None:
    """One JSON value on stdout."""
    typer.echo(json.dumps(plain(value), default=str, indent=2, ensure_ascii=False, allow_nan=False))


def plain(value: object) -> object:
    """The value with NaN and infinities as None: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> None:
    """A table on stdout; columns whose cells are all numbers are right-aligned."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    out.print(table)


def show_model(model: Model) -> None:
    """Name, format and reason, once, on stderr."""
    label = str(model.precision.dtype).removeprefix("torch.")
    err.print(f"model {model.identity}, {label}: {model.precision.reason}", style="dim")


def show_bench(rows: Sequence[Row]) -> None:
    """A benchmark's rows with their targets."""
    show_table(
        ("row", "value", "unit", "target", ""),
        [
            (
                r.name,
                f"{r.value:,.3g}" if abs(r.value) < 1000 else f"{r.value:,.0f}",
                r.unit,
                r.target,
                _mark(r.ok),
            )
            for r in rows
        ],
    )


def _mark(ok: bool | None) -> str:
    return "" if ok is None else ("holds" if ok else "MISSED")


class CountBar:
    """One bar on stderr for everything that is counted: how many are done, the rate, and the time left.

    Args:
        unit: word after the count, such as ``"tiles"``.
        doing: what goes on at first.
        total: how many there are; ``None`` where that is not known yet.
    """

    def __init__(self, unit: str, doing: str, total: int | None = None) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=err,
        )
        self._task = self._bar.add_task(doing, total=total, rate="")
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, total: int, doing: str) -> None:
        """Show the total and what goes on now; the rate counts from here."""
        self._began = time.monotonic()
        self._bar.update(self._task, total=total, description=doing)

    def advance(self, count: int) -> None:
        """Move on and show the rate."""
        self._bar.update(self._task, advance=count)
        rate = self._bar.tasks[0].completed / max(time.monotonic() - self._began, 1e-3)
        self._bar.update(self._task, rate=f"{rate:,.1f}/s")


class RowsBar(CountBar):
    """The bar of an index; implements the progress of ``search.index_build`` and ``search.postgres_load``."""

    def started(self, *, rows: int, doing: str) -> None:
        """Show what goes on."""
        if rows:
            self.begin(rows, doing)
        else:
            self._bar.update(self._task, description=doing)

    def advanced(self, *, rows: int) -> None:
        """Move on."""
        self.advance(rows)


class Bar(CountBar):
    """The embedding bar; implements ``search.embed.Progress``."""

    def __init__(self) -> None:
        super().__init__("tiles", "reading headers")

    def started(self, *, tiles: int, sources: int) -> None:
        """Show the totals."""
        self.begin(tiles, f"embedding {sources:,} {'file' if sources == 1 else 'files'}")

    def advanced(self, *, tiles: int, source: str) -> None:
        """Move on."""
        self.advance(tiles)

    def failed(self, failure: Failure) -> None:
        """Nothing now: failures are listed at the end."""


class TilesBar(CountBar):
    """The bar of ``alidade tiles build``; implements ``training.tiles.run.Progress``."""

    def __init__(self) -> None:
        super().__init__("squares", "reading headers")

    def started(self, *, squares: int, scenes: int) -> None:
        """Show the totals."""
        self.begin(squares, f"aligning {scenes:,} {'scene' if scenes == 1 else 'scenes'}")

    def advanced(self, *, squares: int) -> None:
        """Move on."""
        self.advance(squares)

    def failed(self, failure: TilesFailure) -> None:
        """Nothing now: failures are listed at the end."""


class ImportBar(CountBar):
    """The bar of ``alidade tiles import``; implements ``training.tiles.importing.ImportProgress``."""

    def __init__(self) -> None:
        super().__init__("samples", "listing")

    def started(self, *, samples: int) -> None:
        """Show the total."""
        self.begin(samples, "importing")

    def advanced(self, *, samples: int) -> None:
        """Move on."""
        self.advance(samples)

    def failed(self, failure: TilesFailure) -> None:
        """Nothing now: failures are listed at the end."""

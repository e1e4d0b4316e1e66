"""What commands show: tables, JSON and the embedding bar. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from types import TracebackType

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from alidade.evaluation.timing import Row
from alidade.models.model import Model
from alidade.search.plan import Failure

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


class Bar:
    """The embedding bar: tiles done, rate and time left; implements ``search.embed.Progress``."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("tiles"),
            TextColumn("{task.fields[rate]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=err,
        )
        self._task = self._bar.add_task("reading headers", total=None, rate="")
        self._began = time.monotonic()

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def started(self, *, tiles: int, sources: int) -> None:
        """Show the totals."""
        self._began = time.monotonic()
        self._bar.update(self._task, total=tiles, description=f"embedding {sources:,} scenes")

    def advanced(self, *, tiles: int, source: str) -> None:
        """Move on and show the rate."""
        self._bar.update(self._task, advance=tiles)
        rate = self._bar.tasks[0].completed / max(time.monotonic() - self._began, 1e-3)
        self._bar.update(self._task, rate=f"{rate:,.1f}/s")

    def failed(self, failure: Failure) -> None:
        """Nothing now: failures are listed at the end."""

"""The results file: one JSON line per number, appended and never changed, and tables made from it.

One rule for all numbers: a share (accuracy, recall, mAP, flips) is stored as a fraction from 0 to 1 and shown as
percent; every other number (R², a cosine, a distance, seconds) is stored and shown as it is. A metric's name decides
which it is (``NUMBERS``, ``COUNTS``, ``Result.unit``), and what shows a result takes it from ``Result.shown`` or
``Result.cell``.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from alidade.errors import AlidadeError

NUMBERS = (
    *("alignment", "uniformity", "modality gap", "hubness", "mean cosine", "smallest cosine", "speed"),
    *("NDVI", "NDWI"),
)
"""How the names of those metrics begin that are plain numbers (of an index: R² and r); all others are shares."""
COUNTS = frozenset(
    {
        *("error", "width", "depth", "heads", "batch", "steps", "parameters", "images", "tokens", "images per second"),
        *(f"{what} seconds" for what in ("measuring", "training", "processor")),
    }
)
"""Metrics of what was computed and at what cost: plain numbers, too."""
_ROUNDING = 1e-9


class ResultsError(AlidadeError):
    """A result that lacks something, or a results file that is damaged."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One measured number with all that is needed to judge and to repeat it. Nothing may be left empty.

    Attributes:
        protocol: how it was measured, such as ``"5-NN"``.
        condition: what was set apart from the protocol, such as ``"25 %, GSD truthful"``; ``"as is"`` for nothing.
        dataset: data set and part that were reported on.
        split_hash: of all images that took part (``datasets.split_hash``).
        model: a model's identity or a baseline's name.
        config_hash: of the encoder's config and the protocol's settings.
        commit: of the code.
        seed: of everything drawn.
        n: scores that the value is the mean of.
        metric: such as ``"accuracy"``; values are shares, 0 to 1, except for those of ``NUMBERS`` and
            ``COUNTS``.
        value, low, high: the mean and its 95 % bootstrap interval; of a share as fractions.
        time: when it was measured, ISO 8601 in UTC.

    Raises:
        ResultsError: a field that is empty, of another type, not finite or not in order, or a share outside 0 to 1.
    """

    protocol: str
    condition: str
    dataset: str
    split_hash: str
    model: str
    config_hash: str
    commit: str
    seed: int
    n: int
    metric: str
    value: float
    low: float
    high: float
    time: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            text = isinstance(value, str) and value.strip() == value != ""
            whole = type(value) is int and value >= 0
            real = type(value) is float and math.isfinite(value)
            if not {"str": text, "int": whole, "float": real}[str(field.type)]:
                raise _incomplete(f"{field.name} = {value!r}", f"{field.name} as a filled {field.type}")
        if not (self.low <= self.value <= self.high and self.n > 0):
            raise _incomplete(f"{self.value} in {self.low} to {self.high}, n = {self.n}", "low <= value <= high, n > 0")
        # sums of fractions may end a rounding beside 0 or 1
        if self.unit and not (self.low >= -_ROUNDING and self.high <= 1 + _ROUNDING):
            raise _incomplete(f"{self.metric} {self.low} to {self.high}", f"{self.metric} as a share, 0 to 1")

    @property
    def unit(self) -> str:
        """What the ``shown`` figures are in: ``"%"`` for shares, ``""`` for plain numbers."""
        return "" if self.metric.startswith(NUMBERS) or self.metric in COUNTS else "%"

    @property
    def shown(self) -> tuple[str, str, str]:
        """Value, low and high as tables print them, in ``unit``; what rounds to zero has no sign."""
        share = self.unit == "%"
        # chance can be far below a percent
        digits = (2 if self.value < 0.02 else 1) if share else 4 if self.value < 10 else 1 if self.value < 1000 else 0
        value, low, high = (f"{(100 if share else 1) * x:z.{digits}f}" for x in (self.value, self.low, self.high))
        return value, low, high

    @property
    def cell(self) -> str:
        """The value with its unit, such as ``"86.6 %"`` or ``"0.7313"``."""
        return f"{self.shown[0]} {self.unit}".rstrip()


def append(path: Path, results: Sequence[Result]) -> None:
    """Add results to the file; see ``append_lines``."""
    append_lines(path, [json.dumps(asdict(r), ensure_ascii=False) for r in results])


def append_lines(path: Path, texts: Sequence[str]) -> None:
    """Add lines to a file, all or none, and sync them to the disk; what a crash tore off before is cut away.

    Raises:
        ResultsError: the file cannot be written.
    """
    lines = "".join(text + "\n" for text in texts).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                file.truncate(whole)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ResultsError(
            f"{path}: results",
            got=error.strerror or str(error),
            expected="a file that can be added to",
            next_step="Make room, or name another file with --results.",
        ) from None


def load(path: Path) -> list[Result]:
    """All results in the order of their measurement. A last line without its line feed was never acknowledged.

    Raises:
        ResultsError: no such file, or a line that is no result, with its number.
    """
    if not path.is_file():
        raise ResultsError(
            f"{path}: results",
            got="no such file",
            expected="a file of `alidade eval`",
            next_step="Measure something first.",
        )
    out = []
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            out.append(Result(**json.loads(line)))
        except (json.JSONDecodeError, TypeError, ResultsError) as error:
            raise ResultsError(
                f"{path}: line {number}",
                got=str(error),
                expected="one whole result in JSON",
                next_step="Restore the file from version control; lines are only ever added.",
            ) from None
    return out


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file of ``append_lines``, without a last one that was never acknowledged."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1].splitlines()


def commit_of(directory: Path) -> str:
    """The commit that ``directory`` is at, with ``+changes`` when something in it differs or is not tracked.

    Raises:
        ResultsError: not a git repository, or no git.
    """
    try:
        head = _git(directory, "rev-parse", "HEAD")
        changed = _git(directory, "status", "--porcelain", ".")
    except (OSError, subprocess.CalledProcessError) as error:
        raise ResultsError(
            f"{directory}: commit of the code",
            got=str(error),
            expected="a git repository",
            next_step="Name the commit with --commit: a number without its code cannot be repeated.",
        ) from None
    return head[:12] + ("+changes" if changed else "")


def now() -> str:
    """The time for a result."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def latest(results: Iterable[Result]) -> list[Result]:
    """Of results that differ in value, commit and time only, the newest; in the order of the first ones."""
    kept: dict[tuple[object, ...], Result] = {}
    for r in results:
        kept[(r.protocol, r.condition, r.dataset, r.split_hash, r.model, r.config_hash, r.seed, r.metric)] = r
    return list(kept.values())


def to_markdown(results: Sequence[Result]) -> str:
    """Tables for people: one per data set and protocol, a row per model, a column per condition and metric.

    Cells are as ``Result.shown`` has them, with the 95 % interval. Under each table stand which are no percent, the
    split, the commits and the times.
    """
    blocks = []
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for r in latest(results):
        groups.setdefault((r.dataset, r.split_hash, r.protocol), []).append(r)
    for (dataset, split, protocol), group in groups.items():
        columns = list(dict.fromkeys((r.condition, r.metric) for r in group))
        several = len({r.seed for r in group}) > 1
        lines = list(dict.fromkeys((r.model, r.seed) for r in group))
        cells = {(r.model, r.seed, r.condition, r.metric): r for r in group}
        table = [
            f"## {dataset}, {protocol}",
            "",
            "| | " + " | ".join(m if c == "as is" else f"{c}: {m}" for c, m in columns) + " |",
            "|---|" + "---|" * len(columns),
        ]
        for model, seed in lines:
            found = (cells.get((model, seed, *column)) for column in columns)
            name = f"{model}, seed {seed}" if several else model
            table.append(f"| {name} | " + " | ".join("" if r is None else _cell(r) for r in found) + " |")
        scores = ", ".join(f"{n:,}" for n in sorted({r.n for r in group}))
        commits = ", ".join(sorted({r.commit for r in group}))
        when = f"{min(r.time for r in group)} to {max(r.time for r in group)}"
        seeds = ", ".join(str(s) for s in sorted({r.seed for r in group}))
        numbers = ", ".join(dict.fromkeys(r.metric for r in group if not r.unit))
        table += ["", f"Plain numbers, not percent: {numbers}."] if numbers else []
        table += ["", f"n = {scores}; split `{split}`; seed {seeds}; code `{commits}`; measured {when}."]
        blocks.append("\n".join(table))
    return "\n\n".join(blocks) + "\n"


def _cell(r: Result) -> str:
    value, low, high = r.shown
    # a dash between negative numbers would look like another sign
    return f"{value} ({low} to {high})" if low.startswith("-") else f"{value} ({low}–{high})"


def _git(directory: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(directory), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _incomplete(got: str, expected: str) -> ResultsError:
    return ResultsError("result", got=got, expected=expected, next_step="Fill every field; nothing is written without.")

"""Checkpoints that are whole or absent: a directory per step, and a marker written last."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from alidade.errors import AlidadeError
from alidade.imagery.atomic import atomic_write, is_temporary

MARKER = "latest"
RECIPE = "recipe.json"
DATA = "data.txt"
"""The identity of what a run draws its batches from."""
KEPT = 2
"""Checkpoints that stay; older ones are removed once a newer one is marked."""


class CheckpointError(AlidadeError):
    """A checkpoint that is missing, damaged or of another run."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything that the next step depends on, whole tensors on the CPU however many processes trained them.

    Attributes:
        step: optimiser steps done.
        weights: of all that is trained, by name.
        moments: the optimiser's ``state_dict``.
    """

    step: int
    weights: dict[str, Tensor]
    moments: dict[str, Any]


def begin_run(folder: Path, recipe: str, data: str) -> None:
    """Make or enter a run's folder, and clear away what a killed process left half written or did not clear away.

    A run that was begun before runs kept the identity of their data has none: it goes on with what it is given, which
    is logged as a warning, and keeps to that from then on.

    Raises:
        CheckpointError: see ``check_run``.
        OSError: the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_run(folder, recipe, data)
    for torn in folder.glob(".step-*"):
        shutil.rmtree(torn)
    for part in folder.rglob(".*"):
        if is_temporary(part):
            part.unlink()
    marked = _marked(folder)
    if marked is not None:
        _prune(folder, marked)
        if not (folder / DATA).exists():
            logging.getLogger(__name__).warning(
                "%s: this run does not say what data it began with; taken to be the present: %s", folder, data
            )
    for name, text in ((RECIPE, recipe), (DATA, data)):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def check_run(folder: Path, recipe: str, data: str) -> None:
    """Whether a run may begin or go on in a folder; nothing is written.

    Args:
        folder: of the run; need not exist.
        recipe: the run's config as text.
        data: identity of what its batches are drawn from.

    Raises:
        CheckpointError: the folder holds a run with another recipe or other data, or something that is no run.
        OSError: it cannot be read.
    """
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    others = sorted(name for name in names if name[0] != ".")
    if RECIPE in names:
        _check_recipe(folder, (folder / RECIPE).read_text(encoding="utf-8", errors="replace"), recipe)
    elif others and MARKER not in names:
        raise CheckpointError(
            f"{folder}",
            got=f"a folder that holds something else ({', '.join(others[:3])})",
            expected="an empty folder, or one that a run was started in",
            next_step="Name another one with --out.",
        )
    begun_with = (folder / DATA).read_text(encoding="utf-8", errors="replace") if DATA in names else data
    if begun_with != data:
        raise CheckpointError(
            f"{folder}: data",
            got=data,
            expected=f"what the run was begun with: {begun_with}",
            next_step="Resume with the same data, or start in an empty folder.",
        )


def save_checkpoint(folder: Path, checkpoint: Checkpoint, recipe: str) -> None:
    """Write a checkpoint; afterwards ``latest`` names it. A failure leaves the one before as it was.

    Args:
        folder: of the run.
        checkpoint: what to write.
        recipe: the run's config as text; a resumed run must have the same.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    target = folder / _name(checkpoint.step)
    temporary = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _write(temporary / "model.safetensors", lambda file: file.write(save(checkpoint.weights)))
        _write(temporary / "optimizer.pt", lambda file: _save(checkpoint.moments, file))
        _write(temporary / RECIPE, lambda file: file.write(recipe.encode()))
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        with atomic_write(folder / MARKER) as marker:
            marker.write_text(target.name, encoding="ascii")
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for later in _steps(folder):
        # of a run that was killed before it marked them, or that was taken back to an older one
        if later > checkpoint.step:
            shutil.rmtree(folder / _name(later))
    _prune(folder, checkpoint.step)


def read_checkpoint(folder: Path, recipe: str) -> Checkpoint | None:
    """The marked checkpoint, or None where none has been marked.

    Raises:
        CheckpointError: the checkpoint is damaged, or was made by another recipe.
    """
    marker = folder / MARKER
    if not marker.is_file():
        return None
    name = marker.read_text(encoding="ascii", errors="replace").strip()
    checkpoint = folder / name
    try:
        step = _step(name)
        if step is None:
            raise ValueError(f"{marker} names {name!r}")
        made_by = (checkpoint / RECIPE).read_text(encoding="utf-8")
        _check_recipe(checkpoint, made_by, recipe)
        return Checkpoint(
            step=step,
            weights=load_file(checkpoint / "model.safetensors"),
            moments=torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True),
        )
    except CheckpointError:
        raise
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{checkpoint}",
            got=f"a file that cannot be read ({(str(error).splitlines() or [type(error).__name__])[0]})",
            expected="a whole checkpoint",
            next_step=f"Write the name of an older step-... directory into {marker}, or start in an empty folder.",
        ) from None


def fit(checkpoint: Checkpoint, load: Callable[[], object], folder: Path) -> None:
    """Load from a checkpoint, telling in one line when its tensors are not those that this version makes.

    Raises:
        CheckpointError: names or shapes differ.
    """
    try:
        load()
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(
            f"{folder}: checkpoint of step {checkpoint.step}",
            got=f"tensors that do not fit ({' '.join(str(error).split())[:200]})",
            expected="those of the recipe, as this version of alidade builds it",
            next_step="Go on with the version that wrote it, or start in an empty folder.",
        ) from None


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _step(name: str) -> int | None:
    """The step in a checkpoint's name, None when it is none."""
    step = int(name.removeprefix("step-")) if re.fullmatch(r"step-\d{8,}", name) else None
    return step if step is not None and _name(step) == name else None


def _steps(folder: Path) -> list[int]:
    """Of the checkpoints that are there, ascending."""
    return sorted(step for path in folder.iterdir() if (step := _step(path.name)) is not None)


def _marked(folder: Path) -> int | None:
    """The step of the marked checkpoint, None where there is none."""
    marker = folder / MARKER
    step = _step(marker.read_text(encoding="ascii", errors="replace").strip()) if marker.is_file() else None
    return step if step in _steps(folder) else None


def _prune(folder: Path, marked: int) -> None:
    """Remove what is older than the checkpoints that stay."""
    for old in [step for step in _steps(folder) if step <= marked][:-KEPT]:
        shutil.rmtree(folder / _name(old))


def _check_recipe(where: Path, made_by: str, recipe: str) -> None:
    if made_by == recipe:
        return
    raise CheckpointError(
        f"{where}",
        got=f"a checkpoint of another recipe ({_difference(made_by, recipe)})",
        expected="the recipe it was started with",
        next_step="Resume with the same options, or start in an empty folder.",
    )


def _difference(made_by: str, recipe: str) -> str:
    try:
        theirs, ours = json.loads(made_by), json.loads(recipe)
        keys = sorted(theirs.keys() | ours.keys())
    except (ValueError, AttributeError):
        return "one that cannot be read"
    there = [key for key in keys if theirs.get(key) != ours.get(key)]
    return f"{', '.join(there)} {'differs' if len(there) == 1 else 'differ'}"


def _save(moments: dict[str, Any], file: IO[bytes]) -> None:
    try:
        torch.save(moments, file)
    except RuntimeError as error:
        # torch's writer hides why the file would not take the bytes behind an error of its own
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _write(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    with path.open("wb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())

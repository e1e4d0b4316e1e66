"""Checkpoints that are whole or absent: a directory per step, and a marker written last."""

from __future__ import annotations

import json
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


def begin_run(folder: Path, recipe: str) -> None:
    """Make or enter a run's folder, and clear away what a killed process left half written.

    Raises:
        CheckpointError: the folder holds a run with another recipe, or something that is no run.
        OSError: it cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECIPE
    if path.is_file():
        _check_recipe(folder, path.read_text(encoding="utf-8", errors="replace"), recipe)
    elif not (folder / MARKER).exists() and (others := [p.name for p in folder.iterdir() if p.name[0] != "."]):
        raise CheckpointError(
            f"{folder}",
            got=f"a folder that holds something else ({', '.join(sorted(others)[:3])})",
            expected="an empty folder, or one that a run was started in",
            next_step="Name another one with --out.",
        )
    for torn in folder.glob(".step-*"):
        shutil.rmtree(torn)
    for part in folder.rglob(".*"):
        if is_temporary(part):
            part.unlink()
    with atomic_write(path) as temporary:
        temporary.write_text(recipe, encoding="utf-8")


def save_checkpoint(folder: Path, checkpoint: Checkpoint, recipe: str) -> None:
    """Write a checkpoint; afterwards ``latest`` names it. A failure leaves the one before as it was.

    Args:
        folder: of the run.
        checkpoint: what to write.
        recipe: the run's config as text; a resumed run must have the same.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    target = folder / f"step-{checkpoint.step:08d}"
    temporary = folder / f".step-{checkpoint.step:08d}.{os.getpid()}"
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
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        if old != target:
            shutil.rmtree(old)


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
        if not re.fullmatch(r"step-\d{8,}", name):
            raise ValueError(f"{marker} names {name!r}")
        made_by = (checkpoint / RECIPE).read_text(encoding="utf-8")
        _check_recipe(checkpoint, made_by, recipe)
        return Checkpoint(
            step=int(name.removeprefix("step-")),
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

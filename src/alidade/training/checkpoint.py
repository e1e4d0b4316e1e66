"""Checkpoints that are whole or absent: a directory per step, and a marker written last."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from alidade.errors import AlidadeError
from alidade.imagery.atomic import atomic_write

MARKER = "latest"
KEPT = 2
"""Checkpoints that stay; older ones are removed once a newer one is marked."""


class CheckpointError(AlidadeError):
    """A checkpoint that is missing, damaged or of another run."""


def save_checkpoint(
    folder: Path, step: int, module: torch.nn.Module, optimizer: torch.optim.Optimizer, recipe: str
) -> None:
    """Write everything that the next step depends on; afterwards ``latest`` names it.

    Args:
        folder: of the run.
        step: optimiser steps done.
        module: all that is trained.
        optimizer: its moments are part of the state.
        recipe: the run's config as text; a resumed run must have the same.
    """
    target = folder / f"step-{step:08d}"
    temporary = folder / f".step-{step:08d}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    state = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    _write(temporary / "model.safetensors", save(state))
    with (temporary / "optimizer.pt").open("wb") as file:
        torch.save(optimizer.state_dict(), file)
        file.flush()
        os.fsync(file.fileno())
    _write(temporary / "recipe.json", recipe.encode())
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    with atomic_write(folder / MARKER) as marker:
        marker.write_text(target.name, encoding="ascii")
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        if old != target:
            shutil.rmtree(old)


def resume(folder: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer, recipe: str) -> int:
    """Load the marked checkpoint into module and optimiser; the number of steps done, 0 when there is none.

    Raises:
        CheckpointError: the checkpoint is damaged, or was made by another recipe.
    """
    for torn in folder.glob(".step-*"):
        shutil.rmtree(torn)
    marker = folder / MARKER
    if not marker.is_file():
        return 0
    checkpoint = folder / marker.read_text(encoding="ascii")
    try:
        made_by = (checkpoint / "recipe.json").read_text(encoding="utf-8")
        state = load_file(checkpoint / "model.safetensors")
        moments = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{checkpoint}",
            got=f"a file that cannot be read ({str(error).splitlines()[0]})",
            expected="a whole checkpoint",
            next_step=f"Write the name of an older step-... directory into {marker}, or start in an empty folder.",
        ) from None
    if made_by != recipe:
        raise CheckpointError(
            f"{checkpoint}",
            got="a checkpoint of another recipe",
            expected="the recipe it was started with",
            next_step="Resume with the same options, or start in an empty folder.",
        )
    module.load_state_dict(state)
    optimizer.load_state_dict(moments)
    return int(checkpoint.name.removeprefix("step-"))


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

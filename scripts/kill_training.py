"""Kill training at random moments, resume it each time, and compare its end with a run that nobody disturbed.

    python scripts/kill_training.py --kills 50 --seed 0

A tiny model is trained on a tile store made by code. Half of the kills are SIGKILL, half SIGTERM; they come while a
run starts, between its steps, and while it writes a checkpoint. Exit code 0 says that every promise was kept:

- a run goes on from the checkpoint that ``latest`` named when its predecessor died, never from an older one;
- SIGTERM loses no step, SIGKILL at most those since the last checkpoint;
- in the end weights, moments and the saved model are those of the undisturbed run, bit for bit;
- two checkpoints are left at most, and no temporary file.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import load_file

from alidade.imagery.bands import Encoding, Unit
from alidade.training.loop import Report
from alidade.training.pretrain import PretrainConfig, pretrain
from alidade.training.processes import TrainingError
from alidade.training.store_batches import Size, StoreBatches, model_for
from alidade.training.tiles.schema import Sample, SampleView, ViewSpec
from alidade.training.tiles.store import TileStore
from alidade.training.tiles.writer import StoreWriter

STEPS, EVERY, BATCH, PATCH = 40, 2, 4, 4
STOPPED = 3
"""Exit code of a run that was asked to stop and did so by itself."""
PATIENCE_S = 120.0
FORK = multiprocessing.get_context("fork")
"""torch takes seconds to import: each run is forked from this process, which starts no thread of its own."""


class BrokenPromise(Exception):
    """What training should have kept and did not."""


@dataclass(frozen=True, kw_only=True)
class Life:
    """One run from its start to its death: steps it reported, and the checkpoint marked before and after."""

    exit_code: int
    before: int
    after: int
    reported: tuple[int, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how often a run is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="kill-training-") as folder:
        try:
            console.print(kill_often(Path(folder), options.kills, options.seed, console))
        except BrokenPromise as broken:
            console.print(f"failed: {broken}", markup=False)
            sys.exit(1)


def kill_often(work: Path, kills: int, seed: int, console: Console) -> str:
    """Kill so often, over as many runs as that takes; a summary."""
    chance, counts = random.Random(seed), Counter[str]()
    finish(start(make_store, work / "store", log=work / "log.txt"), work)
    began = time.monotonic()
    finish(start_training(work, "whole"), work)
    whole = time.monotonic() - began
    columns = (TextColumn("kills"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, auto_refresh=False) as bar:
        task = bar.add_task("kills", total=kills)
        while counts["kills"] < kills:
            run = f"run-{counts['runs']}"
            while one_life(work, run, whole, chance, counts, last=counts["kills"] >= kills) != 0:
                bar.update(task, completed=counts["kills"], refresh=True)
            check_end(work / run, work / "whole")
            counts["runs"] += 1
    return (
        f"{counts['kills']} kills ({counts['SIGKILL']} SIGKILL, {counts['SIGTERM']} SIGTERM) in {counts['runs']} runs "
        f"of {STEPS} steps, {counts['torn']} in the middle of a checkpoint, {counts['unmarked']} between a checkpoint "
        f"and its mark: {counts['lost']} steps done twice, no acknowledged checkpoint lost, every end bit for bit that "
        f"of the undisturbed run, nothing left over ({time.monotonic() - began:.0f} s)"
    )


def one_life(work: Path, run: str, whole: float, chance: random.Random, counts: Counter[str], *, last: bool) -> int:
    """Start or resume a run, kill it unless it is the ``last`` life; its exit code, 0 when it came to its end."""
    before = marked(work / run)
    process = start_training(work, run)
    if not last:
        number = chance.choice([signal.SIGKILL, signal.SIGTERM])
        wait_for_a_moment(work / run, process, whole, chance)
        if process.exitcode is None:
            os.kill(process.pid or 0, number)
    process.join(PATIENCE_S)
    if process.exitcode is None:
        process.kill()
        raise BrokenPromise(f"{run} did not end in {PATIENCE_S:g} s")
    steps = work / f"{run}.steps"
    reported = tuple(map(int, steps.read_text().split())) if steps.exists() else ()
    steps.unlink(missing_ok=True)
    life = Life(exit_code=process.exitcode, before=before, after=marked(work / run), reported=reported)
    check_life(life, f"{run}, {life}; {(work / 'log.txt').read_text()[-2000:]}")
    if life.exit_code:
        counts["kills"] += 1
        counts["SIGKILL" if life.exit_code == -signal.SIGKILL else "SIGTERM"] += 1
        counts["torn"] += any((work / run).glob(f".step-*.{process.pid}"))
        newest = max((int(p.name.removeprefix("step-")) for p in (work / run).glob("step-*")), default=0)
        counts["unmarked"] += newest > life.after
        counts["lost"] += max(reported, default=life.after) - life.after
    return life.exit_code


def wait_for_a_moment(
    folder: Path, process: multiprocessing.process.BaseProcess, whole: float, chance: random.Random
) -> None:
    """Sleep to any time of a run's life, or to some thousandths of a second after a checkpoint was begun."""
    if chance.random() < 0.5:
        process.join(chance.uniform(0.0, whole))
        return
    time.sleep(chance.uniform(0.0, 0.3 * whole))
    # a predecessor's torn checkpoint may still lie there; the name ends with the writer's process id
    until(lambda: process.exitcode is not None or any(folder.glob(f".step-*.{process.pid}")))
    time.sleep(chance.choice([0.0, chance.uniform(0.0, 0.02)]))


def check_life(life: Life, told: str) -> None:
    """What one life must have kept."""
    if life.exit_code not in (0, STOPPED, -signal.SIGKILL, -signal.SIGTERM):
        raise BrokenPromise(f"a run died by itself: {told}")
    if life.after < life.before:
        raise BrokenPromise(f"an acknowledged checkpoint was lost: {told}")
    if life.reported != tuple(range(life.before + 1, life.before + 1 + len(life.reported))):
        raise BrokenPromise(f"a run did not go on from its checkpoint: {told}")
    lost = max(life.reported, default=life.after) - life.after
    if lost > (EVERY if life.exit_code < 0 else 0):
        raise BrokenPromise(f"{lost} steps were lost: {told}")


def check_end(run: Path, whole: Path) -> None:
    """What the end of a run must be, however often it was killed."""
    for part in (f"step-{STEPS:08d}/model.safetensors", "model/model.safetensors"):
        ours, theirs = load_file(run / part), load_file(whole / part)
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[k], theirs[k]) for k in ours):
            raise BrokenPromise(f"{run.name}: {part} is not that of the undisturbed run")
    ours, theirs = (
        torch.load(folder / f"step-{STEPS:08d}" / "optimizer.pt", weights_only=True)["state"] for folder in (run, whole)
    )
    if not all(torch.equal(ours[i][name], theirs[i][name]) for i in theirs for name in theirs[i]):
        raise BrokenPromise(f"{run.name}: the optimiser's moments are not those of the undisturbed run")
    found = sorted(p.name for p in run.iterdir() if p.name.startswith("step-"))
    if len(found) > 2:
        raise BrokenPromise(f"{run.name}: more than two checkpoints are kept: {found}")
    left = sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.name.startswith("."))
    if left:
        raise BrokenPromise(f"{run.name}: temporary files are left: {left}")


def marked(folder: Path) -> int:
    """The step of the acknowledged checkpoint, 0 when there is none; what it names must be whole."""
    marker = folder / "latest"
    if not marker.exists():
        return 0
    checkpoint = folder / marker.read_text().strip()
    load_file(checkpoint / "model.safetensors")
    torch.load(checkpoint / "optimizer.pt", weights_only=True)
    return int(checkpoint.name.removeprefix("step-"))


def start_training(work: Path, run: str) -> multiprocessing.process.BaseProcess:
    """Begin, or go on with, the run in ``work/run`` in a process of its own."""
    return start(train, work / "store", work / run, work / f"{run}.steps", log=work / "log.txt")


def start(task: Callable[..., None], *arguments: Path, log: Path) -> multiprocessing.process.BaseProcess:
    """A forked process that does the task and writes what it says into ``log``."""
    process = FORK.Process(target=quietly, args=(task, arguments, log))
    process.start()
    return process


def quietly(task: Callable[..., None], arguments: tuple[Path, ...], log: Path) -> None:
    """What a forked process does; a run that was asked to stop has an exit code of its own."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    torch.use_deterministic_algorithms(True)
    try:
        task(*arguments)
    except TrainingError:
        sys.exit(STOPPED)


def finish(process: multiprocessing.process.BaseProcess, work: Path) -> None:
    """Wait for a process that must succeed."""
    process.join(PATIENCE_S)
    if process.exitcode != 0:
        raise BrokenPromise(f"exit code {process.exitcode}: {(work / 'log.txt').read_text()[-2000:]}")


def until(holds: Callable[[], bool]) -> None:
    """Look often until it holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.0005)


def train(store: Path, folder: Path, steps: Path) -> None:
    """A run as ``alidade train pretrain`` does it, but tiny; each step done is one line in ``steps``."""
    tiles = TileStore.open(store)
    config = PretrainConfig(
        model=model_for(tiles, "killed", Size(width=32, heads=2, depth=1), PATCH),
        towers={view: view for view in tiles.views},
        steps=STEPS,
        batch=BATCH,
        warm_up=4,
        checkpoint_every=EVERY,
    )
    lines = os.open(steps, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def note(report: Report) -> None:
        os.write(lines, f"{report.step}\n".encode())

    pretrain(config, StoreBatches(tiles, split="train", patch=PATCH, factors=(1,)), folder, report=note)


def make_store(path: Path) -> None:
    """Twenty-four squares of colour and radar noise; every fifth has no radar."""
    colour, radar = (Encoding(unit=Unit.DISPLAY),) * 3, (Encoding(unit=Unit.POWER),) * 2
    views = {
        "rgb": ViewSpec(sensor="generic-rgb", bands=("R", "G", "B"), side=16, dtype="uint8", encodings=colour),
        "sar": ViewSpec(sensor="sentinel-1-rtc", bands=("VV", "VH"), side=16, dtype="float32", encodings=radar),
    }
    rng = np.random.default_rng(0)
    samples = []
    for number in range(24):
        pixels = {
            "rgb": rng.integers(1, 255, (3, 16, 16), dtype=np.uint8),
            "sar": rng.uniform(0.01, 0.3, (2, 16, 16)).astype(np.float32),
        }
        there = {
            name: SampleView(
                pixels=array, valid=np.ones((16, 16), np.bool_), gsd_m=(10.0, 10.0), time=None, source="made by code"
            )
            for name, array in pixels.items()
            if name == "rgb" or number % 5
        }
        samples.append(Sample(sample_id=str(number), square=str(number), split="train", views=there))
    with StoreWriter(path, views=views, ground_m=None) as writer:
        writer.append(samples)


if __name__ == "__main__":
    main()

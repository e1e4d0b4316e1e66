"""What a training step costs beside the way the released code computes it: time in one run, memory in fresh processes.

Training is no part of this package: whoever calls brings a function that makes a step.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import torch
from torch.utils.flop_counter import FlopCounterMode

from alidade.errors import ModelError
from alidade.evaluation.bench_encoder import SIDE, matrix_product
from alidade.evaluation.timing import Row, Timed, median_ratio, take_turns
from alidade.models.encoder import set_recompute

OURS, FLOAT32, RELEASED = "ours", "ours in the reference's format", "released"
AGAIN = "ours, layers computed again in the backward pass"
AGREE = 1e-4
"""Largest difference of any loss between the two ways, in float32: else they do not compute the same."""


class Step(Protocol):
    """A training step that can be repeated.

    Attributes:
        tokens: that the towers of one step keep, over the batch.
        device: where it runs.
        dtype: of its matrix products.
    """

    tokens: int
    device: torch.device
    dtype: torch.dtype

    @property
    def trainer(self) -> torch.nn.Module:
        """What is trained."""

    def losses(self) -> dict[str, float]:
        """Losses of the forward pass alone, in float32."""

    def __call__(self) -> object:
        """Forward, backward and the optimiser's step, done when it returns."""


Make = Callable[[str], Step]
"""A step computed ``OURS`` or the ``RELEASED`` way, from the same weights, images and masks; must pickle.

``OURS`` takes the format that ``alidade train`` would choose, ``RELEASED`` float32 on a processor, as the released code
would run there, and ``OURS``' on a GPU. ``FLOAT32`` is our way in the format of ``RELEASED``.
"""


def bench_train(make: Make, *, batch: int, rounds: int) -> list[Row]:
    """Rows for one training step both ways.

    Args:
        make: makes the steps.
        batch: samples of a step, for the rows' names.
        rounds: measured rounds after one to warm up.

    Raises:
        ModelError: the two ways do not agree.
    """
    # children first: what they use is not to be mistaken for what this process has grown to
    peaks = {way: peak_memory(make, way) for way in (OURS, RELEASED)}
    peaks[AGAIN] = peak_memory(make, OURS, recompute="layers")
    steps = {way: make(way) for way in (OURS, RELEASED)}
    difference = compare(steps[OURS].losses(), steps[RELEASED].losses())
    flops = count_flops(steps[RELEASED])
    formats = {way: str(step.dtype).removeprefix("torch.") for way, step in steps.items()}
    variants = dict[str, Callable[[], object]](steps)
    variants[AGAIN] = recomputing(steps[OURS])
    if formats[OURS] != formats[RELEASED]:
        variants[FLOAT32] = make(FLOAT32)
    variants["product"] = matrix_product_on(steps[OURS].device, steps[OURS].dtype)
    timed = take_turns(variants, rounds)
    share = 100 * flops / (2 * SIDE**3) * median_ratio(timed["product"], timed[OURS])
    return [
        Row(name="losses, largest difference", value=difference, unit="", target=f"<= {AGREE:g}", ok=True),
        Row(name=f"step, {formats[OURS]}, batch {batch}", value=timed[OURS].median, unit="s"),
        Row(name=f"step the released way, {formats[RELEASED]}", value=timed[RELEASED].median, unit="s"),
        *speed_rows(timed, formats[RELEASED]),
        *memory_rows(peaks),
        Row(name="tokens", value=steps[OURS].tokens / timed[OURS].median, unit="tokens/s"),
        Row(name="arithmetic of a step", value=flops / 1e9, unit="GFLOP"),
        Row(name=f"share of the {formats[OURS]} product rate", value=share, unit="%"),
    ]


def speed_rows(timed: dict[str, Timed], released: str) -> list[Row]:
    """Ratios of times; ``released`` is the format of the released way."""
    faster, again = (median_ratio(timed[RELEASED], timed[way]) for way in (OURS, AGAIN))
    rows = [Row(name="step against the released way", value=faster, unit="x", target=">= 2 x", ok=faster >= 2)]
    if FLOAT32 in timed:
        same = median_ratio(timed[RELEASED], timed[FLOAT32])
        rows.append(Row(name=f"the same, both in {released}", value=same, unit="x"))
    return [*rows, Row(name="step against the released way, layers computed again", value=again, unit="x")]


def memory_rows(peaks: dict[str, int]) -> list[Row]:
    """Peaks in bytes by way, and their ratios."""
    part, again = (peaks[way] / peaks[RELEASED] for way in (OURS, AGAIN))
    return [
        Row(name="memory of a step, above the weights", value=peaks[OURS] / 2**20, unit="MiB"),
        Row(name="memory of a step the released way", value=peaks[RELEASED] / 2**20, unit="MiB"),
        Row(name="memory against the released way", value=part, unit="x", target="<= 0.333 x", ok=part <= 1 / 3),
        Row(
            name="memory against the released way, layers computed again",
            value=again,
            unit="x",
            target="<= 0.333 x",
            ok=again <= 1 / 3,
        ),
    ]


def recomputing(step: Step) -> Callable[[], object]:
    """The step with layers computed again in its backward pass."""

    def again() -> None:
        set_recompute(step.trainer, "layers")
        step()
        set_recompute(step.trainer, "nothing")

    return again


def compare(ours: dict[str, float], theirs: dict[str, float]) -> float:
    """The largest difference of a loss.

    Raises:
        ModelError: it is above ``AGREE``, or the losses have other names.
    """
    if ours.keys() != theirs.keys():
        raise ModelError("bench train", got=f"losses {sorted(theirs)}", expected=str(sorted(ours)), next_step="Report.")
    difference = max(abs(ours[name] - theirs[name]) for name in ours)
    if not difference <= AGREE:
        raise ModelError(
            "bench train",
            got=f"losses that differ by {difference:.2g} between the two ways",
            expected=f"at most {AGREE:g}, since both compute the same",
            next_step="Report it: a reference that computes something else is no reference.",
        )
    return difference


def count_flops(step: Step) -> int:
    """Floating-point operations of a step's products; the unfused way's, since fused attention is not counted."""
    with FlopCounterMode(display=False) as counter:
        step()
    total: int = counter.get_total_flops()
    return total


def matrix_product_on(device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """A function that multiplies two square matrices of ``SIDE`` and returns when it is done."""
    if device.type != "cuda":
        return matrix_product(dtype)
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))

    def product() -> None:
        torch.nn.functional.linear(a, b)
        torch.cuda.synchronize()

    return product


def peak_memory(make: Make, way: str, recompute: str = "nothing") -> int:
    """Bytes that two steps need above what there is when the step has been made, in a process of its own.

    That is activations, tables, gradients and moments; of the processor's memory, or the GPU's where the step runs
    there. For ``recompute`` see ``models.encoder.set_recompute``.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=measure, args=(make, way, recompute, there))
    child.start()
    there.close()
    try:
        peak: int = here.recv()
    except EOFError:
        child.join()
        raise ModelError(
            "bench train",
            got=f"a process that died while it measured memory (exit code {child.exitcode})",
            expected="enough memory for a step",
            next_step="Choose a smaller --batch or fewer --layers.",
        ) from None
    child.join()
    return peak


def measure(make: Make, way: str, recompute: str, answer: Connection) -> None:
    """What the process of ``peak_memory`` does."""
    step = make(way)
    set_recompute(step.trainer, recompute)
    cuda = step.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else most_resident()
    step()
    step()
    answer.send((torch.cuda.max_memory_allocated() if cuda else most_resident()) - before)


def most_resident() -> int:
    """The most memory that this process has had, in bytes."""
    if sys.platform == "linux":
        # ru_maxrss also remembers the parent, whose memory a child holds until it starts its own program
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most

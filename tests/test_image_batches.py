"""Batches from images in memory: what views show, what they are told about the ground, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from alidade.errors import ModelError
from alidade.training.image_batches import Cut, ImageBatches, Source, Stack


def ramp(channels: int, count: int = 5, side: int = 32) -> Stack:
    """Each pixel holds its image's number and its own place, so that a cut tells where it was taken."""
    rows, cols = np.mgrid[0:side, 0:side] / side
    one = rows + 100 * cols
    pixels = np.stack([np.stack([one + i] * channels) for i in range(count)]).astype(np.float16)
    return Stack(pixels=pixels, valid=np.ones((count, side, side), dtype=bool), gsd_m=10.0)


PAIR = Source(
    name="pair",
    weight=1.0,
    stacks={"a": ramp(1), "b": ramp(2)},
    views={"a": Cut(stack="a", sizes=((16, 1), (32, 2))), "b": Cut(stack="b", sizes=((16, 1), (32, 2)))},
    together=True,
)
ALONE = Source(
    name="alone",
    weight=1.0,
    stacks={"a": ramp(1)},
    views={"fine": Cut(stack="a", sizes=((16, 1),)), "coarse": Cut(stack="a", sizes=((32, 4),), jitter=0.2)},
    together=False,
)


@pytest.mark.parametrize("seed", range(4))
def test_sensors_over_one_ground_are_cut_and_turned_alike(seed: int) -> None:
    views = ImageBatches([PAIR]).views(np.arange(8), np.random.default_rng(seed))
    assert torch.equal(views["a"].pixels[:, 0], views["b"].pixels[:, 1])
    assert views["a"].gsd_m == views["b"].gsd_m
    assert views["a"].pixels.shape[1:] == (1, 16, 16)


def test_one_sensor_twice_is_cut_apart_and_coarsened_truthfully() -> None:
    views = ImageBatches([ALONE]).views(np.arange(5), np.random.default_rng(0))
    assert views["fine"].gsd_m == (10.0, 10.0)
    assert views["coarse"].gsd_m == (40.0, 40.0)
    assert views["fine"].pixels.shape == (5, 1, 16, 16)
    assert views["coarse"].pixels.shape == (5, 1, 8, 8)


@pytest.mark.parametrize("count", [5, 12])
def test_one_sensor_twice_shows_one_place_in_both_views(count: int) -> None:
    # image i is 4 to the power of i all over: no cut, coarsening or jitter by up to 0.2 takes it for another one
    stack = ramp(1)
    flat = 4.0 ** np.arange(5, dtype=np.float16)[:, None, None, None] * np.ones_like(stack.pixels)
    source = replace(ALONE, stacks={"a": replace(stack, pixels=flat)})
    views = ImageBatches([source]).views(np.arange(count), np.random.default_rng(0))
    fine, coarse = (view.pixels.mean(dim=(1, 2, 3)).log2().div(2).round().tolist() for view in views.values())
    assert fine == coarse
    assert set(fine) == {0, 1, 2, 3, 4}
    assert fine != sorted(fine), "drawn by chance, so that equal numbers are no accident of the order"


def test_a_batch_is_drawn_from_its_generator_alone() -> None:
    batches = ImageBatches([PAIR, ALONE])
    first, again = (batches.views(np.arange(6), np.random.default_rng(3)) for _ in range(2))
    other = batches.views(np.arange(6), np.random.default_rng(4))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name].pixels, again[name].pixels) for name in first)
    assert first.keys() != other.keys() or any(not torch.equal(first[n].pixels, other[n].pixels) for n in first)


def test_sources_are_drawn_by_weight() -> None:
    batches = ImageBatches([PAIR, replace(ALONE, weight=3.0)])
    kinds = ["fine" in batches.views(np.arange(2), np.random.default_rng(i)) for i in range(400)]
    assert 0.68 < np.mean(kinds) < 0.82
    assert len(batches) == 10


def test_images_are_not_repeated_while_there_are_enough() -> None:
    source = replace(PAIR, views={n: Cut(stack=n, sizes=((32, 1),)) for n in "ab"})
    view = ImageBatches([source]).views(np.arange(5), np.random.default_rng(0))["a"]
    assert sorted(view.pixels.amin(dim=(1, 2, 3)).round().tolist()) == [0, 1, 2, 3, 4]


def test_invalid_pixels_stay_invalid_and_zero() -> None:
    stack = ramp(1)
    valid = stack.valid.copy()
    valid[:, :, :16] = False
    holed = Stack(pixels=np.where(valid[:, None], stack.pixels, np.float16(0)), valid=valid, gsd_m=10.0)
    view = ImageBatches([replace(ALONE, stacks={"a": holed})]).views(np.arange(5), np.random.default_rng(1))["coarse"]
    assert not view.valid.all()
    assert (view.pixels[~view.valid.unsqueeze(1)] == 0).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stacks": {"a": ramp(1), "b": ramp(2, count=4)}}, "views of stacks that agree"),
        ({"views": {"a": Cut(stack="a", sizes=((16, 1),))}}, "two or more views"),
        ({"views": {n: Cut(stack="c", sizes=((16, 1),)) for n in "ab"}}, r"unknown stacks \['c'\]"),
        ({"views": {n: Cut(stack=n, sizes=((64, 1),)) for n in "ab"}}, r"sides of up to 32 px"),
        ({"views": {n: Cut(stack=n, sizes=((16, 3),)) for n in "ab"}}, "that factors divide"),
        ({"views": {"a": Cut(stack="a", sizes=((16, 1),)), "b": Cut(stack="b", sizes=((32, 1),))}}, "same sizes"),
    ],
)
def test_sources_that_cannot_be_cut_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        replace(PAIR, **change)  # type: ignore[arg-type]

"""Chance that belongs to a place: the same value whoever asks, in whatever window, process or order.

All is computed element by element from whole-number coordinates; sums whose order could change with the window's size
are avoided, so that windows agree to the bit.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_STEP_X, _STEP_Y = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_NODE_STD = 0.2145
"""Deviation of one octave of ``smooth``: that of a uniform number (0.2887) times what smoothing leaves of it."""


def key(seed: int, name: str) -> int:
    """64 bits for one kind of chance in the world ``seed``."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest())


def uniform(stream: int, ix: Ints, iy: Ints) -> Floats:
    """Numbers in (0, 1) for whole-number places; ``ix`` and ``iy`` are broadcast.

    The finaliser of SplitMix64 (Steele, Lea and Flood 2014), twice, over a sum of both coordinates.
    """
    x, y = np.broadcast_arrays(np.asarray(ix, dtype=np.int64), np.asarray(iy, dtype=np.int64))
    state = x.astype(np.uint64) * _STEP_X
    state ^= _mixed(y.astype(np.uint64) * _STEP_Y + np.uint64(stream))
    # 53 bits, in the middle of their interval: neither 0 nor 1
    top = _mixed(state) >> np.uint64(11)
    return (top.astype(np.float64) + 0.5) * 2.0**-53


def _mixed(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))


def normal(stream: int, ix: Ints, iy: Ints) -> Floats:
    """Standard normal numbers for whole-number places (Box and Muller 1958)."""
    radius = np.sqrt(-2.0 * np.log(uniform(stream, ix, iy)))
    return np.asarray(radius * np.cos(2.0 * np.pi * uniform(stream ^ 0x5A5A, ix, iy)))


def speckle(stream: int, ix: Ints, iy: Ints, looks: int) -> Floats:
    """Multiplicative speckle of ``looks`` independent looks: gamma distributed, mean 1, variance 1 / looks."""
    total = np.zeros(np.broadcast_shapes(ix.shape, iy.shape))
    for look in range(looks):
        total -= np.log(uniform(stream + 2 * look + 1, ix, iy))
    return total / looks


def smooth(stream: int, xs: Floats, ys: Floats, length_m: float, octaves: int = 1, keep: float = 0.5) -> Floats:
    """A smooth field ``[len(ys), len(xs)]`` with mean 0 and deviation about 1.

    Args:
        stream: see ``key``.
        xs: metres along the columns.
        ys: metres along the rows.
        length_m: distance of the nodes of the longest octave; each further octave halves it.
        octaves: how many are added.
        keep: an octave's amplitude in terms of the one before.
    """
    total = np.zeros((len(ys), len(xs)))
    weight, power = 1.0, 0.0
    for octave in range(octaves):
        total += weight * (_octave(stream + octave, xs, ys, length_m / 2**octave) - 0.5)
        power += weight**2
        weight *= keep
    return np.asarray(total / (_NODE_STD * power**0.5))


def _octave(stream: int, xs: Floats, ys: Floats, length_m: float) -> Floats:
    (left, fx), (low, fy) = _between(xs / length_m), _between(ys / length_m)
    columns, rows = np.arange(left.min(), left.max() + 2), np.arange(low.min(), low.max() + 2)
    nodes = uniform(stream, columns[None, :], rows[:, None])
    row, col = low - low.min(), left - left.min()
    along = nodes[row] + (nodes[row + 1] - nodes[row]) * fy[:, None]
    return np.asarray(along[:, col] + (along[:, col + 1] - along[:, col]) * fx)


def _between(position: Floats) -> tuple[Ints, Floats]:
    whole = np.floor(position)
    part = position - whole
    return whole.astype(np.int64), part * part * (3.0 - 2.0 * part)

"""Mean and deviation of the 8-bit VH pictures (sensor display-vh), over the California training scenes.

    python scripts/pair_statistics.py --data PATH

Prints the two figures that ``display-vh`` carries. All pixels of all 61 scenes count, aligned or not: alignment says
nothing about the values.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from alidade.evaluation.pairs import california_texas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the data pack")
    sar = california_texas(parser.parse_args().data, "train", aligned_only=False).sar
    # exact: sums of 8-bit numbers and their squares are whole
    counts = np.bincount(sar.pixels.ravel(), minlength=256)
    levels = np.arange(256)
    mean = (counts @ levels) / counts.sum()
    deviation = np.sqrt((counts @ levels**2) / counts.sum() - mean**2)
    print(f"{len(sar.classes)} scenes, {counts.sum():,} pixels: mean {mean:.3f}, standard deviation {deviation:.3f}")


if __name__ == "__main__":
    main()

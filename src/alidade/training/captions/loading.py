"""Which layout a folder of images and captions has, found by what lies in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alidade.training.captions import (
    layout_chatearthnet,
    layout_karpathy,
    layout_own,
    layout_precomp,
    layout_skyscript,
    layout_ssl4eo,
    layout_ucm_pack,
    layout_webdataset,
)
from alidade.training.captions.captioned import Captioned
from alidade.training.captions.lists import Options, wrong


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way in which image-text data sets lie on disk.

    Attributes:
        fits: whether a folder looks like it.
        read: the data set.
        expected: its files, in words.
    """

    fits: Callable[[Path], bool]
    read: Callable[[Path, Options], Captioned]
    expected: str


LAYOUTS = {
    name: Layout(fits=module.fits, read=module.read, expected=module.EXPECTED)
    for name, module in (
        ("own", layout_own),
        ("ucm-pack", layout_ucm_pack),
        ("json", layout_karpathy),
        ("precomp", layout_precomp),
        ("chatearthnet", layout_chatearthnet),
        ("skyscript", layout_skyscript),
        ("ssl4eo", layout_ssl4eo),
        ("webdataset", layout_webdataset),
    )
}


def read_captions(folder: str | Path, options: Options | None = None, *, layout: str | None = None) -> Captioned:
    """An image-text data set, whatever its layout.

    Args:
        folder: with captions and images.
        options: what the files do not say.
        layout: a name of ``LAYOUTS``; found by what lies in the folder where not given.

    Raises:
        CaptionError: no folder, no or several layouts fit, or the data set is damaged (see each layout).
    """
    root = Path(folder)
    if not root.is_dir():
        raise wrong(str(root), "no such folder", "a folder of images and captions", "Name the folder.")
    fitting = [n for n, candidate in LAYOUTS.items() if candidate.fits(root)] if layout is None else [layout]
    if layout is not None and layout not in LAYOUTS:
        raise wrong("layout", repr(layout), f"one of {', '.join(LAYOUTS)}", "Name one of them, or none.")
    if not fitting:
        there = ", ".join(sorted(p.name for p in root.iterdir())[:6]) or "nothing"
        raise wrong(
            f"{root}: captions", there, "; or ".join(f"{c.expected} ({n})" for n, c in LAYOUTS.items()),
            "For images of your own write captions.csv with the columns file and caption.",
        )  # fmt: skip
    if len(fitting) > 1:
        raise wrong(f"{root}: captions", f"files of {' and '.join(fitting)}", "one layout", "Name the layout.")
    return LAYOUTS[fitting[0]].read(root, options or Options())

"""What is to be known when images are asked in words: which texts were cut, which files are read as words never saw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from alidade.errors import AlidadeError
from alidade.imagery.files import Declared, open_raster
from alidade.models.model import Model
from alidade.models.text.encoder import EncodedText
from alidade.models.words import tower_of

LOOKED_AT = 20
"""Files of an answer whose headers are read to see how they were embedded."""


def encode_text(model: Model, texts: Sequence[str]) -> EncodedText:
    """``Model.embed_text`` that also tells which texts the text encoder did not read whole (``note``).

    Raises:
        ModelError: the model knows no words.
        TextError: see ``Words.encode``.
    """
    # the model itself says what a model without words lacks
    return EncodedText(vectors=model.embed_text(texts)) if model.words is None else model.words.encode(texts)


def read_otherwise(model: Model, towers: Mapping[str, str]) -> str | None:
    """One line where files are read by other towers of the model than the words were learnt with.

    A tower is an input of its own: the same ground has another vector in red, green and blue than in all bands.

    Args:
        model: whose words are asked.
        towers: the name of the tower that reads each file.

    Returns:
        None where all is as it was learnt, or where that is not known.
    """
    learnt = () if model.words is None else model.words.config.bands
    others = [file for file, tower in towers.items() if tower not in learnt]
    if not learnt or not others:
        return None
    bands = {t.name: ", ".join(t.bands) for t in model.towers}
    which = Path(others[0]).name if len(others) == 1 else f"{len(others)} files (the first is {Path(others[0]).name})"
    return (
        f"note: words were learnt from images read as {' or as '.join(bands.get(name, name) for name in learnt)}; "
        f"{which} {'is' if len(others) == 1 else 'are'} read as {bands[towers[others[0]]]}, of which they know less"
    )


def found_otherwise(model: Model, files: Iterable[str | Path], declared: Declared | None = None) -> str | None:
    """``read_otherwise`` of files that were embedded, by their headers, such as those of an answer.

    Args:
        model: that embedded them.
        files: their paths; the first 20 different ones are looked at, and those that cannot be read are passed over.
        declared: what they do not say themselves.
    """
    towers = {}
    for path in list(dict.fromkeys(map(str, files)))[:LOOKED_AT]:
        try:
            with open_raster(path, declared or Declared()) as file:
                bands = model.bands_for(file.sensor, [b.name for b in file.bands])
                tower = tower_of(model.towers, file.sensor, bands)
        except AlidadeError:
            continue
        if tower is not None:
            towers[path] = tower.name
    return read_otherwise(model, towers)

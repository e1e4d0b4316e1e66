"""Prompt templates and class names of published zero-shot protocols: the templates follow a grammar and are made here.

The three sets are those that IBM/MS-CLIP's evaluation knows (Apache-2.0) and that SATtxt (arXiv 2602.22613) takes over:
``msclip`` is its default, ``rs5m`` is RS5M's (arXiv 2306.11300), ``clip`` is OpenAI CLIP's for EuroSAT. A test pins the
hash of each set, so that a protocol's name keeps meaning the same prompts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from alidade.errors import AlidadeError
from alidade.models.text.class_names import printed_name

_QUALITIES = (
    "low resolution",
    "bad",
    "cropped",
    "bright",
    "dark",
    "close-up",
    "black and white",
    "jpeg corrupted",
    "blurry",
    "good",
)
_LOOKS = ("large", "nice", "small", "weird", "cool")
_DEFINITE_OR_NOT = ("the", "a")

WORDS, FOLDERS, AS_IS, PRINTED = "words", "folders", "as is", "printed"
CONVENTIONS = (WORDS, FOLDERS, AS_IS, PRINTED)
"""Ways from a data set's labels to class names; see ``class_names``."""


def _with_quality(sensor: str, qualities: Sequence[str]) -> list[str]:
    return [f"a {quality} {sensor} image of {article} {{}}." for quality in qualities for article in _DEFINITE_OR_NOT]


def _with_look(sensor: str) -> list[str]:
    return [f"{sensor} image of {article} {look} {{}}." for look in _LOOKS for article in _DEFINITE_OR_NOT]


def _bare_or_with_article(opening: str) -> list[str]:
    return [f"{opening} {article}{{}}." for article in ("", "a ", "the ")]


def _msclip() -> tuple[str, ...]:
    openings = (
        "a satellite image showing",
        "The image is a satellite view showing",
        "a satellite image of",
        "the satellite image of",
        "a satellite view of",
    )
    plain = [template for opening in openings for template in _bare_or_with_article(opening)]
    # the one pattern without a full stop
    plain.append("The image shows {}")
    qualities = _with_quality("satellite", _QUALITIES[:4]) + _with_quality("aerial", _QUALITIES[2:])
    return tuple(plain + qualities + _with_look("an aerial"))


def _rs5m() -> tuple[str, ...]:
    out: list[str] = []
    for article, sensor in (("a", "remote sensing"), ("an", "aerial"), ("a", "satellite")):
        seen = ("many", "a", "the", "the hard to see", "a hard to see")
        out += [f"{article} {sensor} image of {which} {{}}." for which in seen]
        out += _with_quality(sensor, _QUALITIES) + _with_look(f"{article} {sensor}")
    return tuple(out)


TEMPLATES: dict[str, tuple[str, ...]] = {
    "msclip": _msclip(),
    "rs5m": _rs5m(),
    "clip": tuple(_bare_or_with_article("a centered satellite photo of")),
}
"""Sets of templates by name: 50, 105 and 3. Each template has one ``{}`` for the class name."""


def templates(name: str) -> tuple[str, ...]:
    """The templates of a set; a pattern with one ``{}``, such as a model's own prompt, is a set of itself.

    Raises:
        AlidadeError: no set of this name, and no pattern either.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    if name.count("{}") != 1 or {"{", "}"} & set(name.replace("{}", "")):
        expected = f"one of {', '.join(TEMPLATES)}, or a pattern with one {{}} for the class"
        raise _refuse("template set", repr(name), expected, "Choose one of these.")
    return (name,)


def class_names(labels: Sequence[str], convention: str = WORDS) -> tuple[str, ...]:
    """What a data set's labels are called in prompts.

    Args:
        labels: such as ``"AnnualCrop"``.
        convention: ``"words"``: underscores and slashes become spaces, words that are told apart by capitals only are
            parted, and all is lower case (``"annual crop"``). ``"folders"``: the same without the parting, as
            MS-CLIP's code treats EuroSAT's folders (``"annualcrop"``, which is no word; text encoders understand it
            worse, so use it only to repeat such a figure). ``"printed"``: names written by hand for EuroSAT and UC
            Merced, whose folders run words together (``models.text.class_names``). ``"as is"``: the labels
            themselves, for names that were chosen by hand.

    Raises:
        AlidadeError: an unknown convention, no label, an empty name, or one that stands twice whatever its case.
    """
    if convention not in CONVENTIONS:
        raise _refuse("class names", repr(convention), f"one of {', '.join(CONVENTIONS)}", "Choose one of these.")
    names = tuple(_named(label, convention) for label in labels)
    if not names or not all(names):
        raise _refuse("class names", f"{list(labels)}", "at least one, none of them empty", "Name every class.")
    folded = [name.casefold() for name in names]
    twice = sorted({name for name, key in zip(names, folded, strict=True) if folded.count(key) > 1})
    if twice:
        raise _refuse("class names", f"{', '.join(twice)} more than once", "each class once", "Leave out the repeated.")
    return names


def _named(label: str, convention: str) -> str:
    if convention == AS_IS:
        return label.strip()
    if convention == PRINTED:
        return printed_name(label)
    spaced = re.sub(r"[_/]", " ", label)
    if convention == WORDS:
        spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", spaced)
    return " ".join(spaced.lower().split())


def _refuse(what: str, got: str, expected: str, next_step: str) -> AlidadeError:
    return AlidadeError(what, got=got, expected=expected, next_step=next_step)

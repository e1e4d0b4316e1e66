"""What a text encoder is: sentences in, one vector each; and the checks that all encoders share."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from alidade.errors import AlidadeError

INSTALL = "pip install 'alidade[text]'"
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


class TextError(AlidadeError):
    """A text that has no vector, or an encoder, a bank or a cache that cannot be used."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedText:
    """Vectors of texts, in the order of the texts.

    Attributes:
        vectors: ``[N, D]`` float32, finite, of any length: the model's own output, not normalised here.
        cut: numbers (from 0) of the texts that were longer than the encoder's limit and were cut, ascending.
        limit: tokens of a text that the encoder reads, special ones and an instruction not counted; None where it has
            no limit or does not tell it, as a cache does not.

    Raises:
        TextError: the vectors are not ``[N, D]`` finite float32, or ``cut`` names a text that is not there.
    """

    vectors: NDArray[np.float32]
    cut: tuple[int, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        bad = "" if self.vectors.ndim == 2 else f"an array of shape {self.vectors.shape}"
        bad = bad or ("" if self.vectors.dtype == np.float32 else f"{self.vectors.dtype} numbers")
        if not bad and not np.isfinite(self.vectors).all():
            bad = f"NaN or infinity in text {int(np.argmin(np.isfinite(self.vectors).all(axis=1))) + 1}"
        if not bad and self.cut != tuple(sorted(set(self.cut) & set(range(len(self.vectors))))):
            bad = f"cut texts {self.cut} of {len(self.vectors)}"
        if bad:
            raise TextError(
                "text vectors",
                got=bad,
                expected="finite float32 vectors [N, D] and ascending numbers of cut texts",
                next_step="Try another precision or another model.",
            )

    @property
    def note(self) -> str | None:
        """One line for people that tells how many texts were cut, and where; None when none was."""
        if not self.cut:
            return None
        count, total = len(self.cut), len(self.vectors)
        which = "the text was" if total == 1 else f"{count} of {total} texts {'was' if count == 1 else 'were'}"
        where = "at the text encoder's limit" if self.limit is None else f"after {self.limit} tokens"
        return f"{which} cut {where}"


class TextEncoder(Protocol):
    """Turns sentences into vectors. Encoders of equal ``identity`` give equal vectors for equal sentences."""

    @property
    def identity(self) -> str:
        """One line that changes with everything that changes a vector."""
        ...

    @property
    def dim(self) -> int:
        """Length D of a vector."""
        ...

    def encode(self, texts: Sequence[str]) -> EncodedText:
        """One vector per text, ``[N, D]``.

        Raises:
            TextError: there is no text, or one that the encoder has no vector for.
        """
        ...


def check_texts(texts: Sequence[str]) -> list[str]:
    """``texts`` as a list, when there is at least one and each has something to say.

    Raises:
        TextError: no text, one bare string, or a text that is no string, is empty or white space only, or holds half
            of a surrogate pair. Texts are numbered from 1.
    """
    expected = "a list of sentences, none of them empty"
    if isinstance(texts, str) or not len(texts):
        got = f"one string ({texts!r:.60})" if isinstance(texts, str) else "no text"
        raise TextError("texts", got=got, expected=expected, next_step="Give a list with at least one sentence.")
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            got = f"{type(text).__name__} {text!r:.40}"
        elif not text.strip():
            got = f"only white space ({text!r:.40})" if text else "an empty text"
        elif _HALF_A_PAIR.search(text):
            got = f"half of a surrogate pair in {text!r:.40}"
        else:
            continue
        raise TextError(
            f"text {number} of {len(texts)}", got=got, expected=expected, next_step="Leave it out or write it anew."
        )
    return list(texts)


def check_known(texts: Sequence[str], tokens: Sequence[Sequence[int]], unknown: int | None) -> None:
    """See that the tokeniser knows something of each text.

    A few unknown characters in a sentence are kept as the tokeniser's unknown token. A text of which nothing else is
    left (another script, emoji) would get a vector that says nothing about it, the same for all such texts.

    Args:
        texts: what was asked for.
        tokens: token numbers of each text without the special tokens around it.
        unknown: number of the unknown token, or None when the tokeniser has none (bytes).

    Raises:
        TextError: a text has no token, or only unknown ones.
    """
    for number, (text, ids) in enumerate(zip(texts, tokens, strict=True), start=1):
        if all(i == unknown for i in ids):
            raise TextError(
                f"text {number} of {len(texts)}",
                got=f"nothing but characters that this text encoder does not know ({text!r:.60})",
                expected="words in a language that the encoder was trained on",
                next_step="Write it in English, or choose a multilingual text encoder.",
            )


def length_batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Numbers of the texts in batches of at most ``size``, longest first, so that little is padded."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def require(package: str) -> None:
    """See that a package of the extra ``text`` is installed, without importing it.

    Raises:
        TextError: it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise TextError(
            "text encoder",
            got=f"no package {package.replace('_', '-')}",
            expected="the packages of the extra `text`",
            next_step=f"Install them: {INSTALL}. A bank of stored words needs none of them.",
        )

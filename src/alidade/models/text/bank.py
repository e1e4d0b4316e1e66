"""A bank: vectors of known words in one file, so that no language model is needed to look them up."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from alidade.imagery.atomic import atomic_write
from alidade.models.text.encoder import INSTALL, EncodedText, TextEncoder, TextError, check_texts

FORMAT = "alidade-bank-1"
_NAMED = 3
"""Unknown words, and near ones for each, that an error names."""


def tidy(text: str) -> str:
    """How a word is looked up: lower case, single spaces."""
    return " ".join(text.lower().split())


@dataclass(frozen=True, kw_only=True, eq=False)
class Bank:
    """Stored vectors; a ``TextEncoder`` of the words it holds.

    Attributes:
        identity: of the encoder that made the vectors, so that the bank may stand in for it.
        words: words or sentences; they are found in any case and with any white space between.
        vectors: ``[N, D]`` float32 or float16, one row per word.

    Raises:
        TextError: no word, one twice, or vectors that do not fit them.
    """

    identity: str
    words: tuple[str, ...]
    vectors: NDArray[np.float32] | NDArray[np.float16]

    def __post_init__(self) -> None:
        check_texts(self.words)
        v = self.vectors
        if v.ndim != 2 or len(v) != len(self.words) or v.dtype not in (np.float32, np.float16):
            got = f"{v.dtype} {v.shape}"
        elif not np.isfinite(v).all():
            got = "NaN or infinity (half precision ends at 65504)" if v.dtype == np.float16 else "NaN or infinity"
        elif len(self._rows) != len(v):
            first = next(w for i, w in enumerate(self.words) if self._rows[tidy(w)] != i)
            raise TextError(
                "bank",
                got=f"{tidy(first)!r} twice",
                expected="each word once, whatever its case and spaces",
                next_step="Leave one out.",
            )
        else:
            return
        raise TextError(
            "bank vectors",
            got=got,
            expected=f"finite float32 or float16 numbers [{len(self.words)}, D]",
            next_step="Make the bank anew.",
        )

    def __repr__(self) -> str:
        return f"Bank({len(self.words)} words of {self.identity})"

    @classmethod
    def of(cls, encoder: TextEncoder, words: Sequence[str], *, half: bool = False) -> Bank:
        """A bank of ``words`` as ``encoder`` sees them.

        Args:
            encoder: its identity becomes the bank's.
            words: words or sentences, each once.
            half: store float16: half the room, three digits.

        Raises:
            TextError: a word twice, one without a vector, or one longer than the encoder's limit.
        """
        kept = check_texts(words)
        encoded = encoder.encode(kept)
        if encoded.cut:
            raise TextError(
                f"bank: text {encoded.cut[0] + 1} of {len(kept)}",
                got=f"more than the encoder takes ({kept[encoded.cut[0]]!r:.60})",
                expected="texts within the encoder's limit",
                next_step="Shorten it.",
            )
        with np.errstate(over="ignore"):
            vectors = encoded.vectors.astype(np.float16) if half else encoded.vectors
        return cls(identity=encoder.identity, words=tuple(kept), vectors=vectors)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.vectors.shape[1])

    @cached_property
    def _rows(self) -> dict[str, int]:
        rows: dict[str, int] = {}
        for row, word in enumerate(self.words):
            rows.setdefault(tidy(word), row)
        return rows

    def __contains__(self, text: str) -> bool:
        return tidy(text) in self._rows

    def encode(self, texts: Sequence[str]) -> EncodedText:
        """The stored vectors of ``texts``, ``[N, D]`` float32.

        Raises:
            TextError: a text that the bank does not hold; the message names the nearest ones.
        """
        kept = check_texts(texts)
        unknown = list(dict.fromkeys(t for t in kept if t not in self))
        if unknown:
            raise self._unknown(unknown)
        return EncodedText(vectors=self.vectors[[self._rows[tidy(t)] for t in kept]].astype(np.float32))

    def _unknown(self, texts: Sequence[str]) -> TextError:
        said = []
        for text in texts[:_NAMED]:
            near = difflib.get_close_matches(tidy(text), self._rows, n=_NAMED)
            # a long query may hold a known word that is not similar to it as a whole
            near = near or [w for w in self._rows if w in tidy(text).split()][:_NAMED]
            said.append(f"{text!r:.80}" + (f" (nearest: {', '.join(near)})" if near else " (nothing near)"))
        more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
        return TextError(
            "word",
            got=", ".join(said) + more,
            expected=f"words among the {len(self.words)} of this bank",
            next_step=f"Use one of those, or install a text encoder for any sentence: {INSTALL}.",
        )

    def save(self, path: Path) -> None:
        """Write the bank into one safetensors file, which appears whole or not at all.

        Raises:
            TextError: it cannot be written there.
        """
        meta = {"format": FORMAT, "identity": self.identity, "words": json.dumps(self.words, ensure_ascii=False)}
        try:
            with atomic_write(path) as temporary:
                temporary.write_bytes(save({"vectors": np.ascontiguousarray(self.vectors)}, metadata=meta))
        except OSError as error:
            raise TextError(
                f"{path}: writing",
                got=error.strerror or type(error).__name__,
                expected="a folder that is there, with room and permission",
                next_step="Choose another path.",
            ) from error

    @classmethod
    def load(cls, path: Path) -> Bank:
        """A bank that ``save`` wrote.

        Raises:
            TextError: no such file, or no bank of alidade's, or a damaged one.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                meta = file.metadata() or {}
                if meta.get("format") != FORMAT:
                    raise ValueError(f"format {meta.get('format')!r}")
                words = json.loads(meta["words"])
                if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
                    raise ValueError("words that are no list of texts")
                return cls(identity=meta["identity"], words=tuple(words), vectors=file.get_tensor("vectors"))
        except (OSError, SafetensorError, TextError, ValueError, KeyError, RecursionError) as error:
            raise TextError(
                f"{path}: bank",
                got=f"{type(error).__name__}: {error!s:.200}" if Path(path).exists() else "no such file",
                expected=f"a file of format {FORMAT}",
                next_step="Check the path, or make the bank anew with Bank.of(...).save(...).",
            ) from error

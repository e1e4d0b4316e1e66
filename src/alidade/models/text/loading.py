"""Text encoders by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from alidade.models.text.bank import Bank
from alidade.models.text.cache import CachedEncoder
from alidade.models.text.causal import CausalConfig, CausalEncoder
from alidade.models.text.encoder import TextEncoder, TextError
from alidade.models.text.sentence import DEFAULT, SentenceConfig, SentenceEncoder


def load_text_encoder(
    name: str | SentenceConfig | CausalConfig = DEFAULT,
    *,
    device: str = "cpu",
    cache: Path | None = None,
    download: bool = False,
) -> TextEncoder:
    """A text encoder. Its model is loaded when it first encodes a text.

    Args:
        name: ``"all-MiniLM-L6-v2"`` or another sentence-transformers name or directory; ``"causal:NAME_OR_DIR"`` for a
            Hugging Face language model with the settings of ``CausalConfig``; ``"bank:FILE"`` for stored words; or a
            config with settings of its own.
        device: ``"cpu"`` or ``"cuda"``; a bank needs none.
        cache: directory in which vectors are remembered, when given. A bank is not cached.
        download: allow fetching a model that is not on this machine, whatever a config says.

    Raises:
        TextError: an unknown name, a missing extra, a damaged bank, or a directory that is no cache.
        ModelError: a device that is not there.
    """
    encoder: TextEncoder
    if isinstance(name, str):
        kind, colon, rest = name.partition(":")
        if kind == "bank" and rest:
            return Bank.load(Path(rest))
        if (colon and (kind != "causal" or not rest)) or not name.strip():
            raise TextError(
                "text encoder",
                got=repr(name),
                expected=f"{DEFAULT}, another sentence-transformers name or directory, causal:NAME or bank:FILE",
                next_step="Check the spelling.",
            )
        config = CausalConfig(name=rest) if colon else SentenceConfig(name=name)
    else:
        config = name
    config = replace(config, download=config.download or download)
    if isinstance(config, CausalConfig):
        encoder = CausalEncoder(config, device=device)
    else:
        encoder = SentenceEncoder(config, device=device)
    return encoder if cache is None else CachedEncoder(encoder, cache)

"""Text encoders by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from alidade.models.text.bank import Bank
from alidade.models.text.cache import CachedEncoder
from alidade.models.text.causal import CausalConfig, CausalEncoder
from alidade.models.text.encoder import TextEncoder, TextError
from alidade.models.text.sentence import DEFAULT, SentenceConfig, SentenceEncoder

Settings = Mapping[str, str | int | bool | None]
"""What of a ``SentenceConfig`` or ``CausalConfig`` changes vectors, besides the name: plain values, as in JSON."""
BANK, CAUSAL = "bank:", "causal:"
"""What names of encoders begin with that are no sentence models."""
_NO_SETTING = ("name", "download")
_KINDS = {
    "attention": str, "pooling": str, "instruction": str, "pool_instruction": bool, "max_length": int, "precision": str,
}  # fmt: skip
_NONE: Settings = {}


def load_text_encoder(
    name: str | SentenceConfig | CausalConfig = DEFAULT,
    *,
    settings: Settings = _NONE,
    device: str = "cpu",
    cache: Path | None = None,
    download: bool = False,
) -> TextEncoder:
    """A text encoder. Its model is loaded when it first encodes a text.

    Args:
        name: ``"all-MiniLM-L6-v2"`` or another sentence-transformers name or directory; ``"causal:NAME_OR_DIR"`` for a
            Hugging Face language model with the settings of ``CausalConfig``; ``"bank:FILE"`` for stored words; or a
            config with settings of its own.
        settings: of the encoder with this name, where they differ from the defaults; not for a bank.
        device: ``"cpu"`` or ``"cuda"``; a bank needs none.
        cache: directory in which vectors are remembered, when given. A bank is not cached.
        download: allow fetching a model that is not on this machine, whatever a config says.

    Raises:
        TextError: an unknown name, settings that the encoder does not have, a missing extra, a damaged bank, or a
            directory that is no cache.
        ModelError: a device that is not there.
    """
    encoder: TextEncoder
    if isinstance(name, str) and name.startswith(BANK) and name != BANK and not settings:
        return Bank.load(Path(name.removeprefix(BANK)))
    config = _with(config_of(name) if isinstance(name, str) else name, settings)
    config = replace(config, download=config.download or download)
    if isinstance(config, CausalConfig):
        encoder = CausalEncoder(config, device=device)
    else:
        encoder = SentenceEncoder(config, device=device)
    return encoder if cache is None else CachedEncoder(encoder, cache)


def config_of(name: str) -> SentenceConfig | CausalConfig:
    """The config of the encoder with this name, with default settings.

    Raises:
        TextError: an unknown kind of encoder, a bank (which has no settings), or no name.
    """
    if name.startswith(CAUSAL) and name != CAUSAL:
        return CausalConfig(name=name.removeprefix(CAUSAL))
    if name.strip() and (":" not in name or Path(name).is_dir()):
        return SentenceConfig(name=name)
    bank = name.startswith(BANK) and name != BANK
    raise TextError(
        "text encoder",
        got=f"{name!r} with settings" if bank else repr(name),
        expected=f"{DEFAULT}, another sentence-transformers name or directory, causal:NAME or bank:FILE"
        + (" without settings" if bank else ""),
        next_step="Name the bank's own encoder." if bank else "Check the spelling.",
    )


def settings_of(encoder: TextEncoder) -> dict[str, str | int | bool | None]:
    """The settings to load an encoder with again, as plain values; none for one that has none."""
    inner = encoder.inner if isinstance(encoder, CachedEncoder) else encoder
    if not isinstance(inner, SentenceEncoder | CausalEncoder):
        return {}
    return {key: value for key, value in asdict(inner.config).items() if key not in _NO_SETTING}


def _with(config: SentenceConfig | CausalConfig, settings: Settings) -> SentenceConfig | CausalConfig:
    """The config with these settings in place of its own; they may come from a file."""
    own = {f.name: f.default for f in fields(config) if f.name not in _NO_SETTING}
    what = "language model" if isinstance(config, CausalConfig) else "sentence model"
    for key, value in settings.items():
        if key not in own:
            got, expected = f"{key!r} for a {what}", f"one of {', '.join(own)}"
        elif type(value) is not _KINDS[key] and not (value is None and own[key] is None):
            got, expected = f"{key} {value!r}", f"a value of type {_KINDS[key].__name__}"
        else:
            continue
        raise TextError(
            "setting of a text encoder",
            got=got,
            expected=expected,
            next_step="Leave it out, or choose another encoder." if key not in own else "Give it such a value.",
        )
    kept: dict[str, Any] = dict(settings)
    return replace(config, **kept)

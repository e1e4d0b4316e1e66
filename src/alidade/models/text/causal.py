"""Vectors from a causal language model of Hugging Face: causal or truly bidirectional, pooled in three ways."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

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
from alidade.models.text.folders import find_folder, fingerprint, quiet, short_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CHOICES = {
    "attention": ("causal", "bidirectional"),
    "pooling": ("mean", "bos", "eos"),
    "precision": ("float32", "bfloat16", "int8", "nf4"),
}
_SAME = 1e-5
"""Largest change of a state, relative to the largest state, that still counts as none."""


@dataclass(frozen=True, kw_only=True)
class CausalConfig:
    """Which language model, and how its states become one vector.

    Attributes:
        name: a directory with a saved model and its tokeniser, or a name on the Hugging Face hub.
        attention: ``"causal"``: a token sees those before it, as the model was trained; ``"bidirectional"``: it sees
            all (LLM2Vec, arXiv 2404.05961; it wants a model that was adapted to it).
        pooling: ``"mean"`` over the tokens of the text, without the special ones around it; ``"bos"`` the state of the
            begin token, which must be bidirectional to know of the text; ``"eos"`` that of the end token. A begin or
            end token that the tokeniser does not set by itself is set for the pooling that needs it.
        instruction: stands in front of each text, with one space between.
        pool_instruction: whether the mean takes the instruction's tokens in.
        max_length: most tokens in all; the end of a longer text is cut away, never the instruction.
        precision: of the weights. ``"int8"`` and ``"nf4"`` need bitsandbytes and a CUDA device.
        download: whether a model that is not on this machine may be fetched.

    Raises:
        TextError: an unknown choice, a limit below 4, or ``"bos"`` with causal attention.
    """

    name: str
    attention: Literal["causal", "bidirectional"] = "causal"
    pooling: Literal["mean", "bos", "eos"] = "mean"
    instruction: str = ""
    pool_instruction: bool = False
    max_length: int = 512
    precision: Literal["float32", "bfloat16", "int8", "nf4"] = "float32"
    download: bool = False

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise TextError(
                    field, got=repr(getattr(self, field)), expected=" or ".join(choices), next_step="Choose one."
                )
        if self.pooling == "bos" and self.attention == "causal":
            raise TextError(
                "pooling",
                got="bos with causal attention",
                expected="a token that sees the text: the begin token of a causal model is alike for all texts",
                next_step="Choose mean or eos, or bidirectional attention.",
            )
        if self.max_length < 4:
            raise TextError("max length", got=self.max_length, expected="4 tokens or more", next_step="Raise it.")


@dataclass(frozen=True)
class _Tokens:
    """One text's tokens, which of them the mean takes in, whether it was cut, and how many of its own had room."""

    ids: list[int]
    pooled: list[bool]
    cut: bool
    room: int


class CausalEncoder:
    """A frozen language model as a text encoder. It is loaded when the first text needs it.

    At loading the attention is measured: two inputs that differ in the last token only are run, and a model whose
    first state does not answer as ``config.attention`` says is refused.

    Args:
        config: which model and how.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: most texts computed at once.

    Raises:
        TextError: the model is not on this machine, the extra ``text`` is missing, or a precision that needs
            bitsandbytes and CUDA without them.
        ModelError: a device that is not there.
    """

    def __init__(self, config: CausalConfig, *, device: str = "cpu", batch_size: int = 16) -> None:
        require("transformers")
        check_device(device, None)
        if config.precision in ("int8", "nf4"):
            missing = "" if device.startswith("cuda") else f"device {device}"
            if importlib.util.find_spec("bitsandbytes") is None:
                missing = f"{missing} and no package bitsandbytes".removeprefix(" and ")
            if missing:
                raise TextError(
                    f"precision {config.precision}",
                    got=missing,
                    expected="bitsandbytes and a CUDA device",
                    next_step="Use float32 or bfloat16 here, or make a bank where there is a GPU.",
                )
        self.config, self.device, self.batch_size = config, device, batch_size
        self.folder = find_folder(config.name, download=config.download)

    def __repr__(self) -> str:
        return f"CausalEncoder({self.config!r}, device={self.device!r})"

    @cached_property
    def identity(self) -> str:
        """Name, fingerprint of weights and tokeniser, attention, pooling, limit, precision and instruction."""
        c = self.config
        said = hashlib.sha256(c.instruction.encode()).hexdigest()[:12] if c.instruction else "none"
        how = ("-pooled" if c.pool_instruction else "-unpooled") if c.instruction and c.pooling == "mean" else ""
        return (
            f"causal:{short_name(c.name)}:{fingerprint(self.folder)}:{c.attention}:{c.pooling}:length={c.max_length}:"
            f"{c.precision}:instruction={said}{how}"
        )

    @property
    def dim(self) -> int:
        """Length of a vector, from the model's settings; its weights are not loaded."""
        return int(self._settings.hidden_size)

    @cached_property
    def _settings(self) -> Any:  # noqa: ANN401 - each family of models has settings of its own
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(str(self.folder), local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise self._refusal(
                f"{type(error).__name__}: {error!s:.200}", "settings of a known language model"
            ) from error
        return config.get_text_config(decoder=True)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokeniser.

        Raises:
            TextError: it is missing or damaged, of a kind that the model's family has not, or cannot tell where in the
                text a token stands.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._refusal(f"{type(error).__name__}: {error!s:.200}", "a tokeniser beside the model") from error
        if not tokenizer.is_fast:
            raise self._refusal("a tokeniser without offsets", "a tokenizer.json (a fast tokeniser)")
        self._check_kind(tokenizer)
        return tokenizer

    def _check_kind(self, tokenizer: Any) -> None:  # noqa: ANN401 - the fast tokenisers share no typed base
        from tokenizers import Tokenizer

        if (self.folder / "tokenizer.json").is_file():
            saved = type(Tokenizer.from_file(str(self.folder / "tokenizer.json")).model).__name__
            made = type(tokenizer.backend_tokenizer.model).__name__
            # transformers goes by the family of the model: it would read a word list as byte pairs and drop the words
            if saved != made:
                raise self._refusal(f"a tokeniser of kind {saved} that is read as {made}", f"a {made} tokenizer.json")

    @cached_property
    def module(self) -> PreTrainedModel:
        """The frozen model without its language head, in evaluation mode.

        Raises:
            TextError: damaged files, weights that are not all there, no causal language model, a length limit above
                the model's positions, or attention that is not what was asked for.
        """
        from transformers import AutoModel

        positions = getattr(self._settings, "max_position_embeddings", None)
        if positions is not None and positions < self.config.max_length:
            raise self._refusal(f"positions for {positions} tokens only", f"max_length={positions} or less")
        options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
        try:
            # what transformers would warn of (tensors that are not there) is refused below
            with quiet(warnings=False):
                model: Any
                model, found = AutoModel.from_pretrained(str(self.folder), **options, **self._weights())
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise self._refusal(f"{type(error).__name__}: {error!s:.200}", "a causal language model") from error
        if found["missing_keys"]:
            lacking = sorted(found["missing_keys"])
            raise self._refusal(f"{len(lacking)} tensors missing (first: {lacking[0]})", "all weights of the model")
        if model.config.is_encoder_decoder:
            raise self._refusal("a model with an encoder and a decoder", "a causal language model")
        if self.config.precision in ("float32", "bfloat16"):
            model = model.to(self.device)
        frozen: PreTrainedModel = model.eval().requires_grad_(False)
        self._measure_attention(frozen)
        return frozen

    def _weights(self) -> dict[str, Any]:
        if self.config.precision in ("float32", "bfloat16"):
            return {"dtype": getattr(torch, self.config.precision)}
        from transformers import BitsAndBytesConfig

        if self.config.precision == "int8":
            how = BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
        else:
            how = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
            )
        return {"quantization_config": how, "device_map": {"": self.device}, "dtype": torch.bfloat16}

    def _measure_attention(self, model: PreTrainedModel) -> None:
        n = _vocabulary(model)
        ids = torch.tensor([[n // 5, n // 4, n // 2], [n // 5, n // 4, n // 3]], device=model.device)
        with torch.inference_mode():
            one, other = (self._states(model, row[None], torch.ones_like(row[None])) for row in ids)
        change = float((one - other)[0, 0].abs().max() / one.abs().max())
        sees = change > _SAME
        # the 8-bit layers treat columns with outliers apart, so any token may change another a little
        if sees != (self.config.attention == "bidirectional") and not (sees and self.config.precision == "int8"):
            raise self._refusal(
                f"a first token that {'sees' if sees else 'does not see'} the last (its state changes by {change:.1e})",
                f"{self.config.attention} attention",
            )

    def _refusal(self, got: str, expected: str) -> TextError:
        return TextError(
            f"text encoder {self.config.name}",
            got=got,
            expected=expected,
            next_step="Choose another model or other settings, or copy the model again.",
        )

    def _states(self, model: PreTrainedModel, ids: Tensor, real: Tensor) -> Tensor:
        """States ``[B, L, D]`` float32 of the last layer.

        The bidirectional mask is given whole, ``[B, 1, L, L]``: models of transformers take such a mask as it is.
        A mask of padding alone would leave the choice to the attention code, which is causal by default when no token
        is padding (a batch of one).
        """
        mask = real
        if self.config.attention == "bidirectional":
            hidden = torch.zeros(real.shape, dtype=model.dtype, device=real.device)
            hidden = hidden.masked_fill(real == 0, torch.finfo(model.dtype).min)
            mask = hidden[:, None, None, :].expand(-1, 1, real.shape[1], -1)
        states: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return states.float()

    def encode(self, texts: Sequence[str]) -> EncodedText:
        """One vector per text, ``[N, D]`` float32, not normalised.

        Raises:
            TextError: no text, an empty one, one with nothing but unknown characters, or an instruction that leaves
                no room for the text.
        """
        tokens = self._tokens(check_texts(texts))
        out = np.zeros((len(tokens), self.dim), dtype=np.float32)
        with torch.inference_mode():
            for batch in length_batches([len(t.ids) for t in tokens], self.batch_size):
                out[batch] = self._pooled([tokens[i] for i in batch]).cpu().numpy()
        cut = tuple(i for i, t in enumerate(tokens) if t.cut)
        return EncodedText(vectors=out, cut=cut, limit=min(t.room for t in tokens))

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """``[N, D]`` float32 of one batch, differentiable in what of ``module`` asks for gradients.

        Raises:
            TextError: as ``encode``.
        """
        return self._pooled(self._tokens(check_texts(texts)))

    def _pooled(self, tokens: Sequence[_Tokens]) -> Tensor:
        longest = max(len(t.ids) for t in tokens)
        ids = torch.zeros(len(tokens), longest, dtype=torch.long)
        real, pooled = torch.zeros_like(ids), torch.zeros(ids.shape)
        for row, t in enumerate(tokens):
            ids[row, : len(t.ids)] = torch.tensor(t.ids)
            real[row, : len(t.ids)] = 1
            pooled[row, : len(t.ids)] = torch.tensor(t.pooled, dtype=torch.float32)
        ids, real, pooled = (x.to(self.module.device) for x in (ids, real, pooled))
        states = self._states(self.module, ids, real)
        if self.config.pooling == "bos":
            return states[:, 0]
        if self.config.pooling == "eos":
            return states[torch.arange(len(tokens), device=states.device), real.sum(dim=1) - 1]
        return (states * pooled[..., None]).sum(dim=1) / pooled.sum(dim=1, keepdim=True)

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """Special tokens before and behind a text."""
        encoded = self.tokenizer("a", return_special_tokens_mask=True)
        ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
        inner = special.index(0) if 0 in special else len(ids)
        before, behind = list(ids[:inner]), [i for i, s in zip(ids[inner:], special[inner:], strict=True) if s]
        for side, pooling, token in ((before, "bos", "bos_token_id"), (behind, "eos", "eos_token_id")):
            number = getattr(self.tokenizer, token)
            if self.config.pooling == pooling and number is None:
                raise self._refusal(f"a tokeniser without a {pooling} token", "pooling by a token that there is")
            if self.config.pooling == pooling and number not in side:
                side.insert(0 if pooling == "bos" else len(side), number)
        return before, behind

    def _tokens(self, texts: list[str]) -> list[_Tokens]:
        front = f"{self.config.instruction} " if self.config.instruction else ""
        before, behind = self._around
        encoded = self.tokenizer(
            [front + t for t in texts], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        # a token that reaches into the text belongs to the text, also when it begins with the space before it
        said = [[end > len(front) for _, end in row] for row in encoded["offset_mapping"]]
        rows = [list(row) for row in encoded["input_ids"]]
        own = [[i for i, mine in zip(row, s, strict=True) if mine] for row, s in zip(rows, said, strict=True)]
        check_known(texts, own, self.tokenizer.unk_token_id)
        self._check_vocabulary(rows)
        room = self.config.max_length - len(before) - len(behind)
        found = []
        for row, mine in zip(rows, said, strict=True):
            if True not in mine[:room]:
                raise self._refusal(
                    f"an instruction of {mine.index(True)} tokens", f"room for a text within {self.config.max_length}"
                )
            counted = [m or self.config.pool_instruction for m in mine[:room]]
            found.append(
                _Tokens(
                    before + row[:room] + behind,
                    [False] * len(before) + counted + [False] * len(behind),
                    len(row) > room,
                    room - mine.index(True),
                )
            )
        return found

    def _check_vocabulary(self, rows: Sequence[Sequence[int]]) -> None:
        known = _vocabulary(self.module)
        most = max(i for row in rows for i in row)
        if most >= known:
            raise self._refusal(f"token {most} of its tokeniser", f"a tokeniser of the model's {known} tokens")


def _vocabulary(model: PreTrainedModel) -> int:
    embeddings: Any = model.get_input_embeddings()
    return len(embeddings.weight)

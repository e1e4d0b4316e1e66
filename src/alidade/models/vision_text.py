"""The text towers of vision models that have one (CLIP, SigLIP), as text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from alidade.models.precision import check_device
from alidade.models.text.encoder import EncodedText, check_known, check_texts, length_batches, require
from alidade.models.text.folders import fingerprint, quiet, short_name
from alidade.models.vision import TOWERS, VisionConfig, find_folder, load_tower, read_about, refusal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class VisionTextEncoder:
    """The text tower of the same CLIP or SigLIP: vectors to compare with ``VisionEncoder``'s. A ``TextEncoder``.

    Args:
        config: which model; its ``pooling`` must be ``"pooler"``, the only one that is compared with text.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: most texts computed at once.

    Raises:
        ModelError: a model without a text tower, or another pooling; and as ``VisionEncoder``.
        TextError: the extra ``text`` is missing.
    """

    def __init__(self, config: VisionConfig, *, device: str = "cpu", batch_size: int = 32) -> None:
        require("transformers")
        check_device(device, None)
        self.config, self.device, self.batch_size = config, device, batch_size
        self.folder = find_folder(config.name, download=config.download)
        self._about = read_about(self.folder, config.name)
        if self._about.model_type not in TOWERS or config.pooling != "pooler":
            got = f"a model of type {self._about.model_type} and pooling {config.pooling}"
            raise refusal(config.name, got, f"a model of type {' or '.join(TOWERS)} and pooling pooler")

    @cached_property
    def identity(self) -> str:
        """Name, fingerprint of weights and tokeniser, and precision."""
        return f"vision-text:{short_name(self.config.name)}:{fingerprint(self.folder)}:{self.config.precision}"

    @property
    def dim(self) -> int:
        """Length of a vector, that of an image's."""
        found = self._about
        return int(found.projection_dim if found.model_type == "clip" else found.text_config.projection_size)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokeniser.

        Raises:
            ModelError: it is missing or damaged.
        """
        from transformers import AutoTokenizer

        try:
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise refusal(self.config.name, f"{type(error).__name__}: {error!s:.200}", "its tokeniser") from error
        return found

    @cached_property
    def module(self) -> PreTrainedModel:
        """The text tower, frozen, in evaluation mode."""
        return load_tower(self.folder, self.config, self._about, tower=1, device=self.device)

    def encode(self, texts: Sequence[str]) -> EncodedText:
        """One vector per text, ``[N, D]`` float32, not of unit length.

        Raises:
            TextError: no text, an empty one, or one with nothing but unknown characters.
        """
        kept, limit = check_texts(texts), int(self._about.text_config.max_position_embeddings)
        with quiet(warnings=False):
            plain = self.tokenizer(kept, add_special_tokens=False)["input_ids"]
            lengths = [len(ids) for ids in self.tokenizer(kept)["input_ids"]]
        check_known(kept, plain, self.tokenizer.unk_token_id)
        out = np.zeros((len(kept), self.dim), dtype=np.float32)
        # SigLIP was trained on texts padded to its limit, and reads the last token
        padding = "max_length" if self._about.model_type == "siglip" else "longest"
        with torch.inference_mode():
            for batch in length_batches(lengths, self.batch_size):
                given = self.tokenizer(
                    [kept[i] for i in batch],
                    padding=padding,
                    truncation=True,
                    max_length=limit,
                    return_attention_mask=padding == "longest",
                    return_tensors="pt",
                )
                found = self.module(**{k: v.to(self.device) for k, v in given.items() if k != "token_type_ids"})
                vectors = found.text_embeds if self._about.model_type == "clip" else found.pooler_output
                out[batch] = vectors.float().cpu().numpy()
        return EncodedText(vectors=out, cut=tuple(i for i, n in enumerate(lengths) if n > limit))

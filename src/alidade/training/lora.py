"""Low-rank adaptation of the linear layers of a transformer's blocks (Hu et al. 2021, arXiv 2106.09685), by peft."""

from __future__ import annotations

import importlib.util
import re

import torch
from torch import nn

from alidade.errors import AlidadeError


def adapt(root: nn.Module, *, rank: int, alpha: float, seed: int) -> None:
    """Add a low-rank part to every linear layer of ``root``'s blocks, in place; all else is frozen.

    At the start the parts are zero: the module computes what it did.

    Args:
        root: a transformer, or a module around one. Its blocks are what stands in numbered lists.
        rank: of the parts.
        alpha: the parts are multiplied by ``alpha / rank``.
        seed: of their initial values.

    Raises:
        AlidadeError: no such layer, or peft is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise AlidadeError(
            "LoRA",
            got="no package peft",
            expected="the packages of the extra `text`",
            next_step="Install them: pip install 'alidade[text]'.",
        )
    from peft import LoraConfig, inject_adapter_in_model

    names = block_layers(root)
    if not names:
        raise AlidadeError(
            f"LoRA of {type(root).__name__}",
            got="no linear layer in numbered blocks",
            expected="a transformer of torch.nn.Linear layers",
            next_step="Train this tower whole, or leave it frozen.",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, lora_dropout=0.0, bias="none"),  # type: ignore[arg-type]
            root,
        )
    for name, parameter in root.named_parameters():
        parameter.requires_grad_("lora_" in name)


def merge(root: nn.Module) -> None:
    """Add the low-rank parts to the weights and take them away, in place: a plain module again, nothing trains."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(root.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            # refuses to spoil the weights with what is not finite
            layer.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(root.get_submodule(parent), child, layer.get_base_layer())
    root.requires_grad_(False)


def block_layers(root: nn.Module) -> list[str]:
    """Names of the linear layers inside numbered blocks: not patches, word embeddings, poolers or heads."""
    return [
        name
        for name, module in root.named_modules()
        if isinstance(module, nn.Linear) and re.search(r"[^.]\.\d+\.", name)
    ]

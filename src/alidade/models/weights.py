"""Saving and loading a model: ``config.json`` and ``model.safetensors`` in one directory, and its identity."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from alidade.errors import WeightsError
from alidade.imagery.atomic import atomic_write
from alidade.models.config import from_json, to_json
from alidade.models.scale_alibi import ScaleAlibi

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_model(model: ScaleAlibi, directory: Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Write the model's config and weights; each file appears whole or not at all.

    Args:
        model: what to save.
        directory: made when missing.
        dtype: storage format of the weights; half precision halves the file and is exact to 3 digits.
    """
    directory.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().to("cpu", dtype).contiguous() for k, v in model.state_dict().items()}
    with atomic_write(directory / WEIGHTS) as temporary:
        temporary.write_bytes(save(state))
    with atomic_write(directory / CONFIG) as temporary:
        temporary.write_text(to_json(model.config) + "\n", encoding="utf-8")


def load_model(directory: Path) -> ScaleAlibi:
    """The model saved in ``directory``, in float32.

    Raises:
        WeightsError: a file is missing or damaged, or the weights do not fit the config.
    """
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            present = sorted(os.listdir(directory)) if directory.is_dir() else "no such directory"
            raise WeightsError(
                f"{directory}: model",
                got=f"no {name} ({present})",
                expected=f"{CONFIG} and {WEIGHTS}",
                next_step="Name a directory that alidade saved, or a model that `alidade.models()` lists.",
            )
    model = ScaleAlibi(from_json((directory / CONFIG).read_text(encoding="utf-8"), str(directory / CONFIG)))
    try:
        state = load_file(directory / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{directory / WEIGHTS}",
            got=f"a damaged file ({error})",
            expected="a safetensors file",
            next_step="Copy or download it again.",
        ) from None
    wanted = model.state_dict()
    wrong = sorted(k for k in wanted.keys() | state.keys() if k not in wanted or k not in state)
    wrong += sorted(k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape)
    if wrong:
        raise WeightsError(
            f"{directory / WEIGHTS}",
            got=f"{len(wrong)} tensors that do not fit the config (first: {wrong[0]})",
            expected="the tensors of the config beside it",
            next_step="Keep config.json and model.safetensors of one save together.",
        )
    model.load_state_dict({k: v.to(torch.float32) for k, v in state.items()})
    return model.eval()


def identity(model: ScaleAlibi) -> str:
    """``name-hash``: the name and 12 hex digits over the config and every weight, whatever the compute dtype.

    Two archives can be searched together only when this is equal.
    """
    digest = hashlib.sha256(json.dumps(json.loads(to_json(model.config)), sort_keys=True).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return f"{model.config.name}-{digest.hexdigest()[:12]}"

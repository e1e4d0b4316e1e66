"""Loading a model by name or directory."""

from __future__ import annotations

from pathlib import Path

import torch

from alidade.errors import WeightsError
from alidade.models import croma
from alidade.models.model import Model
from alidade.models.precision import check_device
from alidade.models.weights import identity, load_model
from alidade.models.words import load_words

SHIPPED = Path(__file__).parents[1] / "weights"
DEFAULT = "alidade-tiny"
CROMA_SIZES = {size.name: size for size in (croma.BASE, croma.LARGE)}


def models() -> list[str]:
    """Names that ``load`` knows: models shipped with alidade, then those that need a checkpoint of the user's."""
    return sorted(p.name for p in SHIPPED.iterdir() if p.is_dir()) + sorted(CROMA_SIZES)


def load(
    name_or_dir: str | Path = DEFAULT,
    *,
    weights: str | Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Model:
    """A model by name (see ``models``) or by the directory it was saved in. Nothing is downloaded.

    Args:
        name_or_dir: ``"croma-base"``, ``"croma-large"``, a shipped name, or a directory with config.json.
        weights: the released checkpoint, for the CROMA names only.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: compute format; bfloat16 where the hardware has it and float32 elsewhere when not given.

    Raises:
        ModelError: a device that is not there, or a dtype that networks do not compute in.
        WeightsError: an unknown name, or weights that are missing, damaged or of another model.
    """
    name = str(name_or_dir)
    check_device(device, dtype)
    if name in CROMA_SIZES:
        if weights is None:
            raise WeightsError(
                f"{name}: weights",
                got="none",
                expected="weights=PATH of the released checkpoint (a .pt file)",
                next_step="Get it from the CROMA authors' page; alidade downloads nothing by itself.",
            )
        return Model(croma.load_croma(Path(weights), CROMA_SIZES[name]), device=device, dtype=dtype)
    if weights is not None:
        raise WeightsError(
            f"{name}: weights",
            got=f"weights={weights}",
            expected="weights only with croma-base or croma-large",
            next_step="Leave it out: other models carry their weights in their directory.",
        )
    directory = SHIPPED / name if name in models() else Path(name_or_dir)
    if not directory.is_dir():
        raise WeightsError(
            "model name",
            got=repr(name),
            expected=f"one of {', '.join(models())}, or a directory with config.json",
            next_step="Check the spelling, or pass the path of a saved model.",
        )
    network = load_model(directory)
    return Model(network, device=device, dtype=dtype, words=load_words(directory, identity(network)))

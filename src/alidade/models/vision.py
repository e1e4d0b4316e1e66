"""Image vectors from vision models of Hugging Face (DINOv3, CLIP, SigLIP, ViT, ...), prepared as each model asks."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from alidade.errors import ModelError
from alidade.imagery.raster import Raster
from alidade.models.precision import check_device
from alidade.models.text.encoder import require
from alidade.models.text.folders import fingerprint, quiet, short_name
from alidade.models.vision_input import Preparation, bad_images, rgb

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOWERS = {
    "clip": ("CLIPVisionModelWithProjection", "CLIPTextModelWithProjection"),
    "siglip": ("SiglipVisionModel", "SiglipTextModel"),
}
"""Models of two towers: what loads the image tower alone, and what the text tower alone."""
_CHOICES = {"pooling": ("pooler", "cls", "mean"), "precision": ("float32", "bfloat16", "float16")}
_FILES = ["*.safetensors", "*.json", "*.txt", "*.model"]


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Which vision model, and how its tokens become one vector.

    Attributes:
        name: a directory with a saved model and its image processor's settings, or a name on the Hugging Face hub.
        pooling: ``"pooler"``: the model's own summary, for CLIP and SigLIP the vector that is compared with text;
            ``"cls"``: the class token of the last layer; ``"mean"`` of its patch tokens.
        side: pixels of the square that the model sees, instead of its processor's size.
        precision: of the weights; preparation and pooling are float32 in any case.
        download: whether a model that is not on this machine may be fetched.

    Raises:
        ModelError: an unknown choice, or a side below one pixel.
    """

    name: str
    pooling: Literal["pooler", "cls", "mean"] = "pooler"
    side: int | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    download: bool = False

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ModelError(
                    field, got=repr(getattr(self, field)), expected=" or ".join(choices), next_step="Choose one."
                )
        if self.side is not None and self.side < 1:
            raise ModelError("side", got=self.side, expected="one pixel or more", next_step="Leave it out.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Looked:
    """What a vision model makes of images.

    Attributes:
        vectors: ``[B, D]`` float32, not of unit length.
        patches: ``[B, N, width]`` float32, the last layer's patch tokens row by row, without class and register tokens
            (of CLIP: before its final norm and projection, which are for the class token).
    """

    vectors: Tensor
    patches: Tensor


class VisionEncoder:
    """A frozen vision model as an image encoder. It is loaded when the first image needs it; text towers never are.

    Args:
        config: which model and how.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: most images computed at once.

    Raises:
        ModelError: the model or its image processor's settings are not on this machine, or a device that is not there.
        TextError: the extra ``text``, which brings transformers, is missing.
    """

    def __init__(self, config: VisionConfig, *, device: str = "cpu", batch_size: int = 16) -> None:
        require("transformers")
        check_device(device, None)
        self.config, self.device, self.batch_size = config, device, batch_size
        self.folder = find_folder(config.name, download=config.download)
        self.preparation = Preparation.read(self.folder, config.side)

    def __repr__(self) -> str:
        return f"VisionEncoder({self.config!r}, device={self.device!r})"

    @cached_property
    def identity(self) -> str:
        """Name, fingerprint of the weights, hash of the preparation, pooling and precision."""
        prepared = hashlib.sha256(json.dumps(asdict(self.preparation)).encode()).hexdigest()[:8]
        c = self.config
        return f"vision:{short_name(c.name)}:{fingerprint(self.folder)}:{prepared}:{c.pooling}:{c.precision}"

    @cached_property
    def _about(self) -> Any:  # noqa: ANN401 - each family of models has settings of its own
        return read_about(self.folder, self.config.name)

    @property
    def dim(self) -> int:
        """Length of a vector, from the model's settings; its weights are not loaded."""
        if self._about.model_type == "clip" and self.config.pooling == "pooler":
            return int(self._about.projection_dim)
        tower = getattr(self._about, "vision_config", self._about)
        return int(tower.hidden_size if hasattr(tower, "hidden_size") else tower.hidden_sizes[-1])

    @cached_property
    def module(self) -> PreTrainedModel:
        """The image tower, frozen, in evaluation mode.

        Raises:
            ModelError: damaged files, weights that are not all there, or a model of several towers that is not known.
        """
        # ViT's pooler is new where a checkpoint has none; what is not used may be so
        spare = () if self.config.pooling == "pooler" else ("pooler.",)
        return load_tower(self.folder, self.config, self._about, tower=0, device=self.device, spare=spare)

    def encode(self, images: Tensor | NDArray[Any]) -> NDArray[np.float32]:
        """One vector per image, ``[B, D]`` float32, not of unit length.

        Args:
            images: ``[B, 3, H, W]`` red, green, blue: uint8 0 to 255, or real numbers 0 to 1.

        Raises:
            ModelError: another shape or range, or a pooling that the model does not have.
        """
        given = torch.as_tensor(images)
        out = np.zeros((len(given), self.dim), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(given), self.batch_size):
                part = slice(start, start + self.batch_size)
                out[part] = self.look(given[part]).vectors.cpu().numpy()
        return out

    def embed(self, rasters: Raster | Sequence[Raster]) -> NDArray[np.float32]:
        """One vector per raster, ``[N, D]`` float32, not of unit length; see ``rgb`` for what is shown of it.

        Raises:
            The errors of ``rgb`` and ``encode``.
        """
        images = [rgb(r) for r in ([rasters] if isinstance(rasters, Raster) else rasters)]
        out = np.zeros((len(images), self.dim), dtype=np.float32)
        for shape in dict.fromkeys(i.shape for i in images):
            alike = [n for n, image in enumerate(images) if image.shape == shape]
            out[alike] = self.encode(np.stack([images[n] for n in alike]))
        return out

    def look(self, images: Tensor) -> Looked:
        """Vectors and patch tokens of one batch, differentiable in what of ``module`` asks for gradients.

        Args:
            images: see ``encode``.

        Raises:
            ModelError: as ``encode``.
        """
        prepared = self.preparation(images.to(self.device))
        size, tower = prepared.shape[-2:], getattr(self._about, "vision_config", self._about)
        patch = tower.patch_size if isinstance(getattr(tower, "patch_size", None), int) else 1
        if any(n % patch for n in size):
            raise bad_images(f"{size[0]} x {size[1]} px after preparation", f"sides that are multiples of {patch} px")
        # models with a table of positions stretch it when asked to; the others take any size
        stretches = "interpolate_pos_encoding" in inspect.signature(self.module.forward).parameters
        other = set(size) != {getattr(tower, "image_size", None)}
        whole = {"interpolate_pos_encoding": True} if stretches and other else {}
        found = self.module(pixel_values=prepared.to(self.module.dtype), **whole)
        states = found.last_hidden_state
        if states.ndim == 4:
            states = states.flatten(2).transpose(1, 2)
        # class and register tokens stand before the patches; a pyramid's last layer has fewer tokens than patches
        first = max(states.shape[1] - math.prod(n // patch for n in size), 0)
        return Looked(vectors=self._pooled(found, states, first).float(), patches=states[:, first:].float())

    def _pooled(self, found: Any, states: Tensor, first: int) -> Tensor:  # noqa: ANN401 - as the model's family has it
        if self.config.pooling == "mean":
            return states[:, first:].float().mean(dim=1)
        own = getattr(found, "image_embeds", None)
        own = own if own is not None else getattr(found, "pooler_output", None)
        if self.config.pooling == "cls":
            own = states[:, 0] if first else None
        if own is None:
            raise refusal(
                self.config.name, f"no {self.config.pooling} in {type(self.module).__name__}", "one of its own poolings"
            )
        return own.flatten(1)


def find_folder(name: str, *, download: bool) -> Path:
    """The folder of a vision model: ``name`` itself, or the local Hugging Face cache.

    Args:
        name: a directory, or a name such as ``"facebook/dinov3-vitl16-pretrain-sat493m"``.
        download: whether it may be fetched from the Hugging Face hub. Nothing goes to the network otherwise.

    Raises:
        ModelError: it is not here (and could not be fetched), or has no weights as safetensors.
    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(name, local_files_only=not download, allow_patterns=_FILES))
        except (OSError, ValueError) as error:
            raise ModelError(
                "vision model",
                got=f"no model {name!r} on this machine"
                + (f" or the hub ({type(error).__name__})" if download else ""),
                expected="a directory with a saved model, or the name of one in the local Hugging Face cache",
                next_step="Check the name, or allow the download (download=True).",
            ) from error
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise refusal(name, f"no config.json or no *.safetensors in {folder}", "a model saved as safetensors")
    return folder


def read_about(folder: Path, name: str) -> Any:  # noqa: ANN401 - each family of models has settings of its own
    """The model's own settings.

    Raises:
        ModelError: they are damaged, or of a family that is not known.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise refusal(name, f"{type(error).__name__}: {error!s:.200}", "settings of a known vision model") from error


def load_tower(
    folder: Path,
    config: VisionConfig,
    about: Any,  # noqa: ANN401 - as of read_about
    *,
    tower: int,
    device: str,
    spare: tuple[str, ...] = (),
) -> PreTrainedModel:
    """One tower of a model, frozen, in evaluation mode; the other is not built.

    Args:
        folder: of the model.
        config: which model and how.
        about: of ``read_about``.
        tower: 0 for images, 1 for texts.
        device: where it shall be.
        spare: beginnings of the names of weights that may be missing.

    Raises:
        ModelError: damaged files, weights that are not all there, or a model of several towers that is not known.
    """
    import transformers

    if about.model_type not in TOWERS and hasattr(about, "text_config"):
        got = f"a model of type {about.model_type} with several towers"
        raise refusal(config.name, got, f"one tower, or a model of type {' or '.join(TOWERS)}")
    loader: Any = getattr(transformers, TOWERS.get(about.model_type, ("AutoModel",) * 2)[tower])
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    try:
        # what transformers would warn of (tensors that are not there) is refused below
        with quiet(warnings=False):
            model, found = loader.from_pretrained(str(folder), dtype=getattr(torch, config.precision), **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise refusal(config.name, f"{type(error).__name__}: {error!s:.200}", "a vision model") from error
    lacking = sorted(k for k in found["missing_keys"] if not k.startswith(spare))
    if lacking:
        own = " (a pooler that was never trained: choose cls or mean)" if lacking[0].startswith("pooler.") else ""
        raise refusal(config.name, f"{len(lacking)} tensors missing, first {lacking[0]}{own}", "all of its weights")
    frozen: PreTrainedModel = model.to(device).eval().requires_grad_(False)
    return frozen


def refusal(name: str, got: str, expected: str) -> ModelError:
    """An error about a model of this name."""
    return ModelError(
        f"vision model {name}",
        got=got,
        expected=expected,
        next_step="Choose another model or other settings, or copy the model again.",
    )

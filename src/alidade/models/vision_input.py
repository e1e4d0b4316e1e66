"""What a vision model of Hugging Face is given: rasters as red, green and blue, prepared by its processor's numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from alidade.errors import ModelError, RasterError, SensorError
from alidade.imagery.bands import Unit
from alidade.imagery.raster import Raster

WHITE = 0.3
"""Reflectance that is shown as 255: nearly all land without snow and cloud is darker.

One number for all images, unlike the stretch of pictures for the eye (``imagery.quicklook``), which is made anew for
every scene: the same ground must not become another input because a cloud stands beside it.
"""
_RGB = ("red", "green", "blue")
_RESAMPLE = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of what torch computes alike."""
_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
_SLACK = 1e-3
"""Real numbers may leave 0 to 1 by so much, as resampling and compression make them; they are cut off there."""


def rgb(raster: Raster) -> NDArray[np.float32]:
    """A raster's red, green and blue as numbers from 0 to 1, ``[3, H, W]``; 0 where there is no data.

    8-bit display values are divided by 255; reflectance is divided by ``WHITE``, and what is brighter is white.

    Raises:
        SensorError: a band is missing, is neither display nor reflectance, or has an unresolved offset.
        RasterError: no pixel is valid.
    """
    have = {b.common_name: e.unit for b, e in zip(raster.bands, raster.encodings, strict=True)}
    units = {have.get(name) for name in _RGB}
    if len(units) != 1 or not units <= {Unit.DISPLAY, Unit.REFLECTANCE}:
        named = (f"{b.name} ({e.unit})" for b, e in zip(raster.bands, raster.encodings, strict=True))
        raise SensorError(
            f"{raster.source}: colours",
            got=", ".join(named),
            expected="red, green and blue in display values or reflectance",
            next_step="Give an image with these bands, or use a model made for this sensor.",
        )
    if not raster.valid.any():
        raise RasterError(
            f"{raster.source}: pixels",
            got="no valid pixel (all nodata, NaN or masked)",
            expected="some imagery",
            next_step="Check the nodata value with `alidade inspect`, or leave the file out.",
        )
    white = np.float32(255.0 if units == {Unit.DISPLAY} else WHITE)
    shown: NDArray[np.float32] = np.clip(raster.select(_RGB).physical() / white, 0.0, 1.0)
    shown[:, ~raster.valid] = 0.0
    return shown


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What an image processor does, in its order: resize, crop the middle, rescale, subtract the mean, divide by std.

    Attributes:
        resize: (rows, columns); one number for the shorter side; or ``None`` to leave the size.
        resample: ``F.interpolate``'s mode; antialiased, which is how Pillow always resizes.
        crop: (rows, columns) of the middle, or ``None``.
        factor: what values 0 to 255 are multiplied by.
        mean, std: of red, green and blue after that.
    """

    resize: tuple[int, int] | int | None
    resample: str
    crop: tuple[int, int] | None
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path, side: int | None = None) -> Preparation:
        """The settings of the image processor that is saved in ``folder``.

        Args:
            folder: of the model.
            side: the square that the model shall see instead; what is cut away before keeps its share.

        Raises:
            ModelError: no settings, or steps that are not known here.
        """
        told = _settings(folder)
        strange = sorted(k for k, v in told.items() if k.startswith("do_") and v and k not in _STEPS)
        strange += [k for k in ("crop_pct", "rescale_offset") if told.get(k)]
        if strange:
            raise _unknown(folder, ", ".join(strange), "resizing, centre crop, rescaling and normalising only")
        # files of old versions leave out what was a matter of course then
        crops = told.get("do_center_crop", "crop_size" in told)
        crop = _rectangle(folder, told.get("crop_size")) if crops else None
        resize = _size(folder, told.get("size"), square=not crops) if told.get("do_resize", True) else None
        if side is not None:
            resize = round(resize * side / (crop[0] if crop else resize)) if isinstance(resize, int) else (side, side)
            crop = (side, side) if crop else None
        mode = _RESAMPLE.get(told.get("resample", -1))
        if resize is not None and mode is None:
            raise _unknown(folder, f"resample {told.get('resample')!r}", "0, 2 or 3 (nearest, bilinear, bicubic)")
        normalises = told.get("do_normalize", True)
        return cls(
            resize=resize,
            resample=mode or "bilinear",
            crop=crop,
            factor=float(told.get("rescale_factor", 1 / 255)) if told.get("do_rescale", True) else 1.0,
            mean=_colours(folder, told, "image_mean") if normalises else (0.0,) * 3,
            std=_colours(folder, told, "image_std") if normalises else (1.0,) * 3,
        )

    def __call__(self, images: Tensor) -> Tensor:
        """What the model is given, float32 ``[B, 3, h, w]``.

        Args:
            images: ``[B, 3, H, W]``, uint8 0 to 255 or real numbers 0 to 1. Both are the same picture: a real number
                is first multiplied by 255, so it cannot slip past the rescaling.

        Raises:
            ModelError: another shape, values outside their range, or images smaller than the crop.
        """
        values = _values(images)
        if self.resize is not None:
            values = self._resized(values)
        if self.crop is not None:
            top, left = ((have - want) // 2 for have, want in zip(values.shape[-2:], self.crop, strict=True))
            if min(top, left) < 0:
                raise bad_images(f"{values.shape[-2]} x {values.shape[-1]} px", f"{self.crop[0]} x {self.crop[1]}")
            values = values[..., top : top + self.crop[0], left : left + self.crop[1]]
        mean, std = (torch.tensor(side, device=values.device)[:, None, None] for side in (self.mean, self.std))
        return (values * self.factor - mean) / std

    def _resized(self, values: Tensor) -> Tensor:
        height, width = values.shape[-2:]
        if isinstance(self.resize, int):
            short, long = min(height, width), max(height, width)
            longer = int(self.resize * long / short)
            size = (longer, self.resize) if height > width else (self.resize, longer)
        else:
            assert self.resize is not None
            size = self.resize
        if size == (height, width):
            return values
        smooth = self.resample != "nearest-exact"
        # along the rows first and cut off in between, as Pillow does, whose pixels cannot hold bicubic's overshoot
        for step in ((height, size[1]), size):
            values = F.interpolate(values, step, mode=self.resample, antialias=smooth).clamp(0.0, 255.0)
        return values


def _values(images: Tensor) -> Tensor:
    """float32 ``[B, 3, H, W]`` from 0 to 255."""
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise bad_images(f"shape {tuple(images.shape)}", "[B, 3, H, W]: red, green and blue")
    if images.dtype == torch.uint8:
        return images.float()
    if not images.is_floating_point():
        raise bad_images(f"{images.dtype} numbers", "uint8 from 0 to 255, or real numbers from 0 to 1")
    least, most = (float(v) for v in images.detach().float().aminmax())
    if not (-_SLACK <= least and most <= 1 + _SLACK):
        raise bad_images(f"real numbers from {least:.4g} to {most:.4g}", "real numbers from 0 to 1")
    return images.float().clamp(0.0, 1.0) * 255.0


def _settings(folder: Path) -> dict[str, Any]:
    """The image processor's settings: a file of their own, or a part of the processor's."""
    for name, part in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        if (folder / name).is_file():
            try:
                told = json.loads((folder / name).read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                raise _unknown(folder, f"{name}: {type(error).__name__}", "a JSON file") from error
            found = told.get(part) if part and isinstance(told, dict) else told
            if isinstance(found, dict):
                return {k: v for k, v in found.items() if v is not None}
    raise _unknown(folder, "no preprocessor_config.json", "the settings that the model's images are prepared by")


def _size(folder: Path, told: object, *, square: bool) -> tuple[int, int] | int:
    if isinstance(told, dict) and set(told) == {"shortest_edge"} and isinstance(told["shortest_edge"], int):
        return told["shortest_edge"]
    # one number in files of old versions: CLIP's, which crop, meant the shorter side, all others a square
    return told if isinstance(told, int) and not square else _rectangle(folder, told)


def _rectangle(folder: Path, told: object) -> tuple[int, int]:
    if isinstance(told, int):
        return told, told
    if isinstance(told, dict) and set(told) == {"height", "width"}:
        height, width = told["height"], told["width"]
        if isinstance(height, int) and isinstance(width, int):
            return height, width
    raise _unknown(folder, f"size {told!r:.80}", "height and width, or the shortest edge")


def _colours(folder: Path, told: dict[str, Any], key: str) -> tuple[float, ...]:
    values = told.get(key)
    if isinstance(values, list) and len(values) == 3 and all(isinstance(v, int | float) for v in values):
        return tuple(float(v) for v in values)
    raise _unknown(folder, f"{key} {values!r:.80}", "three numbers: red, green and blue")


def _unknown(folder: Path, got: str, expected: str) -> ModelError:
    return ModelError(
        f"{folder}: image processor",
        got=got,
        expected=expected,
        next_step="Save the model with its image processor, or choose another model.",
    )


def bad_images(got: str, expected: str) -> ModelError:
    """An error about images of another form."""
    return ModelError("images", got=got, expected=expected, next_step="Bring the images into this form.")

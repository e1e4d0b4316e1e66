"""A model as a STAC item of the machine-learning-model extension: what it reads, how that is scaled, what it gives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from alidade.imagery.bands import Band, Sensor
from alidade.imagery.normalize import Normalization
from alidade.imagery.sensors import sensor
from alidade.models.config import TowerConfig
from alidade.models.model import Model

MLM = "https://stac-extensions.github.io/mlm/v1.5.2/schema.json"
EO = "https://stac-extensions.github.io/eo/v2.0.0/schema.json"
_TASKS = ["similarity-search"]
_FOREVER = ("1900-01-01T00:00:00Z", "9999-12-31T23:59:59Z")


def model_item(model: Model, *, weights: Path, href: str) -> dict[str, Any]:
    """The item (STAC 1.1.0, extension MLM v1.5.2), without links.

    Every sensor that the model takes is one input, with its bands in order and their fixed statistics. How stored
    numbers become the unit of these statistics (scale, offset, dB) is named as the function that does it.

    Args:
        model: what to describe.
        weights: its file of weights; the ending tells the kind.
        href: where the item says that the weights are.
    """
    config = model.network.config
    inputs = list(_inputs(model))
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [MLM, EO],
        "id": model.identity,
        "geometry": None,
        "properties": {
            "title": config.name,
            "description": "Image encoder whose embeddings are compared by cosine; it knows metres on the ground.",
            "datetime": None,
            # a model is of no time and of no place: MLM's own examples say so in this way
            "start_datetime": _FOREVER[0],
            "end_datetime": _FOREVER[1],
            "mlm:name": _name(model.identity),
            "mlm:architecture": "Vision Transformer",
            "mlm:tasks": _TASKS,
            "mlm:framework": "PyTorch",
            "mlm:framework_version": torch.__version__,
            "mlm:total_parameters": sum(p.numel() for p in model.network.parameters()),
            "mlm:pretrained": True,
            "mlm:accelerator": None,
            "mlm:input": [described for described, _ in inputs],
            "mlm:output": [
                {
                    "name": "embedding",
                    "tasks": _TASKS,
                    "description": "One vector of unit length per image.",
                    "result": {"shape": [-1, model.dim], "dim_order": ["batch", "embedding"], "data_type": "float32"},
                }
            ],
            "mlm:hyperparameters": {
                "tile": config.tile,
                "width": config.width,
                "heads": config.heads,
                "position": config.position.kind,
                "pooling": config.pooling,
                "sensors_comparable": config.aligned,
            },
        },
        "links": [],
        "assets": {
            "model": {
                "href": href,
                "type": "application/octet-stream",
                "title": f"Weights of {model.identity}",
                "roles": ["mlm:model", "mlm:weights"],
                "mlm:artifact_type": "safetensors" if weights.suffix == ".safetensors" else "torch.save",
                "bands": _bands([bands for _, bands in inputs]),
            }
        },
    }


def _inputs(model: Model) -> Iterator[tuple[dict[str, Any], list[tuple[Band, Sensor]]]]:
    for tower in model.towers:
        for identifier, normalization in tower.normalizations.items():
            made = sensor(identifier)
            bands = [(made.band(name), made) for name in normalization.bands]
            yield _input(tower, made, normalization), bands


def _input(tower: TowerConfig, made: Sensor, normalization: Normalization) -> dict[str, Any]:
    channels = len(normalization.bands)
    return {
        "name": f"{made.id} through {tower.name}",
        "description": (
            f"{made.title}, in {normalization.unit}; any size, padded to whole patches of {tower.patch} px; "
            "the size of a pixel in metres is given besides"
        ),
        "bands": list(normalization.bands),
        "input": {
            "shape": [-1, channels, -1, -1],
            "dim_order": ["batch", "channel", "height", "width"],
            "data_type": "float32",
        },
        "value_scaling": [
            _scaling(mean, std, normalization.method)
            for mean, std in zip(normalization.mean, normalization.std, strict=True)
        ],
        "resize_type": "pad",
        "pre_processing_function": {
            "format": "python",
            "expression": "alidade.imagery.normalize:Normalization.apply",
        },
    }


def _scaling(mean: float, std: float, method: str) -> dict[str, Any]:
    if method == "standard":
        return {"type": "z-score", "mean": mean, "stddev": std}
    return {"type": "min-max", "minimum": mean - 2.0 * std, "maximum": mean + 2.0 * std}


def _bands(inputs: list[list[tuple[Band, Sensor]]]) -> list[dict[str, Any]]:
    """The bands that inputs name, each name once, as STAC 1.1 band objects."""
    found: dict[str, dict[str, Any]] = {}
    for band, made in (pair for bands in inputs for pair in bands):
        told = found.setdefault(band.name, {"name": band.name, "description": made.title, "gsd": band.gsd_m})
        if made.kind == "optical":
            told["eo:center_wavelength"] = band.wavelength_um
            if band.common_name is not None:
                told["eo:common_name"] = band.common_name
    return list(found.values())


def _name(identity: str) -> str:
    # what MLM allows in a name
    return re.sub(r"[^a-zA-Z0-9_.-]", "-", identity)

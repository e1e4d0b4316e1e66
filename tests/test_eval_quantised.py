"""``alidade eval quantised`` end to end: its rows are those of the 8-bit model that anybody can make."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alidade.evaluation.datasets import eurosat_rgb as read_eurosat
from alidade.evaluation.features import features, model_encoder
from alidade.evaluation.quantised import agreement, flips, quantised_model
from alidade.models.registry import load as load_model
from eval_word_models import LABELS, PROMPT, measured, network_only, with_words, write_two_sets


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_two_sets(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def knowing(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_words(tmp_path_factory.mktemp("knowing") / "model", pack)


def test_quantised_rows_are_those_of_the_quantised_model(pack: Path, knowing: Path, tmp_path: Path) -> None:
    rows, shown = measured(tmp_path / "r.jsonl", "quantised", "--data", str(pack), "--model", str(knowing))
    found = {r.metric: r for r in rows}
    model, images = load_model(knowing, dtype=torch.float32), read_eurosat(pack, "val")
    light = quantised_model(model)
    full, rough = (features(model_encoder(m, images), images) for m in (model, light))
    assert found["mean cosine"].value == pytest.approx(agreement(full, rough).mean(), abs=1e-6)
    assert found["smallest cosine"].value == pytest.approx(agreement(full, rough).min(), abs=1e-6)
    assert 0.9 < found["smallest cosine"].value < found["mean cosine"].value < 1
    targets = model.embed_text([PROMPT.format(name) for name in LABELS])
    assert found["top-1 flips"].value == flips(full, rough, targets).mean()
    assert found["top-1 flips"].condition == "class words"
    assert {r.model for r in rows} == {light.identity}
    speed = found["speed ratio"]
    assert 0 < speed.low <= speed.value <= speed.high
    assert speed.n == 7
    assert "threads" in speed.condition
    assert f"{found['mean cosine'].value:.4f}" in shown


def test_quantising_needs_no_words(pack: Path, tmp_path: Path) -> None:
    plain = network_only(tmp_path / "plain")
    rows, shown = measured(
        tmp_path / "r.jsonl", "quantised", "--data", str(pack), "--model", str(plain), "--images", "3"
    )
    found = {r.metric: r for r in rows}
    assert found["top-1 flips"].condition == "class means"
    assert found["mean cosine"].n == 3
    assert "flips among 3 class means" in shown

"""The comparison of positions: equal starts, equal data, nothing measured twice, and a page made from files alone."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from alidade.ablation.config import REFERENCE, UNTRAINED, AblationConfig
from alidade.ablation.document import write_document
from alidade.ablation.headlines import HEADLINES
from alidade.ablation.hidden import ALONE, IN_CONTEXT, hide, patch_mean, reconstruction_errors
from alidade.ablation.measure import BLIND, Part, classification, load_held_out, of_network, remembering
from alidade.ablation.nested import INNER, OUTER, SIDE, NestedBatches, nested
from alidade.ablation.pack_sources import Shares, chipped, pack_sources
from alidade.ablation.run import COMPUTE, LAST, TRIVIAL, run_ablation, todo, training_batches, untrained
from alidade.ablation.scores import Scored, append_scores, beside, load_scores
from alidade.ablation.statistics import estimate, setting_of
from alidade.cli import main
from alidade.errors import AlidadeError, ModelError
from alidade.evaluation.bootstrap import interval
from alidade.evaluation.datasets import ucmerced
from alidade.evaluation.protocols import Stamp, measure_knn, measure_probe
from alidade.evaluation.results import Result, ResultsError, append, load
from alidade.imagery.normalize import Normalization
from alidade.imagery.sensors import sensor
from alidade.models.positions import VARIANTS
from alidade.models.scale_alibi import ScaleAlibi
from alidade.training.image_batches import Stack
from alidade.training.loop import Report, make_batches
from alidade.training.pretrain import build, pretrain
from eval_pack import write_pack

TINY = AblationConfig(variants=("none", "metres"), seeds=1, steps=3, batch=4, width=32, depth=1, heads=2)


class Heard:
    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []

    def begun(self, runs: int, steps: int) -> None:
        self.said.append(("begun", runs, steps))

    def training(self, label: str, seed: int, report: Report) -> None:
        self.said.append(("step", label, seed, report.step))

    def finished(self, label: str, seed: int, rows: list[Result]) -> None:
        self.said.append(("finished", label, seed, len(rows)))


def run_all(config: AblationConfig, pack: Path, folder: Path) -> Heard:
    heard, results = Heard(), folder / "results.jsonl"
    for _ in run_ablation(config, pack, results=results, folder=folder / "runs", commit="abc", shown=heard):
        pass
    return heard


def without(label: str, measured: tuple[Path, Heard], folder: Path) -> Path:
    """A copy of the results in which a run was stopped before its closing rows were written."""
    for path in (measured[0], beside(measured[0])):
        shutil.copy(path, folder)
    kept = [r for r in load(measured[0]) if not (r.protocol == COMPUTE and r.condition == label)]
    path = folder / "results.jsonl"
    path.unlink()
    append(path, kept)
    return path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["alidade", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def measured(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Heard]:
    """A whole small ablation on made images: results file, and what was told meanwhile."""
    folder = tmp_path_factory.mktemp("ablation")
    return folder / "results.jsonl", run_all(TINY, pack, folder)


# -- equal starts, equal data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 3])
def test_all_variants_start_from_the_same_values(seed: int) -> None:
    config = replace(TINY, variants=tuple(VARIANTS))
    states = {v: build(config.training(v, seed)).state_dict() for v in VARIANTS}
    reference = states[REFERENCE]
    for variant, state in states.items():
        assert state.keys() == reference.keys(), variant
        assert all(torch.equal(state[k], reference[k]) for k in reference), variant
    other = build(config.training(REFERENCE, seed + 1)).state_dict()
    assert not torch.equal(other["network.patches.rgb.weight"], reference["network.patches.rgb.weight"])


def test_between_variants_only_the_kind_of_position_differs() -> None:
    for variant in VARIANTS:
        theirs, ours = TINY.training(variant, 1), TINY.training(REFERENCE, 1)
        position = replace(theirs.model.position, kind=REFERENCE)
        assert replace(theirs, model=replace(theirs.model, position=position)) == ours


def test_a_seed_gives_all_variants_the_same_batches_and_masks(pack: Path) -> None:
    data = training_batches(TINY, pack)
    for theirs, ours in zip(
        make_batches(TINY.training("rope", 2), data, 0, 0, 1),
        make_batches(TINY.training(REFERENCE, 2), data, 0, 0, 1),
        strict=True,
    ):
        assert theirs.seed == ours.seed
        assert theirs.views.keys() == ours.views.keys()
        assert all(torch.equal(theirs.views[n].pixels, ours.views[n].pixels) for n in ours.views)
    first, other = (next(make_batches(TINY.training(REFERENCE, s), data, 0, 0, 1)) for s in (0, 1))
    assert first.seed != other.seed


def test_untrained_is_where_training_starts() -> None:
    start = build(TINY.training(REFERENCE, 4)).network.state_dict()
    assert all(torch.equal(start[k], v) for k, v in untrained(TINY, 4).state_dict().items())


def test_variants_do_compute_different_things(pack: Path, tmp_path: Path) -> None:
    """A comparison of variants that were all the same would also find no winner."""
    held, config = load_held_out(pack, TINY), replace(TINY, steps=1)
    data = training_batches(config, pack)
    found = {
        v: reconstruction_errors(pretrain(config.training(v, 0), data, tmp_path / v), held.hidden) for v in VARIANTS
    }
    for variant in set(VARIANTS) - {REFERENCE}:
        assert not np.array_equal(found[variant][IN_CONTEXT], found[REFERENCE][IN_CONTEXT]), variant


def test_the_scale_term_is_seen_across_scales_only(pack: Path) -> None:
    held = load_held_out(pack, TINY)
    networks = {}
    for variant in (REFERENCE, "metres-and-scale"):
        networks[variant] = ScaleAlibi(TINY.model(variant))
        networks[variant].load_state_dict(untrained(TINY, 0).state_dict())
        networks[variant].eval()
    a, b = (reconstruction_errors(n, held.hidden) for n in networks.values())
    assert np.array_equal(a[ALONE], b[ALONE])
    assert not np.array_equal(a[IN_CONTEXT], b[IN_CONTEXT])


# -- data --------------------------------------------------------------------------------------------------------------


def ramp(count: int = 3, side: int = 256) -> Stack:
    """Pixels that say where they are: the first channel is the row, the second the column."""
    row, col = np.mgrid[:side, :side]
    pixels = np.broadcast_to(np.stack([row, col, row * 0]), (count, 3, side, side)).astype(np.float16)
    return Stack(pixels=pixels, valid=np.ones((count, side, side), dtype=np.bool_), gsd_m=0.3)


@pytest.mark.parametrize("factor", [2, 4])
def test_nested_views_share_their_centre_on_the_ground(factor: int) -> None:
    views = nested(ramp(), np.arange(3), factor, np.random.default_rng(0))
    inner, outer = views[INNER], views[OUTER]
    assert inner.pixels.shape == outer.pixels.shape == (3, 3, SIDE, SIDE)
    assert (inner.gsd_m, outer.gsd_m) == ((0.3, 0.3), (0.3 * factor, 0.3 * factor))
    assert torch.allclose(inner.pixels.mean((2, 3)), outer.pixels.mean((2, 3)), atol=1e-3)
    # the middle of the outer view, coarsened pixel by pixel, is the inner one coarsened
    low = (SIDE - SIDE // factor) // 2
    middle = outer.pixels[..., low : low + SIDE // factor, low : low + SIDE // factor]
    assert torch.allclose(torch.nn.functional.avg_pool2d(inner.pixels, factor), middle, atol=1e-3)


def test_nested_views_without_a_generator_lie_in_the_middle() -> None:
    for view in nested(ramp(), np.arange(2), 4).values():
        assert torch.allclose(view.pixels[:, :2].mean((2, 3)), torch.full((2, 2), 127.5), atol=1e-2)


def test_too_small_images_are_no_nested_views(pack: Path) -> None:
    others = training_batches(TINY, pack).others
    with pytest.raises(ModelError, match="128 px"):
        NestedBatches(others=others, images=ramp(side=128), share=0.5)


def test_sources_are_train_parts_with_shares(pack: Path) -> None:
    towers = {t.name: t for t in TINY.model(REFERENCE).towers}
    shares = Shares(eurosat=0.5, ucmerced=0.25, california=0.2, multispectral=0.05)
    sources = {s.name: s for s in pack_sources(pack, towers, shares)}
    assert {n: (len(s), s.weight) for n, s in sources.items()} == {
        "eurosat": (12, 0.5),
        "ucmerced": (12, 0.25),
        "california": (3, 0.2),
        "sentinel-2-l1c": (6, 0.05),
    }
    samples = Path(__file__).parents[1] / "samples"
    for name in ("optical", "rgb"):
        own = Normalization.for_sensor(sensor("sentinel-2-l2a"), towers[name].bands)
        towers[name] = replace(towers[name], normalizations=towers[name].normalizations | {"sentinel-2-l2a": own})
    more = {s.name: s for s in pack_sources(pack, towers, shares, samples=samples)}
    assert set(more) - set(sources) == {"sentinel-2-l2a"}


def test_chips_cover_an_image() -> None:
    image = np.arange(100 * 150).reshape(1, 100, 150)
    chips = chipped(image)
    assert chips.shape == (6, 1, 64, 64)
    assert np.array_equal(np.unique(chips), np.unique(image))


# -- measuring ---------------------------------------------------------------------------------------------------------


def test_scores_average_to_the_figures_of_the_usual_protocols(pack: Path) -> None:
    images = {name: ucmerced(pack, name) for name in ("train", "val")}
    part = Part(train=images["train"], queries=images["val"])
    encoder = of_network("x", untrained(TINY, 0)).encoder(part.train)
    found = {m.protocol: m.scores.mean() for m in classification(remembering(encoder), part)}
    stamp = Stamp(commit="x", seed=0)
    assert found["5-NN"] == measure_knn(encoder, part.train, part.queries, stamp).value
    assert found["linear probe"] == measure_probe(encoder, part.train, part.queries, stamp).value


def test_remembered_features_are_told_apart_by_pixels_and_ground(pack: Path) -> None:
    images = ucmerced(pack, "val")
    plain = of_network("x", untrained(TINY, 0)).encoder(images)
    kept = remembering(plain)
    part, gsd = images.pixels[:2, :, :64, :64], images.gsd_m[:2]
    for _ in range(2):
        for pixels, told in ((part, gsd), (part, gsd * 4), (part[::-1], gsd)):
            assert np.array_equal(kept.embed(pixels, told), plain.embed(pixels, told))


@pytest.mark.parametrize("variant", VARIANTS)
def test_blind_variants_are_those_that_a_wrong_ground_distance_does_not_move(pack: Path, variant: str) -> None:
    network = ScaleAlibi(TINY.model(variant))
    network.load_state_dict(untrained(TINY, 0).state_dict())
    images = ucmerced(pack, "val")
    encoder = of_network(variant, network).encoder(images)
    pixels, gsd = images.pixels[:1, :, :64, :64], images.gsd_m[:1]
    moved = not np.allclose(encoder.embed(pixels, gsd), encoder.embed(pixels, gsd * 30), atol=1e-6)
    assert encoder.reads_gsd == moved == (variant not in BLIND)


def test_hidden_patches_are_the_same_for_all_and_not_seen(pack: Path) -> None:
    images = ucmerced(pack, "val")
    a, b = (hide(images, TINY.model(v), 0.5) for v in ("none", "metres"))
    assert torch.equal(a.masked, b.masked)
    assert torch.equal(a.targets, b.targets)
    assert all(not set(k.tolist()) & set(m.tolist()) for k, m in zip(a.kept, a.masked, strict=True))
    assert patch_mean(a) == pytest.approx(1, abs=0.01)


# -- bootstrap ---------------------------------------------------------------------------------------------------------


def test_one_seed_has_the_interval_over_images() -> None:
    scores = np.random.default_rng(0).random((1, 400)) < 0.6
    ours, theirs = estimate(scores.astype(float)), interval(scores[0], seed=1)
    assert ours.value == pytest.approx(theirs.value)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)


def test_seeds_that_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    alike = np.repeat(rng.random((1, 400)) < 0.5, 5, axis=0).astype(float)
    apart = (rng.random((5, 400)) < np.array([0.1, 0.3, 0.5, 0.7, 0.9])[:, None]).astype(float)
    a, b = estimate(alike), estimate(apart)
    # images are the same for all seeds: five equal seeds say no more than one
    assert a.high - a.low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)
    assert b.high - b.low > 4 * (a.high - a.low)


def test_groups_are_drawn_whole() -> None:
    scores = np.repeat([[0.0, 1.0, 0.0, 1.0]], 100, axis=1).reshape(1, 400)
    groups = np.repeat(np.arange(4), 100)
    single, whole = estimate(scores), estimate(scores, groups)
    assert whole.high - whole.low > 5 * (single.high - single.low)


def test_the_strict_interval_is_wider_and_decides() -> None:
    rng = np.random.default_rng(0)
    found = estimate(rng.normal(0.11, 1, (3, 400)), comparisons=9)
    assert found.strict_low < found.low < found.value < found.high < found.strict_high
    assert estimate(rng.normal(1, 1, (3, 400)), comparisons=9).sign == 1
    assert estimate(rng.normal(-1, 1, (3, 400)), comparisons=9).sign == -1
    assert estimate(rng.normal(0, 1, (3, 400)), comparisons=9).sign == 0


def test_a_bootstrap_of_nothing_is_refused() -> None:
    for scores, groups in ((np.zeros((0, 3)), None), (np.zeros((2, 3)), np.zeros(2, dtype=np.int64))):
        with pytest.raises(AlidadeError, match="bootstrap over seeds and images"):
            estimate(scores, groups)


# -- the whole way -----------------------------------------------------------------------------------------------------


def test_every_run_is_trained_measured_and_written(measured: tuple[Path, Heard]) -> None:
    results, heard = measured
    rows = load(results)
    assert heard.said[0] == ("begun", 4, 3)
    assert [s[1:3] for s in heard.said if s[0] == "finished"] == [
        (TRIVIAL, 0), (UNTRAINED, 0), ("none", 0), ("metres", 0)
    ]  # fmt: skip
    assert {r.config_hash for r in rows} == {TINY.hash()}
    labels = {(r.protocol, r.dataset, r.condition, r.metric) for r in rows}
    for headline in HEADLINES:
        protocol, dataset, point, metric = headline.key
        for label in ("none", "metres", UNTRAINED):
            assert (protocol, dataset, label if point == "as is" else f"{label}, {point}", metric) in labels
    tokens = {r.condition: r.value for r in rows if (r.protocol, r.metric) == (COMPUTE, "tokens")}
    assert tokens["none"] == tokens["metres"] > 0
    wrong = {r.condition.split(",")[0] for r in rows if "GSD wrong" in r.condition}
    assert wrong == {"metres", UNTRAINED}


def test_scores_average_to_the_rows_beside_them(measured: tuple[Path, Heard]) -> None:
    results, _ = measured
    scores, checked = load_scores(beside(results)), 0
    for r in load(results):
        if r.protocol != COMPUTE:
            label, _, point = r.condition.partition(", ")
            found = scores[(r.config_hash, label, r.seed)][(r.protocol, r.dataset, point or "as is", r.metric)]
            assert (found.scores.mean(), len(found.scores)) == (pytest.approx(r.value, rel=1e-6), r.n)
            checked += 1
    assert checked > 100


def test_what_is_done_is_skipped_and_what_is_left_goes_on(
    measured: tuple[Path, Heard], pack: Path, tmp_path: Path
) -> None:
    results, _ = measured
    for path in (results, beside(results)):
        shutil.copy(path, tmp_path)
    before = (tmp_path / "results.jsonl").read_bytes()
    assert run_all(TINY, pack, tmp_path).said == []
    assert (tmp_path / "results.jsonl").read_bytes() == before
    # a run that was stopped before its closing rows were written is measured anew, the others are not
    without("metres", measured, tmp_path)
    heard = run_all(TINY, pack, tmp_path)
    assert [s[1] for s in heard.said if s[0] == "finished"] == ["metres"]
    again = [r for r in load(tmp_path / "results.jsonl") if r.condition == "metres" and r.protocol != COMPUTE]
    first = [r for r in load(results) if r.condition == "metres" and r.protocol != COMPUTE]
    assert [r.value for r in again] == [r.value for r in first] * 2


def test_other_steps_seeds_or_sizes_are_not_done(measured: tuple[Path, Heard]) -> None:
    done = {(TRIVIAL, 0), (UNTRAINED, 0), ("none", 0), ("metres", 0)}
    assert list(todo(TINY, done)) == []
    assert list(todo(replace(TINY, seeds=2), done)) == [(UNTRAINED, 1), ("none", 1), ("metres", 1)]
    assert list(todo(replace(TINY, variants=("rope",)), done)) == [("rope", 0)]
    others = {replace(TINY, **change).hash() for change in ({"steps": 4}, {"width": 64}, {"labels": 50}, {"keep": 0.6})}
    assert len(others | {TINY.hash()}) == 5
    assert replace(TINY, seeds=7, variants=("rope",)).hash() == TINY.hash()


def test_a_trained_run_whose_duration_is_unknown_is_trained_again(
    measured: tuple[Path, Heard], pack: Path, tmp_path: Path
) -> None:
    without("none", measured, tmp_path)
    own = tmp_path / "runs" / f"{TINY.hash()}-none-0"
    pretrain(TINY.training("none", 0), training_batches(TINY, pack), own)
    heard = run_all(TINY, pack, tmp_path)
    assert [s for s in heard.said if s[0] == "step"] == [("step", "none", 0, n) for n in (1, 2, 3)]
    assert (own / "speed.json").is_file()


def test_the_page_names_everything_and_is_the_same_to_the_byte(measured: tuple[Path, Heard], tmp_path: Path) -> None:
    results, _ = measured
    out = tmp_path / "page" / "bias.md"
    first = {p.name: p.read_bytes() for p in write_document(results, out)}
    second = {p.name: p.read_bytes() for p in write_document(results, out)}
    assert first == second
    assert sorted(first) == ["bias-differences.svg", "bias-image-size.svg", "bias-relative-gsd.svg", "bias.md"]
    page = first["bias.md"].decode()
    assert "Only 1 seed" in page
    assert "**No winner" in page or "**Winner" in page
    for word in ("`none`", "`metres`", "chance", "band statistics", "random convolution", "untrained", "patch mean",
                 "Bonferroni", "tokens", "3 steps", "told wrongly", "scenes", TINY.hash(),
                 "hardly needs positions"):  # fmt: skip
        assert word in page, word
    assert all(f"]({name})" in page for name in first if name.endswith(".svg"))
    assert all(len(set(map(len, (r.split("|") for r in block.splitlines())))) == 1
               for block in page.split("\n\n") if block.startswith("|"))  # fmt: skip


def test_a_clear_difference_makes_a_winner(measured: tuple[Path, Heard], tmp_path: Path) -> None:
    """Scores of the file are overwritten by made ones: `none` right everywhere, `metres` wrong everywhere."""
    results, _ = measured
    for path in (results, beside(results)):
        shutil.copy(path, tmp_path)
    for run, scored in load_scores(beside(results)).items():
        if run[1] in ("none", "metres"):
            made = {
                key: Scored(scores=np.full_like(s.scores, (run[1] == "none") != (key[3] == "error")), groups=s.groups)
                for key, s in scored.items()
            }
            append_scores(tmp_path / "results-scores.jsonl", run, made)
    page = write_document(tmp_path / "results.jsonl", tmp_path / "page.md")[0].read_text()
    assert "**Winner: `none`**, better on most of the 10 measures, worse on none." in page
    assert "alone in front" in page


@pytest.mark.parametrize("lost", [None, ("bias ablation: 5-NN", "eurosat-rgb/val", "as is", "accuracy")])
def test_measures_where_no_variant_beats_a_trivial_row_are_named(
    measured: tuple[Path, Heard], tmp_path: Path, lost: tuple[str, str, str, str] | None
) -> None:
    """Made scores: variants right and trivial rows wrong everywhere, but for one measure where all are wrong."""
    results, _ = measured
    for path in (results, beside(results)):
        shutil.copy(path, tmp_path)
    for run, scored in load_scores(beside(results)).items():
        made = {}
        for key, s in scored.items():
            right = run[1] in ("none", "metres") and key != lost
            made[key] = Scored(scores=np.full_like(s.scores, right != (key[3] == "error")), groups=s.groups)
        append_scores(tmp_path / "results-scores.jsonl", run, made)
    page = write_document(tmp_path / "results.jsonl", tmp_path / "page.md")[0].read_text()
    found = [line for line in page.splitlines() if line.startswith("**No variant beats the trivial rows on")]
    assert [line.split("**")[1] for line in found] == (
        [] if lost is None else ["No variant beats the trivial rows on: EuroSAT RGB, 5-NN."]
    )


def test_a_result_without_its_scores_is_refused(measured: tuple[Path, Heard], tmp_path: Path) -> None:
    results, _ = measured
    shutil.copy(results, tmp_path)
    with pytest.raises(ResultsError, match="scores"):
        write_document(tmp_path / "results.jsonl", tmp_path / "page.md")
    lines = beside(results).read_text().splitlines(keepends=True)
    (tmp_path / "results-scores.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(ResultsError, match="without its scores"):
        write_document(tmp_path / "results.jsonl", tmp_path / "page.md")
    (tmp_path / "results-scores.jsonl").write_text(lines[0] + lines[1].replace('"n": ', '"n": 9'))
    with pytest.raises(ResultsError, match="line 2"):
        write_document(tmp_path / "results.jsonl", tmp_path / "page.md")
    assert not (tmp_path / "page.md").exists()


def test_runs_that_were_not_closed_are_left_out(measured: tuple[Path, Heard]) -> None:
    results, _ = measured
    rows = [r for r in load(results) if (r.condition, r.metric) != ("none", LAST) or r.protocol != COMPUTE]
    rows = [r for r in rows if not (r.condition == "none" and r.protocol == COMPUTE)]
    assert setting_of(rows, load_scores(beside(results)), None).variants == ("metres",)


# -- the command line --------------------------------------------------------------------------------------------------


def test_an_empty_results_file_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    for path in (empty, tmp_path / "none.jsonl"):
        assert call(monkeypatch, "ablate", "document", "--results", path, "--out", tmp_path / "page.md") == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert len(told.splitlines()) <= 4
    assert not (tmp_path / "page.md").exists()


def test_an_unknown_variant_and_an_unfit_width_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "ablate", "bias", "--data", tmp_path, "--variants", "metres,feet", "--commit", "x") == 2
    assert "feet" in capsys.readouterr().err
    assert call(monkeypatch, "ablate", "bias", "--data", tmp_path, "--width", "100", "--commit", "x") == 2
    assert "--width" in capsys.readouterr().err


def test_the_commands_run_from_pack_to_page(
    measured: tuple[Path, Heard],
    pack: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The options make the very setting that was measured, so that only the stopped run is left."""
    results = without("metres", measured, tmp_path)
    size = ("--steps", 3, "--batch", 4, "--width", 32, "--depth", 1, "--heads", 2, "--seeds", 1)
    where = ("--results", results, "--run", tmp_path / "runs", "--commit", "abc")
    assert call(monkeypatch, "ablate", "bias", "--data", pack, "--variants", "metres,none", *size, *where) == 0
    said = capsys.readouterr()
    assert f"1 runs measured, setting {TINY.hash()}" in said.out
    assert "metres, seed 0:" in said.err
    assert call(monkeypatch, "ablate", "document", "--results", results, "--out", tmp_path / "page.md") == 0
    assert (tmp_path / "page.md").read_text().startswith("# Positions in attention, compared")


@pytest.mark.pack
@pytest.mark.slow
def test_one_run_on_the_real_pack(tmp_path: Path) -> None:
    if "ALIDADE_PACK" not in os.environ:
        pytest.skip("ALIDADE_PACK names no data pack")
    config = AblationConfig(variants=("metres",), seeds=1, steps=2, labels=200, queries=100, aerial_labels=42)
    closing = Result(
        protocol=COMPUTE, condition=TRIVIAL, dataset="all parts", split_hash="x", model="x", config_hash=config.hash(),
        commit="x", seed=0, n=1, metric=LAST, value=0.0, low=0.0, high=0.0, time="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    # random convolutions of all pairs and of 256 px images take minutes; the other tests have them on made images
    append(tmp_path / "results.jsonl", [closing, replace(closing, condition=UNTRAINED)])
    run_all(config, Path(os.environ["ALIDADE_PACK"]), tmp_path)
    page = write_document(tmp_path / "results.jsonl", tmp_path / "page.md")[0].read_text()
    assert "`metres`" in page
    rows = {(r.protocol, r.dataset, r.condition): r for r in load(tmp_path / "results.jsonl")}
    assert rows[("bias ablation: 5-NN", "eurosat-rgb/val", "metres")].n == 100
    assert rows[("bias ablation: 5-NN", "ucmerced/val", "metres")].n == 210

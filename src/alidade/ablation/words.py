"""The page's sentences. What depends on numbers is made from them; nothing is claimed that they do not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from alidade.ablation.config import REFERENCE
from alidade.ablation.run import SHAPE
from alidade.ablation.statistics import DRAWS, Setting

READING = (
    "Right of the line is better than the default, whatever the measure. Orange: the interval stays off zero after the "
    "correction for many comparisons; grey: it does not."
)

GSD = (
    "EuroSAT RGB validation images shrunk by block means to a share of their resolution, nearest neighbours in the "
    "gallery at native resolution (Scale-MAE's protocol). The model is told the true, coarser GSD. Rows *told wrongly* "
    "are told the native one; variants that know no GSD have none. At 12.5 % an image is a single token, so that "
    "attention has nothing to weigh and positions can act only through what was learnt elsewhere."
)

SIZE = (
    "The middle of UC Merced's images at 0.3 m, gallery and queries alike. Training never saw more than 64 px, 64 "
    "tokens, at once: 128 px are 4 times and 256 px 16 times as many."
)

COMPUTE = (
    "Means over seeds. Steps, images (each view counts) and tokens (those that encoders computed, after masking) are "
    "equal by construction: a seed gives all variants the same batches, masks and initial values. Positions have no "
    "parameters. Seconds are of the machine that measured, which other work may have shared; processor seconds suffer "
    "less from it."
)

LIMITS = """\
- **Small and short.** What is compared is how quickly positions help a small model, not where large ones end. A ranking
  at this size can turn over with more data, width or steps.
- **Pooled accuracy hardly needs positions.** EuroSAT's classes differ in colour and texture, which a mean and a
  deviation over a bag of patches hold. A variant that is no worse than `none` there has shown nothing about positions.
  Retrieval, reconstruction and other sizes ask more of them.
- **The decoder is told where.** In all variants mask tokens carry sin-cos ground coordinates, so `none` is none in the
  encoder only, and reconstruction error understates what positions are worth.
- **Few heads.** Distance variants spread their lengths over the whole range from 5 m to 1.25 km, which leaves one or
  two of four heads for each ground resolution; distance in patches has all of them at every resolution. With more heads
  this handicap shrinks.
- **`metres-and-scale` differs from `metres` only across scales**, which means in the fusion encoder on nested views.
  Measures without fusion see it through training alone.
- **Nested views are RGB at 0.3 and 0.6 to 1.2 m.** The pack has no high-resolution imagery over Sentinel pixels, so
  the gap from 10 m to 0.3 m over the same ground is not tried.
- **Cross-sensor windows are few** and come from a few scenes, which the bootstrap draws whole: their intervals are
  wide. EuroSAT100 has few images too; it is here for its bands, not for its precision.
- **Validation parts only.** Nothing here was measured on a test part, and nothing was tuned per variant: rate, lengths
  and steps were set once for all."""


def opening(found: Setting, results: Path, out: Path) -> str:
    """Title, how the page is made, and what was done."""
    rows = [r for by_run in found.rows.values() for r in by_run.values()]
    commits = ", ".join(f"`{c}`" for c in sorted({r.commit for r in rows}))
    others = (
        f" The file also holds other settings ({', '.join(found.others)}), which are not mixed in."
        if found.others
        else ""
    )
    made = f"`alidade ablate document --results {results.as_posix()} --out {out.as_posix()}`"
    when = f"{min(r.time for r in rows)} to {max(r.time for r in rows)}"
    size = {name: round(next(iter(found.compute[name].values()))) for name in SHAPE}
    return (
        "# Positions in attention, compared\n\n"
        f"Made by {made} from the results file and the scores beside it. Setting `{found.hash}`; code {commits}; "
        f"measured {when}.{others}\n\n"
        f"One small network ({size['depth']} layers and one of fusion, {size['width']} wide, {size['heads']} heads, "
        f"8 px patches), trained for {size['steps']:,} steps of {size['batch']} samples by contrast and masked "
        "reconstruction on the train parts of the public data pack: EuroSAT RGB and UC Merced at two ground "
        "resolutions each, UC Merced nested in coarser views of the same ground, Sentinel-1 with optical windows of "
        "California, and 13-band EuroSAT100 with its visible bands. Between variants only the positions change; data, "
        "order, masks, steps and initial values are the same for one seed."
    )


def verdict(found: Setting, wins: Mapping[str, int], losses: Mapping[str, int], measures: int) -> str:
    """What the numbers say, in words."""
    if REFERENCE not in found.variants:
        return f"`{REFERENCE}` was not measured, so nothing is compared with it."
    seeds = max((len(found.seeds(key, REFERENCE)) for key in found.rows), default=0)
    few = "" if seeds >= 5 else f" Only {seeds} seed{'s' if seeds > 1 else ''}: not enough to judge variants by."

    def told(counts: Mapping[str, int]) -> str:
        return ", ".join(f"`{v}` on {n}" for v, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    better = (
        f"Better than `{REFERENCE}` after correction: {told(wins)}."
        if wins
        else (f"No variant is significantly better than `{REFERENCE}` on any measure.")
    )
    worse = f"Worse after correction: {told(losses)}." if losses else "None is significantly worse."
    clear = {v: n for v, n in wins.items() if n > measures / 2 and v not in losses}
    winner = (
        f"**Winner: `{max(clear, key=lambda v: clear[v])}`**, better on most of the {measures} measures, worse on none."
        if clear
        else f"**No winner: none is significantly better than `{REFERENCE}` on most of the {measures} measures.**"
    )
    return f"{winner} {better} {worse}{few}"


def trivial(beaten: Sequence[str]) -> list[str]:
    """A warning where training was too short to beat what nothing has trained."""
    if not beaten:
        return []
    return [
        f"**No variant beats the trivial rows on: {'; '.join(beaten)}.** Differences between variants there say "
        "little: the models have not learnt what the measure asks for."
    ]


def pairing(comparisons: int) -> str:
    """How differences and their intervals were made, with the caution that belongs to them."""
    return (
        "Variant minus default, in the measure's own unit: for errors, less is better. Differences are paired: the "
        f"same seed, images and masks. Intervals are 95 % percentile bootstraps with {DRAWS:,} draws over seeds and "
        "images together (windows of one scene come and go together). Percentiles over a handful of seeds are "
        "somewhat too narrow.\n\n"
        f"Many intervals are shown, and of a hundred 95 % intervals around nothing five miss zero. † marks differences "
        f"whose interval stays off zero when it is widened for {comparisons} comparison"
        f"{'s' if comparisons > 1 else ''} within one measure (Bonferroni). No correction is made across measures: one "
        "† in a row of many is a hint, not a finding."
    )

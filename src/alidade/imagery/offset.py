"""Whether a Sentinel-2 file carries the +1000 of processing baseline 04.00: what is said and what is seen.

Since baseline 04.00 (January 2022) ESA adds 1000 to every stored number, so that reflectance is
``stored · 1e-4 - 0.1``. Neither date nor baseline settles it: old scenes are processed again with new
baselines, and some archives take the 1000 away again and leave the metadata as they were. So the pixels are
always asked as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alidade.errors import SensorError
from alidade.imagery.header import Declared, Header
from alidade.imagery.product_names import facts_from_name

OFFSET = -0.1
"""The reflectance to add after scaling, where 1000 has been added to the stored numbers."""

_FIRST_BASELINE = 400
_DARK = 900
_FLOOR = (900, 1200)
_ENOUGH = 64

_VISIBLE = ("B01", "B02", "B03", "B04")
_SHORT_WAVE = ("B11", "B12")


class Verdict(StrEnum):
    """What the pixels say about the added 1000."""

    ADDED = "stored numbers with 1000 added"
    PLAIN = "stored numbers without 1000 added"
    UNCLEAR = "pixels that do not settle it"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A verdict and its reason in words."""

    verdict: Verdict
    reason: str


def weigh(counts: Mapping[str, NDArray[Any]], *, level: str) -> Evidence:
    """Judge by sampled pixels whether 1000 was added.

    - B10 sees hardly any ground: its median is below 100 without and just above 1000 with the 1000. Only
      cirrus everywhere makes it unclear.
    - With the 1000, a number below 900 is a reflectance below -0.01. At the top of the atmosphere there is
      none; at the bottom some arise in deep shadow. So 1 % (L1C) or 10 % (L2A) of a band below 900 means that
      nothing was added.
    - At the bottom of the atmosphere (L2A), numbers that start between 900 and 1200 in the visible and also
      in the short-wave infrared mean that 1000 was added: no common surface has a least reflectance of 0.1 in
      both. At the top of the atmosphere scattering gives the visible bands such a floor by itself, so L1C
      without B10 cannot be proved to have the 1000.

    The limits were set on EuroSAT, TerraMesh, BigEarthNet, SEN12MS-CR and Sen1Floods11 images, where no
    verdict was wrong; single infrared bands and scenes full of cloud stay unclear.

    Args:
        counts: valid stored numbers of each band by name, in units of 1e-4 reflectance, any shape.
        level: ``"l1c"`` or ``"l2a"``.

    Returns:
        The verdict; unclear where fewer than 64 pixels are given.
    """
    samples = {name: np.ravel(c) for name, c in counts.items() if c.size >= _ENOUGH}
    if not samples:
        return Evidence(verdict=Verdict.UNCLEAR, reason="too few valid pixels were found")
    cirrus = samples.pop("B10", None)
    if cirrus is not None:
        middle, low = float(np.median(cirrus)), float(np.percentile(cirrus, 1))
        reason = f"the median of B10 is {middle:.0f}"
        if middle < 500:
            return Evidence(verdict=Verdict.PLAIN, reason=reason)
        if middle > _FLOOR[0] and _FLOOR[0] <= low <= _FLOOR[1]:
            return Evidence(verdict=Verdict.ADDED, reason=reason)
    shares = {name: float(np.mean((c > 0) & (c < _DARK))) for name, c in samples.items()}
    if not shares:
        return Evidence(verdict=Verdict.UNCLEAR, reason="B10 is full of cirrus")
    darkest = max(shares, key=lambda name: shares[name])
    reason = f"{shares[darkest]:.1%} of {darkest} lies between 0 and {_DARK}"
    if shares[darkest] >= (0.01 if level == "l1c" else 0.1):
        return Evidence(verdict=Verdict.PLAIN, reason=reason)
    floors = [_floor(samples, group) for group in (_VISIBLE, _SHORT_WAVE)]
    if level == "l2a" and shares[darkest] < 0.005 and all(_FLOOR[0] <= f <= _FLOOR[1] for f in floors):
        visible, short_wave = floors
        reason = f"the visible bands start at {visible:.0f} and the short-wave infrared at {short_wave:.0f}"
        return Evidence(verdict=Verdict.ADDED, reason=reason)
    return Evidence(verdict=Verdict.UNCLEAR, reason=reason)


def _floor(samples: Mapping[str, NDArray[Any]], group: tuple[str, ...]) -> float:
    return min((float(np.percentile(samples[n], 1)) for n in group if n in samples), default=np.inf)


def told_offset(header: Header) -> tuple[float, str] | None:
    """The offset in reflectance that the file or its name tells, and who says so; ``None`` if neither does.

    Scale and offset of the bands are read elsewhere and go before this.
    """
    tags = header.tags
    for tag in ("RADIO_ADD_OFFSET", "BOA_ADD_OFFSET"):
        if tag in tags and (counts := _number(tags[tag])) is not None:
            return counts * 1e-4, f"the tag {tag}={tags[tag]}"
    for tag in ("ALIDADE_BASELINE", "PROCESSING_BASELINE"):
        if tag in tags and (baseline := _number(tags[tag])) is not None:
            return _of_baseline(round(baseline * 100)), f"the tag {tag}={tags[tag]}"
    named = facts_from_name(header.path).baseline
    return None if named is None else (_of_baseline(named), f"N{named:04d} in the file name")


def _of_baseline(baseline: int) -> float:
    return OFFSET if baseline >= _FIRST_BASELINE else 0.0


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\s*-?\d{1,6}(\.\d{1,6})?\s*", text) else None


def resolve_offset(header: Header, declared: Declared, in_bands: float | None, evidence: Evidence) -> tuple[float, str]:
    """The offset to use, in reflectance, and one sentence on how it was found.

    What the user declares is used even against the pixels (the sentence says so). What the file says is used
    only if the pixels do not contradict it.

    Args:
        header: the file's own account.
        declared: the user's account.
        in_bands: the offset in the bands' own metadata, ``None`` where they have neither scale nor offset.
        evidence: the pixels' account.

    Raises:
        SensorError: file and pixels contradict each other, the file contradicts itself and the pixels do not
            settle it, or nothing tells.
    """
    seen, why = evidence.verdict, evidence.reason
    if declared.offset is not None:
        sentence = f"{declared.offset:g}: you declared it."
        if _contradicts(declared.offset, seen):
            sentence += f" The pixels look like {seen}: {why}."
        return declared.offset, sentence
    told = told_offset(header)
    if in_bands is not None:
        # many writers set a scale and leave the offset at its default: 0 against another account is no proof
        doubtful = in_bands == 0 and "ALIDADE_SENSOR" not in header.tags and seen is Verdict.UNCLEAR
        if doubtful and told is not None and told[0] != 0:
            got = f"0 by the bands' metadata, but {told[0]:g} by {told[1]}, and {seen}"
            raise _refuse(header.path, got, "both to agree")
        told = in_bands, "the bands' metadata"
    if told is None:
        if seen is Verdict.UNCLEAR:
            raise _refuse(header.path, f"nothing in the file, and {seen} ({why})", "one of them to tell")
        offset = OFFSET if seen is Verdict.ADDED else 0.0
        return offset, f"{offset:g}: the file does not tell, but its pixels are {seen} ({why})."
    offset, origin = told
    if _contradicts(offset, seen):
        raise _refuse(header.path, f"{offset:g} by {origin}, but {seen} ({why})", "both to agree")
    agreement = "does not settle it" if seen is Verdict.UNCLEAR else "agrees"
    return offset, f"{offset:g} by {origin}; a sample of the pixels {agreement} ({why})."


def _contradicts(offset: float, seen: Verdict) -> bool:
    if seen is Verdict.UNCLEAR:
        return False
    return (offset < OFFSET / 2) != (seen is Verdict.ADDED)


def _refuse(path: str, got: str, expected: str) -> SensorError:
    return SensorError(
        f"{path}: Sentinel-2 offset",
        got=got,
        expected=expected,
        next_step="Pass --offset -0.1 if 1000 was added to the stored numbers (baseline 04.00 and later), "
        "else --offset 0 (in Python: Declared(offset=...)).",
    )

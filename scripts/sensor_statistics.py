"""Statistics of the bands, computed from the training parts of the data pack, beside those of the catalogue.

    python scripts/sensor_statistics.py --data PATH        # computed figures beside the catalogue's
    python scripts/sensor_statistics.py --docs docs/sensors.md   # writes the page from the catalogue

Only generic-rgb takes its figures from here (UC Merced, 1,680 images). The other sets are too small to
stand for a sensor (60 chips, four places); they check units, offsets and band order of the published
figures.
"""

from __future__ import annotations

import argparse
import csv
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from PIL import Image

from alidade.imagery.bands import Sensor
from alidade.imagery.normalize import DB_FLOOR
from alidade.imagery.sensors import SENSORS, SOURCES

Values = npt.NDArray[np.float64]
DB_CEILING = 30.0
"""No natural surface scatters back more; what lies above it in the sets used here is damage."""

L1C = SENSORS["sentinel-2-l1c"].band_names
L2A = SENSORS["sentinel-2-l2a"].band_names
EUROSAT_FILE_ORDER = (*(b for b in L1C if b != "B8A"), "B8A")

# Sentinel-2 files with the +1000 of processing baseline 04.00. The pack's README says that no S2L2A file
# has it, but in 433D no band goes below about 1,000, and left in it would make blue brighter at the
# surface than at the top of the atmosphere.
OFFSETS = {
    "S2L1C": {"282D_485L_3_3": 1000, "433D_629L_3_1": 1000, "609U_541L_3_0": 1000},
    "S2L2A": {"433D_629L_3_1": 1000},
}

PREAMBLE = """\
# Sensors

Made by `python scripts/sensor_statistics.py --docs docs/sensors.md` from `alidade.imagery.sensors`; a
test keeps the two equal. Bands are found by name (or by STAC common name, which only one band may have),
never by position. Mean and standard deviation are the fixed statistics of the normalisation, in the unit
named for each sensor. The last column numbers the sources at the end of the page: first that of
wavelength, width and ground sample distance (GSD), then that of the statistics.

Sentinel-2 files tell their offset by the processing baseline; Sentinel-1 files have to declare dB or
linear power. A sensor that is not listed can be described by its wavelengths:
`generic:0.490,0.560,0.665,0.842@10` means four reflectance bands at 10 m, each with the statistics of the
Sentinel-2 L2A band nearest in wavelength.

The Landsat sensors are normalised by Sentinel-2's figures as well. Published Landsat statistics exist
(Clay, `landsat-c2l2-sr`), but they leave out the coastal band, do not say whether fill and cloud were
counted, and spread the visible bands about twice as widely; with Sentinel-2's, one reflectance has nearly
one normalised value in every optical sensor.
"""


def statistics(batches: Iterator[Values]) -> tuple[int, Values, Values]:
    """Pixel count, mean and standard deviation per band of batches shaped ``[N, C]``."""
    count = 0
    total = square = np.zeros(1)
    for batch in batches:
        count += len(batch)
        total = total + batch.sum(axis=0)
        square = square + (batch * batch).sum(axis=0)
    mean = total / count
    return count, mean, np.sqrt(square / count - mean * mean)


def _pixels(path: Path) -> Values:
    """All pixels of a raster as ``[N, C]``."""
    with rasterio.open(path) as file:
        values: Values = file.read().astype(np.float64)
    return values.reshape(len(values), -1).T


def _reflectance(path: Path, offset: int, order: tuple[str, ...], wanted: tuple[str, ...]) -> Values:
    stored = _pixels(path)[:, [order.index(b) for b in wanted]]
    return (stored[(stored > 0).all(axis=1)] - offset) / 10_000


def sentinel_2_l1c(pack: Path) -> Iterator[Values]:
    """EuroSAT100 train and TerraMesh, as reflectance."""
    with (pack / "eurosat_ms/index.csv").open(newline="") as table:
        for row in csv.DictReader(table):
            if row["split"] == "train":
                yield _reflectance(pack / "eurosat_ms" / row["file"], 0, EUROSAT_FILE_ORDER, L1C)
    for path in sorted((pack / "s1s2/terramesh/S2L1C").glob("*.tif")):
        yield _reflectance(path, OFFSETS["S2L1C"].get(path.stem, 0), L1C, L1C)


def sentinel_2_l2a(pack: Path) -> Iterator[Values]:
    """TerraMesh, and BigEarthNet at the 60 m of its coarsest bands so that all weigh alike; reflectance."""
    for path in sorted((pack / "s1s2/terramesh/S2L2A").glob("*.tif")):
        yield _reflectance(path, OFFSETS["S2L2A"].get(path.stem, 0), L2A, L2A)
    for patch in sorted((pack / "s1s2/bigearthnet/S2").iterdir()):
        bands = []
        for name in L2A:
            with rasterio.open(patch / f"{patch.name}_{name}.tif") as file:
                stored = file.read(1).astype(np.float64)
            side = stored.shape[0] // 20
            bands.append(stored.reshape(20, side, 20, side).mean(axis=(1, 3)).ravel() / 10_000)
        yield np.stack(bands, axis=1)


def _decibels(values: Values) -> Values:
    # NaN compares as False
    return values[((values > DB_FLOOR) & (values < DB_CEILING)).all(axis=1)]


def sentinel_1_grd(pack: Path) -> Iterator[Values]:
    """Sen1Floods11, SEN12MS-CR and BigEarthNet, VV and VH in dB."""
    for folder in ("sen1floods11/S1", "sen12mscr/S1"):
        for path in sorted((pack / "s1s2" / folder).glob("*.tif")):
            yield _decibels(_pixels(path))
    for patch in sorted((pack / "s1s2/bigearthnet/S1").iterdir()):
        yield _decibels(np.hstack([_pixels(patch / f"{patch.name}_{name}.tif") for name in ("VV", "VH")]))


def sentinel_1_rtc(pack: Path) -> Iterator[Values]:
    """TerraMesh, VV and VH in dB."""
    for path in sorted((pack / "s1s2/terramesh/S1RTC").glob("*.tif")):
        yield _decibels(_pixels(path))


def naip_rgbn(pack: Path) -> Iterator[Values]:
    """One place in North Dakota in five years, 0-255."""
    for path in sorted((pack / "scenes").glob("naip_*.tif")):
        stored = _pixels(path)
        yield stored[(stored > 0).any(axis=1)]


def generic_rgb(pack: Path) -> Iterator[Values]:
    """UC Merced train, 0-255."""
    with zipfile.ZipFile(pack / "ucm_captions/images_train.zip") as archive:
        for name in sorted(archive.namelist()):
            with Image.open(io.BytesIO(archive.read(name))) as image:
                yield np.asarray(image.convert("RGB"), dtype=np.float64).reshape(-1, 3)


COMPUTED = {
    "sentinel-1-grd": sentinel_1_grd,
    "sentinel-1-rtc": sentinel_1_rtc,
    "sentinel-2-l1c": sentinel_2_l1c,
    "sentinel-2-l2a": sentinel_2_l2a,
    "naip-rgbn": naip_rgbn,
    "generic-rgb": generic_rgb,
}


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _sensor_section(sensor: Sensor, numbers: dict[str, int]) -> list[str]:
    native = sensor.native
    offset = "told by the processing baseline" if native.offset is None else f"{native.offset:g}"
    stored = (
        "told by the file"
        if sensor.kind == "sar"
        else f"value = stored × {native.scale:g} + offset; offset {offset}; "
        f"nodata {'none' if native.nodata is None else f'{native.nodata:g}'}"
    )
    lines = [
        f"## {sensor.title}",
        "",
        f"`{sensor.id}`, {sensor.kind}. Unit of the statistics: {sensor.unit}. Encoding: {stored}.",
        "",
        "| band | common name | centre µm | width µm | GSD m | mean | std | source |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for band in sensor.bands:
        lines.append(
            f"| {band.name} | {band.common_name or ''} | {_centre(band.wavelength_um)} "
            f"| {_figure(band.bandwidth_um)} | {band.gsd_m:g} | {_figure(band.mean)} | {_figure(band.std)} "
            f"| {numbers[band.source]}, {numbers[band.statistics_source]} |"
        )
    return [*lines, ""]


def _centre(wavelength_um: float) -> str:
    return f"{wavelength_um:.4f}" if wavelength_um < 100 else f"{wavelength_um:,.0f}"


def catalogue_page() -> str:
    """The text of ``docs/sensors.md``."""
    numbers = {key: n for n, key in enumerate(SOURCES, start=1)}
    lines = [PREAMBLE]
    for sensor in SENSORS.values():
        lines += _sensor_section(sensor, numbers)
    lines += ["## Sources", ""]
    lines += [f"{number}. `{key}`: {SOURCES[key]}" for key, number in numbers.items()]
    return "\n".join(lines) + "\n"


def compare(pack: Path) -> None:
    print(f"{'sensor':16} {'band':5} {'pixels':>12} {'mean':>9} {'(listed)':>9} {'std':>9} {'(listed)':>9}")
    for identifier, batches in COMPUTED.items():
        count, mean, std = statistics(batches(pack))
        for band, m, s in zip(SENSORS[identifier].bands[: len(mean)], mean, std, strict=True):
            figures = f"{m:9.4f} {band.mean:9.4f} {s:9.4f} {band.std:9.4f}"
            print(f"{identifier:16} {band.name:5} {count:12,} {figures}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Band statistics from the data pack, and the sensors page.")
    parser.add_argument("--data", type=Path, help="the data pack: print its statistics beside the catalogue's")
    parser.add_argument("--docs", type=Path, help="write the sensors page here")
    arguments = parser.parse_args()
    if not (arguments.docs or arguments.data):
        parser.error("give --data, --docs or both")
    if arguments.docs:
        arguments.docs.write_text(catalogue_page(), encoding="utf-8")
    if arguments.data:
        compare(arguments.data)


if __name__ == "__main__":
    main()

"""The figures behind the sensor catalogue and where each comes from. ``sensors`` turns them into objects."""

from __future__ import annotations

SOURCES: dict[str, str] = {
    "esa-s1-grd": (
        "ESA / Sentinel-1 Mission Performance Centre, Sentinel-1 Product Definition, S1-RS-MDA-52-7440, "
        "issue 2/7, 2016: C-band carrier of 5.405 GHz, and 10 m pixel spacing of the high-resolution IW "
        "GRD product."
    ),
    "s1-rtc": (
        "D. Small, Flattening Gamma: Radiometric Terrain Correction for SAR Imagery, IEEE TGRS 49(8), "
        "2011, doi:10.1109/TGRS.2011.2120616, for what the product is (gamma nought, slopes corrected); "
        "carrier and the 10 m spacing are those of the IW GRD it is made from (Sentinel-1 Product "
        "Definition, S1-RS-MDA-52-7440)."
    ),
    "esa-s2-msi": (
        "ESA, Sentinel-2 User Handbook, issue 1 revision 2, 2015: central wavelength, band width and "
        "resolution of the MSI. These are the design values; the measured centres of each satellite "
        "(ESA, Sentinel-2 Spectral Response Functions, COPE-GSEG-EOPG-TN-15-0007) lie up to about 12 nm "
        "away."
    ),
    "usgs-tm": (
        "USGS, band designations of the Landsat satellites: Thematic Mapper band limits, centre and "
        "width taken from the limits; 30 m. Encoding (x 0.0000275 - 0.2, fill 0): USGS, Landsat 4-7 "
        "Collection 2 Level 2 Science Product Guide, LSDS-1618."
    ),
    "usgs-etm": (
        "USGS, band designations of the Landsat satellites: Enhanced Thematic Mapper Plus band limits, "
        "centre and width taken from the limits; 30 m. Encoding (x 0.0000275 - 0.2, fill 0): USGS, "
        "Landsat 4-7 Collection 2 Level 2 Science Product Guide, LSDS-1618."
    ),
    "usgs-oli": (
        "USGS, Landsat 8-9 Operational Land Imager band limits to the nanometre, as the Earth Engine "
        "catalogue lists them for Collection 2 Level 2; centre and width taken from the limits; 30 m. "
        "Encoding (x 0.0000275 - 0.2, fill 0): USGS, Landsat 8-9 OLI-TIRS Collection 2 Level 2 Data "
        "Format Control Book, LSDS-1328."
    ),
    "naip-ads100": (
        "USDA names no wavelengths for NAIP: contractors fly different cameras. The limits are those of "
        "the Leica ADS100 (red 619-651, green 525-585, blue 435-495, near infrared 808-882 nm), as the "
        "metadata of the 2018 Hexagon imagery served by the Tahoe Regional Planning Agency gives them. "
        "0.6 m: USDA NAIP metadata of 2018-2020; most earlier years are 1 m."
    ),
    "stac-eo-rgb": (
        "STAC Electro-Optical extension v1.1: middle and width of the ranges named red, green and blue. "
        "A nominal value: an unknown camera has none. 0.3 m is the resolution of UC Merced, which the "
        "statistics are from."
    ),
    "user-wavelength": ("Wavelength and ground sample distance as the caller gave them; band width unknown."),
    "ssl4eo-s12": (
        "Y. Wang et al., SSL4EO-S12, IEEE GRSM 11(3), 2023, arXiv:2211.07044, v1.0: band statistics its "
        "authors calculated from 50,000 samples, in "
        "src/benchmark/pretrain_ssl/datasets/SSL4EO/ssl4eo_dataset.py of zhu-xlab/SSL4EO-S12 at "
        "1dc0c831. Sentinel-2 figures are divided by 10,000 here; they hold no offset of processing "
        "baseline 04.00 (those of v1.1 do: they are 1,000 higher). Sentinel-1 figures are dB."
    ),
    "ssl4eo-s12-by-analogy": (
        "Not measured: no open statistics of HH and HV were found. HH takes the figures of VV and HV "
        "those of VH of the same product (co-polarised from co-polarised, cross-polarised from "
        "cross-polarised)."
    ),
    "terramesh": (
        "IBM, S1RTC statistics in dB of TerraMesh (B. Blumenstiel et al., 2025, arXiv:2504.11172) that "
        "TerraMind was trained with: v1_pretraining_mean and v1_pretraining_std in "
        "terratorch/models/backbones/terramind/model/terramind_register.py of IBM/terratorch at "
        "213d29a6."
    ),
    "terramesh-by-analogy": (
        "Not measured: no open statistics of HH and HV were found. HH takes the figures of VV and HV "
        "those of VH of the same product (TerraMesh S1RTC)."
    ),
    "nearest-s2-l2a": (
        "Not measured on this sensor: mean and deviation of the Sentinel-2 L2A band with the nearest "
        "centre wavelength (SSL4EO-S12). One reflectance therefore has nearly one normalised value in "
        "every optical sensor."
    ),
    "clay-naip": (
        "Clay Foundation, configs/metadata.yaml of Clay-foundation/model at 0fa6dc7e: means and "
        "deviations of NAIP (8-bit) in the training data of the Clay model."
    ),
    "ucmerced-train": (
        "Computed by scripts/sensor_statistics.py over all pixels of the 1,680 training images of UC "
        "Merced Land Use (Y. Yang, S. Newsam, ACM GIS 2010), decoded from a JPEG copy."
    ),
    "not-measured-8-bit": ("Not measured: the middle of the 8-bit range and a quarter of it."),
    "s1s2-ca-train": (
        "Computed by scripts/pair_statistics.py over all pixels of the 61 California training scenes of the "
        "Sentinel-1 and Sentinel-2 pairs (set s1s2_ca_tx)."
    ),
}

SPEED_OF_LIGHT_UM_GHZ = 299_792.458
"""Speed of light in µm·GHz: divided by a carrier frequency in GHz it gives the wavelength in µm."""

S1_WAVELENGTH_UM = SPEED_OF_LIGHT_UM_GHZ / 5.405

# name: mean, standard deviation, both in dB
S1_GRD: dict[str, tuple[float, float]] = {
    "VV": (-12.54847273, 5.25697717),
    "VH": (-20.19237134, 5.91150917),
}
S1_RTC: dict[str, tuple[float, float]] = {"VV": (-10.93, 4.391), "VH": (-17.329, 4.459)}
S1_ANALOGUE: dict[str, str] = {"HH": "VV", "HV": "VH"}

# name, common name, centre nm, width nm, GSD m
S2_BANDS: tuple[tuple[str, str, float, float, float], ...] = (
    ("B01", "coastal", 443, 20, 60),
    ("B02", "blue", 490, 65, 10),
    ("B03", "green", 560, 35, 10),
    ("B04", "red", 665, 30, 10),
    ("B05", "rededge071", 705, 15, 20),
    ("B06", "rededge075", 740, 15, 20),
    ("B07", "rededge078", 783, 20, 20),
    ("B08", "nir", 842, 115, 10),
    ("B8A", "nir08", 865, 20, 20),
    ("B09", "nir09", 945, 20, 60),
    ("B10", "cirrus", 1375, 30, 60),
    ("B11", "swir16", 1610, 90, 20),
    ("B12", "swir22", 2190, 180, 20),
)

# name: mean, standard deviation, both of reflectance x 10,000
S2_L1C: dict[str, tuple[float, float]] = {
    "B01": (1605.57504906, 786.78685367),
    "B02": (1390.78157673, 850.34818441),
    "B03": (1314.8729939, 875.06484736),
    "B04": (1363.52445545, 1138.84957046),
    "B05": (1549.44374991, 1122.17775652),
    "B06": (2091.74883118, 1161.59187054),
    "B07": (2371.7172463, 1274.39184232),
    "B08": (2299.90463006, 1248.42891965),
    "B8A": (2560.29504086, 1345.52684884),
    "B09": (830.06605044, 577.31607053),
    "B10": (22.10351321, 51.15431158),
    "B11": (2177.07172323, 1336.09932639),
    "B12": (1524.06546312, 1136.53823676),
}
S2_L2A: dict[str, tuple[float, float]] = {
    "B01": (752.40087073, 1108.02887453),
    "B02": (884.29673756, 1155.15170768),
    "B03": (1144.16202635, 1183.6292542),
    "B04": (1297.47289228, 1368.11351514),
    "B05": (1624.90992062, 1370.265037),
    "B06": (2194.6423161, 1355.55390699),
    "B07": (2422.21248945, 1416.51487101),
    "B08": (2517.76053101, 1474.78900051),
    "B8A": (2581.64687018, 1439.3086061),
    "B09": (2645.51888987, 1582.28010962),
    "B11": (2368.51236873, 1455.52084939),
    "B12": (1805.06846033, 1343.48379601),
}

# name, common name, lower limit nm, upper limit nm
Limits = tuple[tuple[str, str, float, float], ...]
LANDSAT_TM: Limits = (
    ("SR_B1", "blue", 450, 520),
    ("SR_B2", "green", 520, 600),
    ("SR_B3", "red", 630, 690),
    ("SR_B4", "nir", 760, 900),
    ("SR_B5", "swir16", 1550, 1750),
    ("SR_B7", "swir22", 2080, 2350),
)
LANDSAT_ETM: Limits = (
    ("SR_B1", "blue", 450, 520),
    ("SR_B2", "green", 520, 600),
    ("SR_B3", "red", 630, 690),
    ("SR_B4", "nir", 770, 900),
    ("SR_B5", "swir16", 1550, 1750),
    ("SR_B7", "swir22", 2090, 2350),
)
LANDSAT_OLI: Limits = (
    ("SR_B1", "coastal", 435, 451),
    ("SR_B2", "blue", 452, 512),
    ("SR_B3", "green", 533, 590),
    ("SR_B4", "red", 636, 673),
    ("SR_B5", "nir08", 851, 879),
    ("SR_B6", "swir16", 1566, 1651),
    ("SR_B7", "swir22", 2107, 2294),
)

# name, common name, lower limit nm, upper limit nm, mean, standard deviation (0-255)
DisplayRows = tuple[tuple[str, str, float, float, float, float], ...]
NAIP: DisplayRows = (
    ("R", "red", 619, 651, 110.16, 47.23),
    ("G", "green", 525, 585, 115.41, 39.82),
    ("B", "blue", 435, 495, 98.15, 35.43),
    ("N", "nir", 808, 882, 139.04, 49.86),
)
GENERIC_RGB: DisplayRows = (
    ("R", "red", 620, 690, 123.937, 54.955),
    ("G", "green", 510, 600, 125.920, 50.988),
    ("B", "blue", 450, 530, 115.591, 49.908),
)

# Backscatter divided by its scene's 99 % quantile, cut and scaled to 8 bit: no dB, no power, so a sensor of its own.
# Mean and deviation of all pixels of the 61 California training scenes (scripts/pair_statistics.py).
DISPLAY_VH = {"VH": (111.754, 47.126)}

# 8-bit pictures of linear amplitude (Scale-ALiBi's archives): clip(DN / 1000, 0, 1) times 256. The figures are the
# middle of the range and a quarter of it.
DISPLAY_SAR = {"VV": (127.5, 64.0), "VH": (127.5, 64.0)}

# Names of the STAC eo v1.1 table that a wavelength alone can settle: the wide ones (pan, rededge, nir,
# lwir) and the sub-ranges of green need the width as well.
STAC_RANGES_UM: tuple[tuple[str, float, float], ...] = (
    ("coastal", 0.40, 0.45),
    ("blue", 0.45, 0.53),
    ("green", 0.51, 0.60),
    ("red", 0.62, 0.69),
    ("rededge071", 0.69, 0.73),
    ("rededge075", 0.73, 0.76),
    ("rededge078", 0.76, 0.79),
    ("nir08", 0.80, 0.90),
    ("nir09", 0.90, 1.00),
    ("cirrus", 1.35, 1.40),
    ("swir16", 1.55, 1.75),
    ("swir22", 2.08, 2.35),
)

"""What classes are called in sentences: by hand where a data set's labels are no words, else by their words apart."""

from __future__ import annotations

import re

EUROSAT = {
    "AnnualCrop": "annual crop",
    "Forest": "forest",
    "HerbaceousVegetation": "herbaceous vegetation",
    "Highway": "highway",
    "Industrial": "industrial area",
    "Pasture": "pasture",
    "PermanentCrop": "permanent crop",
    "Residential": "residential area",
    "River": "river",
    "SeaLake": "sea or lake",
}
"""By the names of EuroSAT's folders (P. Helber et al., IEEE JSTARS 12(7), 2019)."""

UCMERCED = {
    "agricultural": "agricultural land",
    "airplane": "airplane",
    "baseballdiamond": "baseball diamond",
    "beach": "beach",
    "buildings": "buildings",
    "chaparral": "chaparral",
    "denseresidential": "dense residential area",
    "forest": "forest",
    "freeway": "freeway",
    "golfcourse": "golf course",
    "harbor": "harbor",
    "intersection": "intersection",
    "mediumresidential": "medium residential area",
    "mobilehomepark": "mobile home park",
    "overpass": "overpass",
    "parkinglot": "parking lot",
    "river": "river",
    "runway": "runway",
    "sparseresidential": "sparse residential area",
    "storagetanks": "storage tanks",
    "tenniscourt": "tennis court",
}
"""By the names of UC Merced's folders, which run words together (Y. Yang, S. Newsam, ACM GIS 2010)."""

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def fold(label: str) -> str:
    """A label's letters and digits in lower case: how labels are compared."""
    return "".join(c for c in label.casefold() if c.isalnum())


_KNOWN = {fold(label): name for table in (EUROSAT, UCMERCED) for label, name in table.items()}


def printed_name(label: str) -> str:
    """What a class is called in tables and prompts, by its label in a data set, whatever its case and separators.

    A label that is neither EuroSAT's nor UC Merced's gives its own words apart, in lower case: ``"SolarPanel"`` and
    ``"solar_panel"`` become "solar panel". One without letters and digits names nothing; callers refuse it.
    """
    known = _KNOWN.get(fold(label))
    if known is not None:
        return known
    return " ".join(re.split(r"[\s_/\-]+", _HUMP.sub(" ", label.strip()))).strip().casefold()

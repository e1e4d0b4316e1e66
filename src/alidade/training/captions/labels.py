"""Sentences from class labels: a small grammar of our own, with other words for the classes of EuroSAT and UC Merced.

Each class has a printed name for tables and prompts, and phrases that mean it; each sentence is a form with a
phrase in it. Forms avoid verbs that would have to agree with the phrase, so any phrase fits into any form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alidade.models.text.class_names import fold, printed_name
from alidade.training.captions.captioned import CaptionError

FORMS = (
    "{}",
    "{} seen from above",
    "{} from the air",
    "an aerial view of {}",
    "a satellite image of {}",
    "an overhead picture of {}",
    "this picture shows {}",
    "a bird's-eye view of {}",
    "remote sensing imagery of {}",
    "a scene of {}",
    "looking down on {}",
    "the ground here: {}",
)


@dataclass(frozen=True, kw_only=True)
class ClassWords:
    """How one class is called.

    Attributes:
        printed: its name as it stands in tables and zero-shot prompts.
        phrases: what a sentence can call it, with an article where English wants one; the plainest one first.
    """

    printed: str
    phrases: tuple[str, ...]


def _table(phrases: Mapping[str, tuple[str, ...]]) -> dict[str, ClassWords]:
    return {name: ClassWords(printed=printed_name(name), phrases=said) for name, said in phrases.items()}


EUROSAT = _table({
    "AnnualCrop": (
        "annual crops", "fields of annual crops", "arable land", "ploughed and sown fields",
        "a patchwork of crop fields",
    ),
    "Forest": ("forest", "woodland", "a closed cover of trees", "dense tree canopy", "a large wood"),
    "HerbaceousVegetation": (
        "herbaceous vegetation", "natural grass and herbs", "wild grassland with low shrubs",
        "rough vegetation without trees", "open land under grass and scrub",
    ),
    "Highway": (
        "a highway", "a major road", "a motorway through the land", "a wide road for fast traffic",
        "a road with several lanes",
    ),
    "Industrial": (
        "an industrial area", "factories and warehouses", "large halls with flat roofs",
        "commercial and industrial buildings", "an estate of big sheds and yards",
    ),
    "Pasture": (
        "pasture", "meadows for grazing", "green pasture land", "grazed fields with hedges",
        "fields of short grass",
    ),
    "PermanentCrop": (
        "permanent crops", "orchards and vineyards", "rows of fruit trees", "a plantation",
        "olive groves or vines",
    ),
    "Residential": (
        "a residential area", "houses and streets", "a town with many homes",
        "a neighbourhood of houses with gardens", "dwellings along streets",
    ),
    "River": (
        "a river", "a river and its banks", "a broad stream", "a watercourse winding through the land",
        "flowing water between banks",
    ),
    "SeaLake": (
        "a sea or lake", "open water", "the surface of a lake", "the sea", "a wide stretch of water",
    ),
})  # fmt: skip
"""Names as EuroSAT's folders have them (P. Helber et al., IEEE JSTARS 12(7), 2019)."""

UCMERCED = _table({
    "agricultural": ("farmland", "crop fields", "cultivated land", "rows of crops"),
    "airplane": ("an airplane", "parked aircraft", "planes on the apron", "a jet at an airport"),
    "baseballdiamond": (
        "a baseball diamond", "a baseball field", "a ball field with a sandy infield",
        "a ground for playing baseball",
    ),
    "beach": ("a beach", "sand beside the sea", "a sandy shore", "surf along a shore"),
    "buildings": (
        "buildings", "large buildings", "office blocks", "roofs of big buildings in a town",
    ),
    "chaparral": ("chaparral", "dry shrubland", "scattered bushes", "shrubs on dry ground"),
    "denseresidential": (
        "a dense residential area", "closely packed houses", "many houses side by side",
        "a crowded neighbourhood",
    ),
    "forest": EUROSAT["Forest"].phrases,
    "freeway": ("a freeway", "a motorway", "a wide road with fast lanes", "a divided highway"),
    "golfcourse": ("a golf course", "fairways and greens", "greens with bunkers", "golf links"),
    "harbor": ("a harbor", "boats at their moorings", "a marina", "piers with many boats"),
    "intersection": ("an intersection", "a road junction", "a crossroads", "streets that cross"),
    "mediumresidential": (
        "a medium residential area", "houses with yards between them",
        "a suburb of detached houses", "a neighbourhood of middling density",
    ),
    "mobilehomepark": (
        "a mobile home park", "rows of mobile homes", "a trailer park", "mobile homes in lines",
    ),
    "overpass": ("an overpass", "a bridge over a road", "a flyover", "one highway above another"),
    "parkinglot": ("a parking lot", "parked cars", "cars in rows", "a car park"),
    "river": EUROSAT["River"].phrases,
    "runway": ("a runway", "an airport runway", "a landing strip", "a long paved strip for aircraft"),
    "sparseresidential": (
        "a sparse residential area", "a lone house among trees", "scattered houses",
        "a few homes far apart",
    ),
    "storagetanks": ("storage tanks", "round tanks", "a tank farm", "white cylindrical tanks"),
    "tenniscourt": ("a tennis court", "tennis courts", "courts for tennis", "a court with a net"),
})  # fmt: skip
"""Names as UC Merced's folders have them (Y. Yang, S. Newsam, ACM GIS 2010)."""


_KNOWN = {fold(name): words for table in (EUROSAT, UCMERCED) for name, words in table.items()}


def class_words(name: str) -> ClassWords:
    """How a class is called, by its name in a data set, whatever its case and separators.

    A class that is not one of EuroSAT or UC Merced is called by its own name with the words apart:
    ``"SolarPanel"`` and ``"solar_panel"`` become "solar panel".

    Raises:
        CaptionError: a name without letters or digits.
    """
    known = _KNOWN.get(fold(name))
    if known is not None:
        return known
    if not fold(name):
        raise CaptionError(
            "class name", got=repr(name), expected="letters or digits", next_step="Give the class a name in words."
        )
    plain = printed_name(name)
    return ClassWords(printed=plain, phrases=(plain,))


def sentences(name: str) -> tuple[str, ...]:
    """Every sentence of the grammar for one class, the plainest first.

    Raises:
        CaptionError: as ``class_words``.
    """
    return tuple(form.format(phrase) for phrase in class_words(name).phrases for form in FORMS)


def label_captions(labels: Sequence[str], rng: np.random.Generator, *, count: int = 5) -> tuple[tuple[str, ...], ...]:
    """``count`` different sentences for each image, drawn evenly from those of its class.

    Args:
        labels: the class name of each image.
        rng: the same state gives the same sentences.
        count: how many for each; fewer where the grammar has fewer.

    Raises:
        CaptionError: a count below 1, or as ``class_words``.
    """
    if count < 1:
        raise CaptionError(
            "captions for an image", got=str(count), expected="1 or more", next_step="Ask for at least one."
        )
    known = {label: sentences(label) for label in dict.fromkeys(labels)}
    drawn = []
    for label in labels:
        all_of = known[label]
        chosen = rng.choice(len(all_of), size=min(count, len(all_of)), replace=False)
        drawn.append(tuple(all_of[int(i)] for i in chosen))
    return tuple(drawn)

"""The errors a user can meet: each says what is wrong, what was found, what was expected, and what to do next."""

from __future__ import annotations


class AlidadeError(ValueError):
    """A problem with the user's input, told in one line.

    Args:
        what: the thing that is wrong, e.g. ``"scene.tif: band names"``.
        got: what was found.
        expected: what would have been right.
        next_step: what the user can do now.
    """

    def __init__(self, what: str, *, got: object, expected: str, next_step: str) -> None:
        self.what, self.got, self.expected, self.next_step = what, got, expected, next_step
        super().__init__(_one_line(f"{what}: got {got}, expected {expected}. {next_step}"))


def _one_line(text: str) -> str:
    """Control characters (a file name may hold a line feed) as escapes, so that one error stays one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class RasterError(AlidadeError):
    """A raster file that cannot be read, or must not be."""


class SensorError(AlidadeError):
    """An unknown sensor, a missing or misnamed band, or a unit that cannot be told."""


class GridError(AlidadeError):
    """A place on the ground that cannot be told: CRS, transform, GSD or window."""


class ModelError(AlidadeError):
    """A model configuration or an input that the model cannot take."""


class WeightsError(AlidadeError):
    """A weights file that is missing, damaged or of another layout."""


class ArchiveError(AlidadeError):
    """An archive of embeddings that is missing, damaged or made by another model."""

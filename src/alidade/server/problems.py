"""Refusals that only a server has, each with its HTTP status; every other error of alidade's is a 422."""

from __future__ import annotations

from alidade.errors import AlidadeError

USUAL_STATUS = 422


class Refused(AlidadeError):
    """A request that is turned away.

    Attributes:
        status: HTTP status.
        retry_after: seconds after which it may be tried again, where that helps.
    """

    def __init__(
        self, what: str, *, got: object, expected: str, next_step: str, status: int, retry_after: int | None = None
    ) -> None:
        super().__init__(what, got=got, expected=expected, next_step=next_step)
        self.status, self.retry_after = status, retry_after


def status_of(error: AlidadeError) -> int:
    """The HTTP status of any error of alidade's."""
    return error.status if isinstance(error, Refused) else USUAL_STATUS


def plain(error: AlidadeError) -> dict[str, str]:
    """The four parts of an error as text."""
    return {"what": error.what, "got": str(error.got), "expected": error.expected, "next_step": error.next_step}


def busy(what: str, under_way: int) -> Refused:
    """Too many ask for the same at once (429)."""
    return Refused(
        what,
        got=f"{under_way} requests under way",
        expected="fewer at once",
        next_step="Ask again in a second.",
        status=429,
        retry_after=1,
    )


def not_ready(what: str, state: str, retry_after: int = 2) -> Refused:
    """The server cannot answer yet, or no more (503)."""
    return Refused(
        what,
        got=state,
        expected="a server that is ready",
        next_step="Ask again in a moment; /api/health tells when.",
        status=503,
        retry_after=retry_after,
    )


def unknown(what: str, got: str, expected: str, next_step: str) -> Refused:
    """Something that is not there (404)."""
    return Refused(what, got=got, expected=expected, next_step=next_step, status=404)


def gone(error: AlidadeError) -> Refused:
    """An error about a registered file, as one of something that is not there (404)."""
    return unknown(error.what, str(error.got), error.expected, error.next_step)

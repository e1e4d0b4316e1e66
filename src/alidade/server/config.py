"""What a server is told: the archive, the address, the token, and how much it takes on."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from alidade.errors import AlidadeError
from alidade.imagery.files import Declared
from alidade.imagery.sandbox import Limits
from alidade.models.registry import DEFAULT

LONGEST_K = 10_000
"""Results of one search over HTTP: more than a person looks at, and an answer of a few megabytes."""
_SHORTEST_TOKEN = 16


@dataclass(frozen=True, kw_only=True)
class QueueConfig:
    """A bounded queue that makes batches.

    Attributes:
        max_batch: items that are worked on together, at most.
        max_wait_s: how long a batch that is not full waits for more.
        most_waiting: items that may wait; one more is refused.
    """

    max_batch: int = 32
    max_wait_s: float = 0.004
    most_waiting: int = 64


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """A server's settings.

    Attributes:
        archive: the directory to serve.
        model: name or directory; must be the one that made the archive.
        weights: the released checkpoint, for the CROMA names only.
        declared: what the user said about the files when they were embedded; pictures are read with it.
        host: address to listen on. Any but loopback needs a token.
        port: 0 lets the system choose.
        token: what every request has to show; ``None`` asks for nothing.
        names: further host names under which the server may be addressed, such as that of a proxy.
        uploads: what one query image may cost, and whether one is refused where it cannot be decoded in a sandbox
            without network.
        upload_seconds: for sending one.
        most_searches: that may be under way at once, at most; more are told to come again.
        queue: in front of the model.
        target_s: fewer searches are let in at once when they take longer than this.

    Raises:
        AlidadeError: a token that is too short or cannot be sent, an address in the open without a token, or a
            port that is none.
    """

    archive: Path
    model: str = DEFAULT
    weights: str | None = None
    declared: Declared = field(default_factory=Declared)
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    names: tuple[str, ...] = ()
    uploads: Limits = field(default_factory=Limits)
    upload_seconds: float = 60.0
    most_searches: int = 64
    queue: QueueConfig = field(default_factory=QueueConfig)
    target_s: float = 0.3

    def __post_init__(self) -> None:
        """Refuse what would be unsafe; see the class."""
        if self.token is not None and not _good(self.token):
            raise AlidadeError(
                "--token",
                got=f"{len(self.token)} characters" if self.token.isascii() else "characters beyond ASCII",
                expected=f"{_SHORTEST_TOKEN} or more letters, digits and signs without spaces",
                next_step='Make one with: python3 -c "import secrets; print(secrets.token_urlsafe())".',
            )
        if self.token is None and not self.loopback:
            raise AlidadeError(
                "--host",
                got=f"{self.host} without a token",
                expected="127.0.0.1 or localhost, or a token that everybody who asks has to show",
                next_step="Add --token TOKEN or set ALIDADE_TOKEN, or leave --host out.",
            )
        if not 0 <= self.port <= 65_535:
            raise AlidadeError("--port", got=self.port, expected="0 to 65535", next_step="Choose another port.")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        return self.host == "localhost" or is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether ``host`` is an address of this machine alone, such as ``127.0.0.1`` or ``::1``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _good(token: str) -> bool:
    return len(token) >= _SHORTEST_TOKEN and token.isascii() and token.isprintable() and " " not in token

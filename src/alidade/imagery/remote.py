"""Which hosts may be asked for what, and how: the one place from which this package reaches the network.

Nothing is asked for unless the caller made a ``Door``. Names are resolved once, every address is judged, and the
connection goes to the address that was judged; each redirect is judged again. So neither a link in somebody's catalogue
nor a redirect leads to a machine inside the user's own network.
"""

from __future__ import annotations

import http.client
import ipaddress
import math
import os
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import SplitResult, urljoin, urlsplit

from alidade.errors import RasterError

BACK_OFF_S = (0.5, 1.0, 2.0)
"""Waits before a request is made again; after the last one it has failed."""

TIMEOUT_S = 30.0
MAX_PAGE_BYTES = 64 * 2**20
_MAX_WAIT_S = 10.0
_MAX_REDIRECTS = 5
_PASSING = (429, 500, 502, 503, 504)
_MOVED = (301, 302, 303, 307, 308)


class _Passing(Exception):
    """A failure that may be over in a moment: its reason, and the seconds that the server asks to wait."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server said: its status, headers by their names in small letters, the body, and the address asked."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str


@dataclass(frozen=True, kw_only=True)
class Door:
    """Which hosts may be asked.

    - Public addresses: all hosts or, where ``hosts`` are named, these and ``own`` only.
    - Addresses of private networks and of this machine: ``own`` and the named ``hosts`` only; this machine also
      where the catalogue itself is on it.
    - Link-local addresses, which clouds keep their machines' secrets on, and other special ones: never.

    Attributes:
        own: the host that the user named, ``""`` where it was a local file.
        hosts: hosts that the user allows besides; none for every public one.
    """

    own: str
    hosts: frozenset[str] = frozenset()

    @classmethod
    def to(cls, place: str, hosts: frozenset[str] = frozenset()) -> Door:
        """The door for a catalogue at ``place``, an address or a local path."""
        own = (urlsplit(place).hostname or "") if is_address(place) else ""
        return cls(own=own.casefold(), hosts=frozenset(h.casefold() for h in hosts))

    def addresses(self, url: str, *, named_only: bool = False) -> list[str]:
        """The addresses of a URL's host, all of which may be asked.

        Args:
            url: http or https.
            named_only: refuse hosts that the user did not name, public ones too.

        Raises:
            RasterError: it may not be asked, or has no address.
        """
        parts = _split(url)
        host = (parts.hostname or "").casefold()
        named = host == self.own or host in self.hosts
        if not named and (named_only or self.hosts):
            raise refused(url, f"the host {host}, which was not named", "the catalogue's host, or one you allow")
        try:
            found = socket.getaddrinfo(host, _port(parts), type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise RasterError(
                bare(url), got=f"no address for {host} ({error})", expected="a host that can be found",
                next_step="Check the address and the network.",
            ) from None  # fmt: skip
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        for address in addresses:
            if not self._may_ask(address, named=named):
                raise refused(url, f"{host} at {address}, inside a network", "an address on the open internet")
        return addresses

    def _may_ask(self, address: str, *, named: bool) -> bool:
        ip: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        if ip.is_loopback:
            return named or self._is_local()
        if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip.is_reserved:
            return False
        return ip.is_global or (named and ip.is_private)

    def _is_local(self) -> bool:
        if self.own in ("", "localhost"):
            return True
        try:
            return ipaddress.ip_address(self.own).is_loopback
        except ValueError:
            return False


class Caller:
    """Makes requests through a door, one at a time; keeps the last connection open. Not for several threads.

    Args:
        door: which hosts may be asked.
        named_only: see ``Door.addresses``.
    """

    def __init__(self, door: Door, *, named_only: bool = False) -> None:
        self._door, self._named_only = door, named_only
        self._connection: http.client.HTTPConnection | None = None
        self._to: tuple[str, str, int] | None = None

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def ask(
        self, url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes | None = None,
        limit: int = MAX_PAGE_BYTES,
    ) -> Answer:  # fmt: skip
        """One request, with redirects followed, and made again a few times where the failure may pass.

        Args:
            url: http or https.
            method: of the request.
            headers: besides the usual ones.
            body: to send.
            limit: a larger answer is refused.

        Returns:
            The answer, whatever its status says, unless that is one that passes.

        Raises:
            RasterError: the door is closed for it, or it failed to the end.
        """
        given = {"User-Agent": "alidade", "Accept-Encoding": "identity", **(headers or {})}
        for _ in range(_MAX_REDIRECTS + 1):
            answer = self._patiently(url, method, given, body, limit)
            target = answer.headers.get("location")
            if answer.status not in _MOVED or target is None:
                return answer
            url = urljoin(url, target)
            if answer.status == HTTPStatus.SEE_OTHER:
                method, body = "GET", None
        raise refused(url, f"more than {_MAX_REDIRECTS} redirects", "a file, not a ring of addresses")

    def _patiently(self, url: str, method: str, headers: Mapping[str, str], body: bytes | None, limit: int) -> Answer:
        waits = list(BACK_OFF_S)
        while True:
            try:
                return self._once(url, method, headers, body, limit)
            except (_Passing, OSError, http.client.HTTPException) as error:
                self.close()
                if not waits or isinstance(error, ssl.SSLCertVerificationError):
                    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
                    raise RasterError(
                        bare(url), got=" ".join(reason.split()) or type(error).__name__,
                        expected="a server that answers", next_step="Check the address, or try again later.",
                    ) from None  # fmt: skip
                asked = min(error.wait_s, _MAX_WAIT_S) if isinstance(error, _Passing) else 0.0
                time.sleep(max(waits.pop(0), asked))

    def _once(self, url: str, method: str, headers: Mapping[str, str], body: bytes | None, limit: int) -> Answer:
        parts = _split(url)
        connection = self._connected(url, parts)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, body, dict(headers))
        response = connection.getresponse()
        told = {name.casefold(): value for name, value in response.getheaders()}
        content = response.read(limit + 1)
        if len(content) > limit:
            self.close()
            raise refused(url, f"an answer of more than {limit:,} bytes", "a smaller one")
        if response.will_close:
            self.close()
        if response.status in _PASSING:
            raise _Passing(f"{response.status} {response.reason}", _seconds(told.get("retry-after", "")))
        return Answer(status=response.status, headers=told, body=content, url=url)

    def _connected(self, url: str, parts: SplitResult) -> http.client.HTTPConnection:
        host, port = str(parts.hostname), _port(parts)
        to = (parts.scheme, host, port)
        if self._connection is not None and self._to == to:
            return self._connection
        self.close()
        problem = OSError("no address")
        for address in self._door.addresses(url, named_only=self._named_only):
            try:
                plain = socket.create_connection((address, port), TIMEOUT_S)
            except OSError as error:
                problem = error
                continue
            # by the socket that was judged: left to itself it would resolve the name a second time
            connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
            connection.auto_open = 0
            secure = parts.scheme == "https"
            connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host) if secure else plain
            self._connection, self._to = connection, to
            return connection
        raise problem


def is_address(text: str) -> bool:
    """Whether a text is an http address, and not a path."""
    return text.casefold().startswith(("http://", "https://"))


def bare(url: str) -> str:
    """A URL as messages and tables may show it: without the query, which may hold a key."""
    return url.partition("?")[0].partition("#")[0]


def refused(url: str, got: str, expected: str) -> RasterError:
    """The error for what may not be asked."""
    return RasterError(
        bare(url), got=got, expected=expected,
        next_step="If you trust it, name its host with --allow-host, or download it first.",
    )  # fmt: skip


def cut_path(path: str | os.PathLike[str]) -> str:
    """A path or address as it is told: addresses without their query."""
    told = os.fspath(path)
    return bare(told) if is_address(told) else told


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
        _port(parts)
    except ValueError:
        good = False
    if not good or any(c.isspace() or not c.isprintable() for c in url):
        raise refused(url, "an address of another kind", "http://HOST/... or https://HOST/...")
    return parts


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) and value > 0.0 else 0.0

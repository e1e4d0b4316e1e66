"""Who may ask: host names, origins, the token, the size of bodies; and what every answer says to browsers."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import socket
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alidade.errors import AlidadeError
from alidade.server.config import ServerConfig
from alidade.server.problems import Refused, plain, status_of

COOKIE = "alidade_session"
MAX_BODY_BYTES = 2 * 2**20
"""Of any request but an upload."""
UPLOAD_PATH = "/api/upload"
API_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""Everything from this server and nothing from elsewhere. Scripts: the default, files of this server only."""
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Guard:
    """The middleware before everything else, also before mounted pages and websockets.

    - A ``Host`` that is not one of this server's names is refused: a foreign site that has its name point to this
      machine (DNS rebinding) cannot ask in the user's browser.
    - A request that changes something and says it comes from another site is refused, as is such a websocket.
    - With a token, every request has to show it: as ``Authorization: Bearer TOKEN``, or as the cookie that
      ``/?token=TOKEN`` sets in a browser. Comparisons take the same time whatever is shown.
    - Bodies are cut off at ``MAX_BODY_BYTES``; uploads have a limit of their own.

    Args:
        app: what is guarded.
        config: the server's.
        page_policy: Content-Security-Policy of everything outside ``/api``.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig, page_policy: str = PAGE_POLICY) -> None:
        self.app, self._page_policy = app, page_policy
        self._loopback = config.loopback
        self._names = host_names(config)
        self._token = None if config.token is None else config.token.encode()
        self._session = None if self._token is None else session_of(self._token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Judge a request, and pass it on."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_host(headers.getlist("host"))
            self._check_origin(scope, headers)
            if self._token is not None and not self._shown(headers):
                if self._greets(scope):
                    await self._welcome(scope, send)
                    return
                raise _no_token()
            if scope["type"] == "http" and scope["path"] != UPLOAD_PATH:
                receive = _bounded(receive, headers)
        except Refused as error:
            await _refuse(error, scope, send)
            return
        await self.app(scope, receive, self._dressed(scope, send))

    def _check_host(self, hosts: list[str]) -> None:
        name = host_name(hosts[0]) if len(hosts) == 1 else None
        if name is None or not self._known(name):
            raise Refused(
                "Host",
                got=", ".join(repr(h[:100]) for h in hosts) or "none",
                expected="the address of this server",
                next_step="Open it by its address, or start it with --name HOST for that name.",
                status=421,
            )

    def _known(self, name: str) -> bool:
        # rebinding needs a name: an address in digits is never another site's
        return name in self._names or (not self._loopback and is_address(name))

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        if scope["type"] == "http" and scope["method"] in _SAFE_METHODS:
            return
        origin = headers.get("origin")
        foreign = origin is not None and not self._known(host_name(urlsplit(origin).netloc) or "")
        if foreign or headers.get("sec-fetch-site") == "cross-site":
            raise Refused(
                "Origin",
                got=repr((origin or "another site")[:100]),
                expected="this server's own page, or a program",
                next_step="Open this server's page itself.",
                status=403,
            )

    def _shown(self, headers: Headers) -> bool:
        assert self._token is not None
        assert self._session is not None
        kind, _, given = headers.get("authorization", "").partition(" ")
        by_header = kind.casefold() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token)
        return by_header or hmac.compare_digest(_cookie(headers.get("cookie", "")).encode(), self._session.encode())

    def _greets(self, scope: Scope) -> bool:
        """Whether this is a page opened with the right ``?token=``."""
        assert self._token is not None
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"].startswith("/api"):
            return False
        given = dict(_query(scope)).get("token", "")
        return hmac.compare_digest(given.encode(errors="replace"), self._token)

    async def _welcome(self, scope: Scope, send: Send) -> None:
        """Keep the token out of the address bar: a cookie for this browser, and the same page without it."""
        rest = urlencode([(key, value) for key, value in _query(scope) if key != "token"])
        # one slash only: two would name another host
        target = "/" + scope["path"].lstrip("/\\")
        headers = {
            "location": target + (f"?{rest}" if rest else ""),
            "set-cookie": f"{COOKIE}={self._session}; HttpOnly; SameSite=Strict; Path=/",
            "cache-control": "no-store",
            "referrer-policy": "no-referrer",
        }
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 303, "headers": raw})
        await send({"type": "http.response.body", "body": b""})

    def _dressed(self, scope: Scope, send: Send) -> Send:
        policy = API_POLICY if scope["path"].startswith("/api") else self._page_policy

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in {**_HEADERS, "content-security-policy": policy}.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        return dressed


def host_names(config: ServerConfig) -> frozenset[str]:
    """The names under which a server may be addressed."""
    names: Iterable[str] = (config.host, "localhost", "127.0.0.1", "::1", *config.names)
    if not config.loopback:
        names = (*names, socket.gethostname())
    return frozenset(name.casefold().rstrip(".") for name in names)


def host_name(host: str) -> str | None:
    """The name in a ``Host`` header, without its port; ``None`` for what is not one."""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        port = port.removeprefix(":") if port.startswith(":") else port and "x"
    else:
        name, bracket, port = host.partition(":")
        bracket = "]"
    if not name or not bracket or (port and not port.isdecimal()):
        return None
    return name.casefold().rstrip(".")


def is_address(name: str) -> bool:
    """Whether a host name is an IP address in digits."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def session_of(token: bytes) -> str:
    """What the cookie holds: proof of the token, not the token itself."""
    return hmac.new(token, b"alidade session", hashlib.sha256).hexdigest()


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def _query(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)


def _bounded(receive: Receive, headers: Headers) -> Receive:
    """``receive`` that gives out at most ``MAX_BODY_BYTES``.

    Raises:
        Refused: the request says itself that it is longer; the one that is without having said so ends as a
            request that was cut off.
    """
    told = headers.get("content-length", "0")
    if not told.isdecimal() or int(told[:20]) > MAX_BODY_BYTES:
        raise too_large("body", told, MAX_BODY_BYTES)
    taken = 0

    async def bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MAX_BODY_BYTES:
            raise too_large("body", f"more than {MAX_BODY_BYTES:,}", MAX_BODY_BYTES)
        return message

    return bounded


def too_large(what: str, got: str, most: int) -> Refused:
    """A body that is longer than it may be (413)."""
    return Refused(
        what,
        got=f"{got[:30]} bytes",
        expected=f"at most {most:,} bytes",
        next_step="Send less at once.",
        status=413,
    )


def _no_token() -> Refused:
    return Refused(
        "token",
        got="none, or another",
        expected="the token that this server was started with",
        next_step="Send it as `Authorization: Bearer TOKEN`, or open /?token=TOKEN in a browser.",
        status=401,
    )


def body_of(error: AlidadeError) -> bytes:
    """An error as JSON in ASCII: whatever characters it quotes can be sent."""
    return json.dumps(plain(error)).encode()


async def _refuse(error: Refused, scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = body_of(error)
    headers = {"content-type": "application/json", "content-length": str(len(body)), "cache-control": "no-store"}
    headers |= _HEADERS | {"content-security-policy": API_POLICY}
    if error.status == 401:
        headers["www-authenticate"] = 'Bearer realm="alidade"'
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status_of(error), "headers": raw})
    await send({"type": "http.response.body", "body": body})

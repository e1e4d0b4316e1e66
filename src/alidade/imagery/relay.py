"""Remote raster files for GDAL, which itself never leaves this machine.

GDAL follows redirects wherever they lead and cannot be told not to. So it is given an address on loopback, unguessable
and good for one file, and asks there for ranges of bytes; they are fetched through a ``Door``.
"""

from __future__ import annotations

import re
import secrets
import threading
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from alidade.errors import RasterError
from alidade.imagery.remote import Answer, Caller, Door, bare

MAX_RANGE_BYTES = 2**30
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(kw_only=True, eq=False)
class RemoteFile:
    """A file on another machine, read range by range. Made by ``open_remote``.

    Attributes:
        url: where it is.
        size: bytes of the whole file.
        start: its first bytes.
        address: where GDAL finds it.
        failure: why a range could not be fetched; GDAL's own message would not tell.
    """

    url: str
    size: int
    start: bytes
    address: str
    caller: Caller
    lock: threading.Lock = field(default_factory=threading.Lock)
    failure: RasterError | None = None

    def fetch(self, first: int, last: int) -> bytes | None:
        """The bytes from ``first`` to ``last``, both included; ``None`` after a failure, which is kept."""
        with self.lock:
            try:
                return _range(self.caller, self.url, first, last)[0]
            except RasterError as error:
                self.failure = error
                return None

    def close(self) -> None:
        """Take the file off the relay."""
        _files.pop(self.address.rsplit("/", 1)[-1], None)
        self.caller.close()


def open_remote(url: str, door: Door) -> RemoteFile:
    """A remote file, its size and first bytes known.

    Raises:
        RasterError: the door is closed for it, it is not there, or its server does not give parts of files.
    """
    caller = Caller(door)
    start, size = _range(caller, url, 0, 15)
    name = f"{secrets.token_urlsafe(24)}.tif"
    file = RemoteFile(url=url, size=size, start=start, address=f"{_relay()}/{name}", caller=caller)
    _files[name] = file
    return file


def _range(caller: Caller, url: str, first: int, last: int) -> tuple[bytes, int]:
    """Bytes of a remote file and its size; fewer bytes than asked for only at its end."""
    wanted = last - first + 1
    if wanted > MAX_RANGE_BYTES:
        raise RasterError(
            bare(url), got=f"a need for {wanted:,} bytes at once", expected=f"at most {MAX_RANGE_BYTES:,}",
            next_step="Convert the file: gdal_translate -of COG IN OUT.tif.",
        )  # fmt: skip
    answer = caller.ask(url, headers={"Range": f"bytes={first}-{last}"}, limit=max(wanted, 2**20))
    if answer.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        raise RasterError(
            bare(url), got=f"{answer.status} {_phrase(answer)}", expected="the file",
            next_step="Check that the address is right and its files are open to you.",
        )  # fmt: skip
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
    if answer.status == HTTPStatus.OK or found is None or int(found[1]) != first:
        raise RasterError(
            bare(url), got="a server that sends whole files only", expected="one that answers range requests",
            next_step="Download the file first.",
        )  # fmt: skip
    size = int(found[3])
    if len(answer.body) != min(last + 1, size) - first:
        raise RasterError(
            bare(url), got=f"{len(answer.body):,} of {wanted:,} bytes", expected="all of them",
            next_step="Try again; if it stays so, the file on the server is cut short.",
        )  # fmt: skip
    return answer.body, size


def _phrase(answer: Answer) -> str:
    try:
        return HTTPStatus(answer.status).phrase
    except ValueError:
        return ""


_files: dict[str, RemoteFile] = {}
_server: list[ThreadingHTTPServer] = []
_starting = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # else each answer waits 40 ms for the acknowledgement of its own headers
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        file = _files.get(self.path.lstrip("/"))
        if file is None:
            self._answer(HTTPStatus.NOT_FOUND, 0)
        else:
            self._answer(HTTPStatus.OK, file.size)

    def do_GET(self) -> None:
        file = _files.get(self.path.lstrip("/"))
        found = _RANGE.fullmatch(self.headers.get("Range", ""))
        if file is None or found is None or int(found[1]) >= file.size:
            self._answer(HTTPStatus.NOT_FOUND if file is None else HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0)
            return
        first, last = int(found[1]), min(int(found[2]), file.size - 1)
        content = file.fetch(first, last)
        if content is None:
            self._answer(HTTPStatus.NOT_FOUND, 0)
            return
        self._answer(HTTPStatus.PARTIAL_CONTENT, len(content), f"bytes {first}-{last}/{file.size}")
        self.wfile.write(content)

    def _answer(self, status: HTTPStatus, length: int, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Accept-Ranges", "bytes")
        if content_range is not None:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet: what fails is told by the file."""
        del format, args


def _relay() -> str:
    """The relay's address; it starts when it is first needed and ends with the process."""
    with _starting:
        if not _server:
            server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True, name="alidade-relay").start()
            _server.append(server)
        return f"http://127.0.0.1:{_server[0].server_port}"

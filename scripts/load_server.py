"""Ask a server from many clients at once for a while, and count what it answers.

    python scripts/load_server.py ARCHIVE --clients 200 --seconds 60

Starts `alidade serve ARCHIVE` on loopback, warms it up, and lets every client ask one search by words after another,
each with other conditions; one in ten asks for a map tile of its last search. A client that is told to come again
(429, 503) waits as long as it is told. Prints what came back, how long accepted searches took, and the server's memory
before and after. Exit code 1 when an answer was an error other than 429 and 503.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

WORDS = ("open water", "forest", "dense forest", "river", "cropland", "residential area", "industrial area", "highway")
MOST_SECONDS, MOST_CLIENTS = 600.0, 1000


@dataclass
class Tally:
    """What came back: answers by status, seconds of accepted searches, and errors below HTTP."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    tiles: list[float] = field(default_factory=list)
    broken: Counter[str] = field(default_factory=Counter)


class Client:
    """One connection that asks again and again."""

    def __init__(self, port: int, words: list[str], seed: int, tally: Tally) -> None:
        self._port, self._words, self._tally = port, words, tally
        self._chance = random.Random(seed)
        self._query_id: str | None = None

    async def ask_until(self, end: float) -> None:
        """Ask until then, on a new connection whenever one breaks."""
        while time.monotonic() < end:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    while time.monotonic() < end:
                        await self._ask(reader, writer)
                finally:
                    writer.close()
            except (OSError, EOFError, ValueError) as error:
                self._tally.broken[type(error).__name__] += 1
                await asyncio.sleep(0.2)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._query_id is not None and self._chance.random() < 0.1:
            path, body = f"/api/similarity/{self._query_id}/2/{self._chance.randrange(4)}/1.png", None
        else:
            low = self._chance.uniform(0.1, 5)
            path, body = "/api/search", {"text": self._chance.choice(self._words), "gsd": [low, None], "k": 20}
        began = time.monotonic()
        status, headers, content = await exchange(reader, writer, path, body)
        took = time.monotonic() - began
        self._tally.statuses[status] += 1
        if status == 200 and body is not None:
            self._tally.seconds.append(took)
            self._query_id = json.loads(content)["query_id"]
        elif status == 200:
            self._tally.tiles.append(took)
        elif status in (429, 503):
            await asyncio.sleep(float(headers.get("retry-after", "1")) * self._chance.uniform(0.5, 1.5))


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: object | None
) -> tuple[int, dict[str, str], bytes]:
    """One request on an open connection: status, headers and content of its answer."""
    content = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
    )
    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + content)
    async with asyncio.timeout(60):
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.casefold(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        answer = await reader.readexactly(int(headers["content-length"]))
    return int(lines[0].split()[1]), headers, answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", help="directory of the archive to serve")
    parser.add_argument("--model", help="name or directory of its model")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--words", nargs="*", default=list(WORDS), help="what is searched for")
    options = parser.parse_args()
    if not (1 <= options.clients <= MOST_CLIENTS and 0 < options.seconds <= MOST_SECONDS):
        parser.error(f"at most {MOST_CLIENTS} clients and {MOST_SECONDS:g} seconds")
    named = [] if options.model is None else ["--model", options.model]
    command = [sys.executable, "-c", "from alidade.cli.serve import register; import typer; a = typer.Typer(); "
               "register(a); a()", options.archive, "--port", "0", *named]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            port = port_of(server)
            tally, before, after = asyncio.run(run(port, server.pid, options))
        finally:
            server.terminate()
    report(tally, before, after, options)
    sys.exit(1 if any(s not in (200, 429, 503) for s in tally.statuses) or tally.broken else 0)


def port_of(server: subprocess.Popen[str]) -> int:
    """The port that a server says it listens on."""
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"serving at http://127\.0\.0\.1:(\d+)/", line):
            return int(found[1])
        print(line, end="", file=sys.stderr)
    sys.exit("the server did not start")


async def run(port: int, process: int, options: argparse.Namespace) -> tuple[Tally, int, int]:
    # a short round first: what is loaded at the first question is no growth
    await asyncio.gather(*(Client(port, options.words, -n, Tally()).ask_until(time.monotonic() + 3) for n in range(8)))
    before, tally = resident(process), Tally()
    end = time.monotonic() + options.seconds
    await asyncio.gather(*(Client(port, options.words, n, tally).ask_until(end) for n in range(options.clients)))
    return tally, before, resident(process)


def resident(process: int) -> int:
    """Bytes of memory that a process holds (Linux)."""
    with open(f"/proc/{process}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def report(tally: Tally, before: int, after: int, options: argparse.Namespace) -> None:
    turned_away = {s: n for s, n in sorted(tally.statuses.items()) if s in (429, 503)}
    other = {s: n for s, n in sorted(tally.statuses.items()) if s not in (200, 429, 503)}
    print(f"{options.clients} clients, {options.seconds:g} s")
    print(f"accepted      {tally.statuses[200]:,}, of them {len(tally.seconds):,} searches")
    print(f"turned away   {turned_away or 0}")
    print(f"other errors  {other or 0}; connections {dict(tally.broken) or 0}")
    for name, seconds in (("searches", tally.seconds), ("map tiles", tally.tiles)):
        if seconds:
            middle, late, last = np.percentile(seconds, (50, 95, 100))
            print(f"{name:13s} p50 {1e3 * middle:.0f} ms, p95 {1e3 * late:.0f} ms, slowest {1e3 * last:.0f} ms")
    print(f"memory        {before / 2**20:.0f} MiB before, {after / 2**20:.0f} MiB after")


if __name__ == "__main__":
    main()

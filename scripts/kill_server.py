"""Kill a server with SIGKILL at random moments while labels are written: none that it acknowledged may be lost.

    python scripts/kill_server.py --kills 25 --seed 0

Serves a small archive made by code. Each life: the server is started, labels are put by two clients one after another,
and the server is killed. Then its file of labels must be whole, hold every label that was answered with 200, in its
last state, and the next server must say what it removed. Exit code 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import torch
import uvicorn

from alidade.models.registry import load
from alidade.search.writer import ArchiveWriter
from alidade.server.app import create_app
from alidade.server.config import ServerConfig
from alidade.server.labels import Labels

FORK = multiprocessing.get_context("fork")
"""torch takes seconds to import: each server is forked from this process, which starts no thread of its own before."""
PATIENCE_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25, help="how often a server is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="kill-server-") as folder:
        archive = Path(folder) / "archive"
        model = load()
        with ArchiveWriter(archive, model=model.identity, dim=model.dim, tile=model.tile):
            pass
        kept: dict[str, str] = {}
        torn = lost = written = 0
        for life in range(options.kills):
            sure, open_ = live(archive, chance.uniform(0.0, 0.6), life)
            written += len(sure)
            kept |= sure
            torn += len(list((archive / "labels").glob(".*.alidade-part")))
            found = {tile: label.note for tile, label in Labels(archive).read("default").items()}
            # one that was not answered any more may be there, or not
            wrong = [t for t, note in kept.items() if found.get(t) != note and found.get(t) != open_.get(t, object())]
            lost += len(wrong)
            kept |= {tile: found[tile] for tile in open_ if tile in found}
            print(f"life {life + 1}: {len(sure)} acknowledged, {len(found)} there, {len(wrong)} lost", flush=True)
        said = Labels(archive).repair()
        left = len(list((archive / "labels").glob(".*.alidade-part")))
    print(f"{options.kills} kills, {written} labels acknowledged, {lost} lost; {torn} unfinished files, {left} left")
    print(f"the last repair: {said or 'nothing to do'}")
    sys.exit(1 if lost or left or not written else 0)


def live(archive: Path, seconds: float, life: int) -> tuple[dict[str, str], dict[str, str]]:
    """One server's life: labels that it acknowledged, and those that were on their way when it was killed."""
    listening = socket.create_server(("127.0.0.1", 0))
    ready = FORK.Event()
    server = FORK.Process(target=serve, args=(archive, listening, ready))
    server.start()
    try:
        if not ready.wait(PATIENCE_S):
            raise RuntimeError("the server did not start")
        sure: dict[str, str] = {}
        open_: dict[str, str] = {}
        port = listening.getsockname()[1]
        # the server has its own copy of the socket; with this one open, a connection after the kill would hang
        listening.close()
        clients = [threading.Thread(target=label, args=(port, f"{life}-{n}", sure, open_)) for n in range(2)]
        for client in clients:
            client.start()
        deadline = time.monotonic() + PATIENCE_S
        while not sure and time.monotonic() < deadline:
            time.sleep(0.005)
        # the first label is one more moment: the folder is made for it
        time.sleep(seconds if life else 0.0)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        for client in clients:
            client.join(PATIENCE_S)
        return sure, open_
    finally:
        server.kill()
        server.join()


def serve(archive: Path, listening: socket.socket, ready: Event) -> None:
    app = create_app(ServerConfig(archive=archive))
    app.state.services.when_known = lambda _: ready.set()
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="on")).run(sockets=[listening])


def label(port: int, name: str, sure: dict[str, str], open_: dict[str, str]) -> None:
    """Put label after label, each a change of one of five tiles, until the server is gone."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    number = 0
    while True:
        tile, note = f"{name}-{number % 5}", str(number)
        open_[tile] = note
        body = json.dumps({"labels": {tile: {"mark": "yes", "note": note}}})
        try:
            connection.request("PUT", "/api/labels", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            return
        if answer.status != 200:
            print(answer.status, name)
        if answer.status == 200:
            sure[tile] = note
            del open_[tile]
        number += 1


if __name__ == "__main__":
    main()

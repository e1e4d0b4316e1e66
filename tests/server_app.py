"""What tests of the server share: a small archive with a model that knows words, and a client of the real app."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import uvicorn
from starlette.testclient import TestClient

from alidade.imagery.sandbox import Limits, can_isolate
from alidade.models.text.bank import Bank
from alidade.models.weights import save_model
from alidade.models.words import TextHead, Words, WordsConfig
from alidade.search.embed import embed
from alidade.server.app import create_app
from alidade.server.config import ServerConfig
from search_scenes import make_scene, tiny_model
from text_hashed import DIM, Hashed

WORDS = ("open water", "forest", "ships")
HERE = "http://127.0.0.1:8000"


def make_model(folder: Path, name: str = "tiny") -> Path:
    """A small real model with a bank of three words, where ``--model`` finds it."""
    model, encoder = tiny_model(name), Hashed()
    save_model(model.network, folder, dtype=torch.float32)
    config = WordsConfig(
        encoder="hashed", text_identity=encoder.identity, image_identity=model.identity, text_dim=DIM, hidden=0,
        dim=model.dim,
    )  # fmt: skip
    torch.manual_seed(3)
    Words(config, TextHead(DIM, 0, model.dim), Bank.of(encoder, WORDS)).save(folder)
    return folder


def make_archive(folder: Path) -> ServerConfig:
    """An archive of two colour scenes and a radar scene: 12 + 4 + 2 tiles of 32 px; and how to serve it."""
    scenes = folder / "scenes"
    scenes.mkdir(parents=True)
    make_scene(scenes / "a.tif", 1, height=96, width=128)
    make_scene(scenes / "b.tif", 2, height=64, width=64)
    make_scene(scenes / "radar.tif", 3, height=32, width=64, sensor_id="sentinel-1-rtc")
    make_model(folder / "model")
    embed([scenes], folder / "archive", tiny_model())
    return ServerConfig(
        archive=folder / "archive", model=str(folder / "model"), uploads=Limits(isolated=can_isolate(), seconds=120)
    )


def more_rows(config: ServerConfig, seed: int) -> None:
    """Embed another scene of four tiles into the archive."""
    made = make_scene(config.archive.parent / "scenes" / f"more{seed}.tif", seed, height=64, width=64)
    embed([made], config.archive, tiny_model())


@contextmanager
def client_of(config: ServerConfig, *, wait: bool = True, **changes: object) -> Iterator[TestClient]:
    """A client of a running app, once it is ready (or has failed); no error of the server's is raised here."""
    app = create_app(replace(config, **changes))  # type: ignore[arg-type]
    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as client:
        deadline = time.monotonic() + 60
        while wait and app.state.services.keeper.state == "starting":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield client


@contextmanager
def listening(config: ServerConfig) -> Iterator[str]:
    """The address of a real server on loopback that is ready."""
    app = create_app(config)
    socket_ = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket_]})
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not (server.started and app.state.services.keeper.state == "ready"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield f"http://127.0.0.1:{socket_.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        socket_.close()

"""Who may ask the server, and what hostile bodies, hosts, origins and files come to."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.requests import Request
from starlette.testclient import TestClient

from alidade.errors import AlidadeError
from alidade.imagery.sandbox import Limits, can_isolate
from alidade.server import security
from alidade.server.app import create_app
from alidade.server.config import ServerConfig
from alidade.server.routes_search import _received
from make_fixtures import canary, display, vrt_of, write_tif
from server_app import client_of, make_archive

TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    return make_archive(tmp_path_factory.mktemp("guarded"))


@pytest.fixture(scope="module")
def client(config: ServerConfig) -> Iterator[TestClient]:
    with client_of(config) as running:
        yield running


@pytest.fixture(scope="module")
def locked(config: ServerConfig) -> Iterator[TestClient]:
    with client_of(config, token=TOKEN, host="0.0.0.0", names=("maps.example",)) as running:
        running.headers["host"] = "192.0.2.7:8000"
        yield running


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"host": "0.0.0.0"}, "0.0.0.0 without a token"),
        ({"host": "::"}, "without a token"),
        ({"host": "192.168.1.5"}, "without a token"),
        ({"host": "example.org"}, "without a token"),
        ({"token": "short"}, "16 or more"),
        ({"token": "x" * 20 + " y"}, "without spaces"),
        ({"token": "ü" * 20}, "beyond ASCII"),
        ({"port": 70_000}, "--port: got 70000"),
    ],
)
def test_settings_that_would_be_unsafe_are_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(AlidadeError, match=told):
        ServerConfig(archive=Path("a"), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_loopback_needs_no_token(host: str) -> None:
    assert ServerConfig(archive=Path("a"), host=host).loopback


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "192.0.2.7", "", "localhost:x", "a@b", "[::1"]
)
def test_another_host_is_refused_on_loopback(client: TestClient, host: str) -> None:
    answer = client.get("/api/health", headers={"host": host})
    assert answer.status_code == 421
    assert set(answer.json()) == {"what", "got", "expected", "next_step"}


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "localhost."])
def test_its_own_names_are_taken(client: TestClient, host: str) -> None:
    assert client.get("/api/health", headers={"host": host}).status_code == 200


def test_two_hosts_are_none(config: ServerConfig) -> None:
    seen = raw_request(config, [(b"host", b"localhost"), (b"host", b"evil.example")])
    assert seen == 421
    assert raw_request(config, []) == 421


def raw_request(config: ServerConfig, headers: list[tuple[bytes, bytes]]) -> int:
    """Status of a request with exactly these headers."""
    app, sent = create_app(config), []
    scope = {
        "type": "http", "method": "GET", "path": "/api/health", "headers": headers, "query_string": b"", "asgi": {},
        "raw_path": b"/api/health", "root_path": "", "scheme": "http", "http_version": "1.1",
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
    }  # fmt: skip

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1.evil.example"},
     {"sec-fetch-site": "cross-site"}],
)  # fmt: skip
def test_another_site_may_change_nothing(client: TestClient, headers: dict[str, str]) -> None:
    body = {"labels": {"t": {"mark": "yes"}}}
    assert client.put("/api/labels", json=body, headers=headers).status_code == 403
    assert "t" not in client.get("/api/labels").json()["labels"]
    own = {"origin": "http://localhost:8000", "sec-fetch-site": "same-origin"}
    assert client.put("/api/labels", json=body, headers=own).status_code == 200
    client.put("/api/labels", json={"labels": {"t": {"mark": None}}})


def test_every_answer_keeps_browsers_in(client: TestClient) -> None:
    for answer in (
        client.get("/api/health"), client.get("/nowhere"), client.get("/api/health", headers={"host": "evil.example"}),
        client.post("/api/search", json={}),
    ):  # fmt: skip
        assert "default-src" in answer.headers["content-security-policy"]
        assert "http:" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer wrong-horse-battery"}, {"authorization": f"Basic {TOKEN}"}, {"authorization": TOKEN},
     {"authorization": "Bearer"}, {"cookie": f"alidade_session={TOKEN}"}, {"cookie": "alidade_session="},
     {"cookie": "\x80=;;"}, {"authorization": "Bearer \xfc"}],
)  # fmt: skip
def test_without_the_token_nothing_is_told(locked: TestClient, headers: dict[str, str]) -> None:
    raw = {k: v.encode("latin-1") for k, v in headers.items()}
    for path in ("/api/health", "/api/openapi.json", "/", "/api/scenes"):
        answer = locked.get(path, headers=raw)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert TOKEN not in answer.text


def test_with_the_token_all_is_told(locked: TestClient) -> None:
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert locked.get("/api/health", headers=headers).status_code == 200
    assert locked.get("/api/health", headers={**headers, "host": "maps.example"}).status_code == 200
    assert locked.get("/api/health", headers={**headers, "host": "evil.example"}).status_code == 421


def test_a_browser_gets_a_cookie_for_the_token_once(locked: TestClient) -> None:
    answer = locked.get("/", params={"token": TOKEN, "text": "open water"}, follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/?text=open+water"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    shown = {"cookie": cookie.partition(";")[0]}
    assert locked.get("/api/health", headers=shown).status_code == 200
    locked.cookies.clear()
    assert locked.get("/", params={"token": "wrong-horse-battery"}, follow_redirects=False).status_code == 401
    assert locked.get("/api/health", params={"token": TOKEN}, follow_redirects=False).status_code == 401
    locked.cookies.clear()


def test_the_welcome_leads_to_no_other_site(locked: TestClient) -> None:
    for path in ("//evil.example/", "/\\evil.example/", "///evil.example"):
        answer = locked.get(f"http://192.0.2.7:8000{path}", params={"token": TOKEN}, follow_redirects=False)
        if answer.status_code == 303:
            assert not answer.headers["location"].startswith(("//", "/\\"))
    locked.cookies.clear()


def test_tokens_are_compared_in_constant_time(locked: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def compare(a: bytes, b: bytes) -> bool:
        seen.append((a, b))
        return False

    monkeypatch.setattr(security.hmac, "compare_digest", compare)
    assert locked.get("/api/health", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 401
    assert (TOKEN.encode(), TOKEN.encode()) in seen


def test_long_bodies_are_cut_off(client: TestClient) -> None:
    long = json.dumps({"text": "x" * (3 * 2**20)}).encode()
    answer = client.post("/api/search", content=long, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert client.post("/api/search", content=b"{}", headers={"content-length": "-5"}).status_code in (400, 413)

    def pieces() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * 65_536

    without_length = client.post("/api/search", content=pieces(), headers={"content-type": "application/json"})
    assert without_length.status_code in (400, 413)


def test_uploads_are_cut_off_while_they_come_in(config: ServerConfig) -> None:
    taken = 0

    def pieces() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(200):
            taken += 65_536
            yield b"II*\0" * 16_384

    with client_of(config, uploads=Limits(upload_bytes=200_000, isolated=can_isolate())) as client:
        assert client.post("/api/upload", content=b"x" * 200_001).status_code == 413
        answer = client.post("/api/upload", content=pieces())
        assert answer.status_code == 413
        assert "at most 200,000 bytes" in answer.json()["expected"]


def test_an_upload_that_dawdles_is_ended(config: ServerConfig) -> None:
    async def receive() -> dict[str, object]:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"I", "more_body": True}

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)  # type: ignore[arg-type]
    with pytest.raises(AlidadeError, match="all of it within") as told:
        asyncio.run(_received(request, 1000, 0.3))
    assert told.value.status == 408  # type: ignore[attr-defined]


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (60_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["nothing", "text", "vrt", "cut", "bomb", "no place", "wrong sensor"])
def test_hostile_uploads_are_refused_in_one_sentence(client: TestClient, tmp_path: Path, kind: str) -> None:
    good = write_tif(tmp_path / "good.tif", display(), names=("red", "green", "blue")).read_bytes()
    picture = io.BytesIO()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(picture, format="PNG")
    with canary() as bird:
        made = {
            "nothing": b"",
            "text": b"<html>hello</html>",
            "vrt": vrt_of(tmp_path / "a.tif", f"/vsicurl/{bird.address}/secret.tif").read_bytes(),
            "cut": good[: len(good) // 2],
            "bomb": bomb(),
            "no place": picture.getvalue(),
            "wrong sensor": good,
        }
        parameters = {"sensor": "sentinel-9"} if kind == "wrong sensor" else {}
        answer = client.post("/api/upload", content=made[kind], params=parameters)
        assert answer.status_code == 422, answer.text
        assert set(answer.json()) == {"what", "got", "expected", "next_step"}
        assert str(tmp_path) not in answer.text
        assert bird.calls == []


def test_a_photograph_with_its_ground_resolution_is_taken(client: TestClient) -> None:
    picture = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)).save(picture, format="JPEG")
    answer = client.post("/api/upload", content=picture.getvalue(), params={"gsd": 0.5})
    assert answer.status_code == 200, answer.text
    assert client.post("/api/search", json={"upload": answer.json()["token"]}).status_code == 200
    assert client.post("/api/upload", content=picture.getvalue(), params={"gsd": -1}).status_code == 422


def test_nothing_is_fetched_while_serving(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    here = threading.get_ident()
    called: list[object] = []
    real = socket.socket.connect

    def connect(self: socket.socket, address: object) -> None:
        called.append((threading.get_ident() == here, address))
        real(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", connect)
    told = client.post("/api/search", json={"text": "forest"}).json()
    hit = told["hits"][0]
    for path in (
        f"/api/thumbnail/{hit['id']}.png",
        f"/api/similarity/{told['query_id']}/0/0/0.png",
        "/api/openapi.json",
    ):
        assert client.get(path).status_code == 200
    assert called == []
    page = client.get("/api/openapi.json").text
    assert "http://" not in page
    assert "https://" not in page

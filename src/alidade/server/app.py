"""The application: services, routes, the guard in front, and one form for everything that goes wrong."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from alidade.errors import AlidadeError
from alidade.server import routes_map, routes_notes, routes_search
from alidade.server.config import ServerConfig
from alidade.server.problems import Refused, status_of
from alidade.server.security import Guard, body_of
from alidade.server.services import Services

LOG = logging.getLogger("alidade.server")
_CUT = 200
_OF_OURS = "See /api/openapi.json for what can be asked."


def create_app(settings: ServerConfig) -> FastAPI:
    """An application that serves one archive.

    It answers at once, and searches as soon as archive and model are loaded; ``app.state.services`` are its
    services. Nothing in it asks another machine for anything.

    Args:
        settings: the archive, the token and the limits.
    """
    services = Services(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        services.begin()
        try:
            yield
        finally:
            await services.close()

    app = FastAPI(
        title="alidade",
        summary="Search an archive of satellite and aerial imagery.",
        version=version("alidade"),
        # the usual pages about an API load scripts from elsewhere
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=lifespan,
    )
    app.state.services = services
    for routes in (routes_search, routes_map, routes_notes):
        app.include_router(routes.router)
    app.add_middleware(Guard, config=settings)
    app.add_exception_handler(AlidadeError, _refused)
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_exception_handler(HTTPException, _not_there)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _unexpected)
    return app


def _problem(error: AlidadeError, headers: dict[str, str] | None = None) -> Response:
    retry = (
        {} if not isinstance(error, Refused) or error.retry_after is None else {"Retry-After": str(error.retry_after)}
    )
    return Response(body_of(error), status_of(error), {**(headers or {}), **retry}, "application/json")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, AlidadeError)
    return _problem(error)


async def _not_understood(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])[:_CUT]
    got = "nothing" if first["type"] == "missing" else repr(first.get("input"))[:_CUT]
    expected = str(first["msg"])[:_CUT]
    return _problem(AlidadeError(where, got=got, expected=expected, next_step=_OF_OURS))


async def _not_there(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    got = f"{request.method} {request.url.path}"[:_CUT]
    told = Refused("request", got=got, expected=str(error.detail), next_step=_OF_OURS, status=error.status_code)
    return _problem(told, dict(error.headers or {}))


async def _left(_: Request, error: Exception) -> Response:
    """Nobody reads this: who asked has gone before the whole body was there."""
    return Response(status_code=400)


async def _unexpected(request: Request, error: Exception) -> Response:
    LOG.error("%s %s", request.method, request.url.path, exc_info=error)
    told = Refused(
        "server",
        got="an unexpected error",
        expected="an answer",
        next_step="Look into the server's log; if it happens again, report it.",
        status=500,
    )
    return _problem(told)

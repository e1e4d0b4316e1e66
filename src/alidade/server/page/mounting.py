"""Puts the page into a server's app."""

from __future__ import annotations

import warnings

from fastapi import FastAPI
from fastapi.requests import Request
from nicegui import ui
from starlette.exceptions import HTTPException
from starlette.routing import Match

from alidade.server.page import POLICY
from alidade.server.page.elements import STATIC
from alidade.server.page.page import Page
from alidade.server.page.view import View
from alidade.server.security import Guard
from alidade.server.services import Services

_RECONNECT_SECONDS = 10.0
_BUILD_SECONDS = 20.0


def mount_page(app: FastAPI, services: Services) -> None:
    """See :func:`alidade.server.page.mount`."""
    for middleware in app.user_middleware:
        if getattr(middleware.cls, "__name__", "") == Guard.__name__:
            middleware.kwargs["page_policy"] = POLICY

    # what is mounted at / answers everything that no route before it fits: an address under /api that does not exist
    # would get a web page, and one that is asked by another method too
    @app.api_route("/api/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    async def unknown(request: Request, rest: str) -> None:
        others = [route for route in app.router.routes if getattr(route, "path", None) != "/api/{rest:path}"]
        other_method = any(route.matches(request.scope)[0] is Match.PARTIAL for route in others)
        raise HTTPException(405 if other_method else 404)

    @ui.page("/", title="alidade", response_timeout=_BUILD_SECONDS, reconnect_timeout=_RECONNECT_SECONDS)
    async def page(request: Request) -> None:
        view, problems = View.of_link(request.query_params)
        await Page(services, view, problems).begin()

    # as it starts, NiceGUI looks at every object in the process, which wakes a warning of torch about itself
    warnings.filterwarnings("ignore", message=".*torch.distributed.reduce_op.*", category=FutureWarning)
    ui.run_with(
        app,
        title="alidade",
        favicon=STATIC / "icon.svg",
        dark=None,
        tailwind=False,
        show_welcome_message=False,
        binding_refresh_interval=None,
    )

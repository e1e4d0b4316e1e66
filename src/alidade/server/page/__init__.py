"""The page: one search box, a map and a gallery, in the process of the server (NiceGUI; nothing from elsewhere).

``view`` is what a link says, ``rows`` what the browser is told of tiles; ``static/`` holds the two parts that run in
the browser, map and gallery; the rest puts them together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

    from alidade.server.services import Services

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; img-src 'self' data: blob:; "
    "style-src 'self' 'unsafe-inline'; font-src 'self' data:; connect-src 'self'; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""Content-Security-Policy under which the page works: everything from this server. NiceGUI writes its script into the
page, and Vue compiles templates in the browser, hence the two words about scripts."""


def mount(app: FastAPI, services: Services) -> None:
    """Put the page at ``/`` of a server, below everything that the server has routes for. Once per process.

    Args:
        app: with all its routes; what it does not know goes to the page from now on.
        services: of that app.

    Raises:
        AlidadeError: NiceGUI is not installed.
    """
    from alidade.errors import AlidadeError

    try:
        import nicegui  # noqa: F401
    except ImportError as error:
        raise AlidadeError(
            "page",
            got=f"no package {error.name}",
            expected="the packages of the extra serve",
            next_step='Install them with: pip install "alidade[serve]".',
        ) from error
    from alidade.server.page.mounting import mount_page

    mount_page(app, services)

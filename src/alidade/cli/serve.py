"""``alidade serve``: an archive over HTTP."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alidade.cli import options as opt
from alidade.errors import AlidadeError

if TYPE_CHECKING:
    from alidade.server.config import ServerConfig

_SHUTDOWN_SECONDS = 10


def register(app: typer.Typer) -> None:
    """Add ``serve`` to the application."""
    app.command()(serve)


def serve(
    archive: Annotated[Path, typer.Argument(help="Directory of the archive.")],
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port; 0 takes a free one.")] = 8000,
    token: Annotated[
        str | None, typer.Option(envvar="ALIDADE_TOKEN", help="What every request has to show.", show_default=False)
    ] = None,
    names: Annotated[
        list[str] | None, typer.Option("--name", help="A further host name of this server, as of a proxy.")
    ] = None,
    model: opt.ModelName = None,
    weights: opt.Weights = None,
    sensor: opt.SensorName = None,
    bands: opt.Bands = None,
    unit: opt.UnitName = None,
    scale: opt.Scale = None,
    offset: opt.Offset = None,
    nodata: opt.Nodata = None,
    taken: opt.Taken = None,
    gsd: opt.Gsd = None,
) -> None:
    """Open an archive on a map, in a browser; search, pictures and labels over HTTP. On this machine only by default.

    What was declared about the files when they were embedded (--sensor and so on) has to be declared here again.
    """
    check_extra()
    from alidade.models.registry import DEFAULT
    from alidade.server.config import ServerConfig

    declared = opt.declared_from(sensor, bands, unit, scale, offset, nodata, taken, gsd)
    config = ServerConfig(
        archive=archive, model=model or DEFAULT, weights=weights, declared=declared, host=host, port=port,
        token=token or None, names=tuple(names or ()),
    )  # fmt: skip
    run_server(config)


def check_extra() -> None:
    """Refuse to serve in an installation without what only serving needs.

    Raises:
        AlidadeError: naming the missing packages.
    """
    if missing := [name for name in ("fastapi", "uvicorn", "nicegui") if find_spec(name) is None]:
        raise AlidadeError(
            "alidade serve",
            got=f"an installation without {' and '.join(missing)}",
            expected="the extra `serve`",
            next_step='Install it: pip install "alidade[serve]" (in a clone: pip install -e ".[serve]").',
        )


def run_server(config: ServerConfig) -> None:
    """Serve until Ctrl-C or SIGTERM, which ends what is under way first.

    Raises:
        AlidadeError: the address is taken, or the archive cannot be served.
    """
    import uvicorn

    from alidade.cli.output import err
    from alidade.server import page
    from alidade.server.app import create_app
    from alidade.server.services import Services

    app = create_app(config)
    services: Services = app.state.services
    page.mount(app, services)
    listening = _listen(config)
    server = uvicorn.Server(
        uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, lifespan="on",
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        )
    )  # fmt: skip

    def known(services: Services) -> None:
        if services.keeper.failure is not None:
            server.should_exit = True
            return
        told = services.health()
        for repair in services.keeper.repairs:
            err.print(f"repaired: {repair}")
        shown = f"[{config.host}]" if ":" in config.host else config.host
        hint = "" if config.token is None else "?token=TOKEN (your token, once in each browser)"
        err.print(f"{told['rows']:,} tiles of {config.archive}, model {told['model']}")
        err.print(f"serving at http://{shown}:{listening.getsockname()[1]}/{hint}   Ctrl-C ends it.")

    services.when_known = known
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        err.print("stopped by Ctrl-C")
    finally:
        listening.close()
    if services.keeper.failure is not None:
        raise services.keeper.failure


def _listen(config: ServerConfig) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise AlidadeError(
            f"{config.host}, port {config.port}",
            got=error.strerror or str(error),
            expected="an address of this machine with a free port",
            next_step="Choose another --port, or end what uses this one.",
        ) from error

"""Embeds some files into a new archive, or takes one that is there, and serves it with the page: a process of its own.

python page_server.py ARCHIVE PORT [FILE ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn

from alidade.models.registry import load
from alidade.search.embed import embed
from alidade.server.app import create_app
from alidade.server.config import ServerConfig
from alidade.server.page import mount


def main(archive: Path, port: int, files: list[str]) -> None:
    if files:
        embed(files, archive, load())
    app = create_app(ServerConfig(archive=archive, port=port))
    mount(app, app.state.services)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])

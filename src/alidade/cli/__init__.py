"""The command line: thin verbs over the library. Errors are one line and exit code 2.

Modules are imported by the command that needs them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys

import typer

from alidade.errors import AlidadeError


def build() -> typer.Typer:
    """The application with all its commands."""
    from alidade.cli import commands

    app = typer.Typer(
        name="alidade",
        help="Satellite and aerial imagery of any sensor and ground resolution: encode, index, search.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    commands.register(app)
    return app


def main() -> None:
    """Entry point: run the command; tell a user's mistake in one line on stderr."""
    # large attention tables are new memory each time; huge pages halve what that costs (Linux, read by torch)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        typer.main.get_command(build())()
    except AlidadeError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)

"""The command line: thin verbs over the library. Errors are one line and exit code 2.

Modules are imported by the command that needs them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys

import click
import typer

from alidade.errors import AlidadeError

app = typer.Typer(
    name="alidade",
    help="Satellite and aerial imagery of any sensor and ground resolution: encode, index, search.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point: run the command; tell a user's mistake in one line on stderr."""
    # large attention tables are new memory each time; huge pages halve what that costs (Linux, read by torch)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from alidade.cli import commands

    commands.register(app)
    try:
        code = typer.main.get_command(app)(standalone_mode=False)
    except AlidadeError as error:
        click.echo(f"error: {error}", err=True)
        code = 2
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; what was acknowledged stays", err=True)
        code = 130
    except BrokenPipeError:
        # the reader of a pipe has gone (`alidade search ... | head`): nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code or 0)

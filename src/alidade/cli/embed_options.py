"""Options of ``alidade embed`` that say who does the work: a part of it, several processes, or a cluster."""

from __future__ import annotations

import re
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from alidade.errors import AlidadeError

if TYPE_CHECKING:
    from alidade.search.engine import Engine
    from alidade.search.plan import Shard

ShardText = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Do part I of N (from 0 on) only; other jobs do the others."),
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Processes that embed. [default: this one]")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads of the model in each process.")]
EngineName = Annotated[str, typer.Option("--engine", help="local, or ray for a Ray cluster.")]
RayAddress = Annotated[
    str | None, typer.Option("--ray-address", help="Ray cluster, e.g. auto. [default: one on this machine]")
]


def parse_shard(text: str | None) -> Shard | None:
    """``"2/16"`` as a part.

    Raises:
        AlidadeError: it is not written so, or there is no such part.
    """
    from alidade.search.plan import Shard

    if text is None:
        return None

    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
    if found is None:
        raise AlidadeError("--shard", got=repr(text), expected="I/N, such as 0/16", next_step="Write it so.")
    return Shard(index=int(found[1]), count=int(found[2]))


def engine_from(
    name: str,
    *,
    workers: int | None,
    threads: int | None,
    address: str | None,
    model: str | None,
    weights: str | None,
) -> Engine:
    """Who does the work.

    Raises:
        AlidadeError: another name than local and ray, an address without ray, or Ray is not installed.
    """
    from alidade.models.registry import DEFAULT, load
    from alidade.search.engine import InProcess, Pool

    if name not in ("local", "ray"):
        raise AlidadeError("--engine", got=repr(name), expected="local or ray", next_step="Name one of these.")
    if name == "local" and address is not None:
        raise AlidadeError(
            "--ray-address", got="--engine local", expected="--engine ray", next_step="Add --engine ray."
        )
    loader = partial(load, model or DEFAULT, weights=weights)
    if name == "ray":
        if find_spec("ray") is None:
            raise AlidadeError(
                "--engine ray",
                got="an installation without ray",
                expected="the extra `scale`",
                next_step='Install it: pip install "alidade[scale]" (in a clone: pip install -e ".[scale]").',
            )
        from alidade.search.ray_engine import RayCluster

        return RayCluster(load=loader, workers=workers, threads=threads or 1, address=address)
    if workers is not None and workers > 1:
        return Pool(load=loader, workers=workers, threads=threads)
    return InProcess(threads=threads)

"""Units of work on a Ray cluster. Needs the extra ``scale``; nothing else of alidade imports Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from alidade.errors import ArchiveError
from alidade.search.engine import Done, Task, Worker, checked, worker_died
from alidade.search.plan import Embedder, WorkUnit


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """Actors on a Ray cluster, each with the model in memory; the archive is written by this process alone.

    Every machine must see the rasters under the same paths and have the same alidade and weights. A unit whose
    actor is lost is done again by another one; what came of it counts once, since only this process writes.

    Attributes:
        load: makes the model in an actor; picklable.
        workers: how many actors; as many as the cluster has processors for when not given.
        threads: that torch uses in each, and the processors that each asks Ray for.
        address: of the cluster, such as ``"auto"``; one on this machine for the time of the run when not given.
            ``RAY_ADDRESS`` counts too, as everywhere with Ray.
    """

    load: Callable[[], Embedder]
    workers: int | None = None
    threads: int = 1
    address: str | None = None

    def run(self, units: Sequence[WorkUnit], task: Task, model: Embedder) -> Generator[Done, None, None]:
        """See :class:`alidade.search.engine.Engine`."""
        import ray
        from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError

        # nothing is told to anybody who was not asked for: Ray would report its use
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own = not ray.is_initialized()
        actors: list[Any] = []
        try:
            if own:
                self._connect(ray)
            actors = self._actors(ray)
            left = iter(units)
            # two at a time for each: the next is there when one is done, and memory does not grow with the list
            under_way = {
                actor.do.remote(unit, task): actor
                for actor, unit in zip(actors + actors, islice(left, 2 * len(actors)), strict=False)
            }
            while under_way:
                (ready,), _ = ray.wait(list(under_way))
                actor = under_way.pop(ready)
                under_way |= {actor.do.remote(unit, task): actor for unit in islice(left, 1)}
                identity, done = ray.get(ready)
                yield checked(identity, done, model)
        except (OutOfMemoryError, RayActorError, WorkerCrashedError) as error:
            raise worker_died(" ".join(str(error).split())[-200:]) from None
        finally:
            for actor in actors:
                ray.kill(actor)
            if own:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:  # noqa: ANN401
        # an address given by the environment is Ray's own business
        local = self.address is None and "RAY_ADDRESS" not in os.environ
        cpus = (self.workers or 1) * self.threads
        size = {"num_cpus": max(cpus, os.cpu_count() or 1), "include_dashboard": False} if local else {}
        try:
            ray.init(address="local" if local else self.address, log_to_driver=False, **size)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ArchiveError(
                "Ray cluster",
                got=" ".join(str(error).split())[:200],
                expected="a cluster that can be reached",
                next_step="Start one with `ray start --head`, or leave --ray-address out for this machine alone.",
            ) from None

    def _actors(self, ray: Any) -> list[Any]:  # noqa: ANN401
        count = self.workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // self.threads)
        # a lost machine is no reason to stop; an actor that dies again and again is
        remote = ray.remote(num_cpus=self.threads, max_restarts=3, max_task_retries=3)(Worker)
        return [remote.remote(self.load, self.threads) for _ in range(count)]

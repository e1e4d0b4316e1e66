"""The next batch is made by a thread while the present one is trained on: numpy and torch let both run at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """An iterator whose next item is always being made by one thread; items come in the iterator's own order.

    What the iterator raises is raised by ``take``. Leaving the ``with`` block, for whatever reason, waits for the item
    being made and makes no further one.
    """

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="alidade-batches")

    def __enter__(self) -> Ahead[T]:
        self._next = self._thread.submit(self._make)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def take(self) -> tuple[T, float]:
        """The next item, and the seconds it was waited for.

        Raises:
            EOFError: there is none.
        """
        began = time.perf_counter()
        found = self._next.result()
        waited = time.perf_counter() - began
        if not found:
            raise EOFError("the iterator has ended")
        self._next = self._thread.submit(self._make)
        return found[0], waited

    def _make(self) -> list[T]:
        # a list, since StopIteration does not travel through a future
        for item in self._items:
            return [item]
        return []

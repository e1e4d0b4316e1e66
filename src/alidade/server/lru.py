"""A bounded store of what was used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Lru(Generic[K, V]):
    """Keeps what was used last, up to a total weight; safe to use from several threads.

    Args:
        most: the total weight.
        weigh: weight of one value, 1 by default.
        drop: is told each value that is pushed out.
    """

    def __init__(
        self, most: int, weigh: Callable[[V], int] = lambda _: 1, drop: Callable[[V], None] = lambda _: None
    ) -> None:
        self._most, self._weigh, self._drop = most, weigh, drop
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._weight = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: K) -> V | None:
        """The value, which now is the one used last; ``None`` when it is not there."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: K, value: V) -> None:
        """Keep a value, and push out what was not used for longest. One that is too heavy alone is not kept."""
        with self._lock:
            old = self._kept.pop(key, None)
            if old is not None:
                self._weight -= self._weigh(old)
            self._kept[key] = value
            self._weight += self._weigh(value)
            pushed = [] if old is None or old is value else [old]
            while self._weight > self._most:
                _, last = self._kept.popitem(last=False)
                self._weight -= self._weigh(last)
                pushed.append(last)
        for last in pushed:
            self._drop(last)

    def clear(self) -> None:
        """Push everything out."""
        with self._lock:
            kept, self._kept, self._weight = list(self._kept.values()), OrderedDict(), 0
        for value in kept:
            self._drop(value)

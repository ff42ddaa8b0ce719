"""A cache bounded in bytes, least recently used out, safe between threads."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Generic, TypeVar

V = TypeVar("V")


class ByteCache(Generic[V]):
    """Values by content-addressed keys, of at most `budget` bytes in all: a larger one is not kept."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.used = 0
        self._values: OrderedDict[str, tuple[V, int]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: str) -> V | None:
        """The value, now the most recently used, or None."""
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: str, value: V, size: int) -> None:
        """Keep a value of `size` bytes; the least recently used ones leave until it fits."""
        with self._lock:
            if key in self._values:
                self.used -= self._values.pop(key)[1]
            if size > self.budget:
                return
            while self._values and self.used + size > self.budget:
                self.used -= self._values.popitem(last=False)[1][1]
            self._values[key] = (value, size)
            self.used += size

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values.clear()
            self.used = 0

    def __len__(self) -> int:
        with self._lock:
            return len(self._values)

"""A queue in which callers take turns."""

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """A queue: first in, first out for each caller, while callers take turns.

    A caller with a thousand items in the queue delays another one by one of them, not by all.
    """

    __slots__ = ("_by_caller", "_callers")

    def __init__(self) -> None:
        self._by_caller: dict[str, deque[T]] = {}
        # Its keys; the caller whose turn is next comes first.
        self._callers: deque[str] = deque()

    def __bool__(self) -> bool:
        return bool(self._callers)

    def __iter__(self) -> Iterator[T]:
        for items in self._by_caller.values():
            yield from items

    @property
    def callers(self) -> int:
        """Number of callers that have items in the queue."""
        return len(self._callers)

    def append(self, item: T, caller: str) -> None:
        """Adds an item behind the others of its caller."""
        items = self._by_caller.get(caller)
        if items is None:
            items = self._by_caller[caller] = deque()
            self._callers.append(caller)
        items.append(item)

    def first(self) -> T:
        """The item that `popleft` would return."""
        return self._by_caller[self._callers[0]][0]

    def popleft(self) -> T:
        """Removes and returns the oldest item of the caller whose turn it is."""
        caller = self._callers.popleft()
        items = self._by_caller[caller]
        item = items.popleft()
        if items:
            self._callers.append(caller)
        else:
            del self._by_caller[caller]
        return item

    def skip(self) -> None:
        """Ends a caller's turn without taking an item."""
        self._callers.rotate(-1)

    def remove(self, item: T, caller: str) -> None:
        """Removes an item that need not be the first; does nothing if it is gone."""
        items = self._by_caller.get(caller, ())
        if item not in items:
            return
        items.remove(item)  # type: ignore[union-attr]  # not the empty tuple
        if not items:
            del self._by_caller[caller]
            self._callers.remove(caller)

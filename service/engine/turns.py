"""A queue in which callers take turns."""

from collections import deque
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


class Turns(dict[str, deque[T]]):
    """A queue: first in, first out for each caller, while callers take turns.

    A caller with a thousand items in the queue delays another one by one of them, not by all.

    A dictionary of each caller's items, none of them empty: its methods, which cost a fraction of
    Python's own, tell whether there are items, and whose.
    """

    __slots__ = ("_order",)

    def __init__(self) -> None:
        # Its keys; the caller whose turn is next comes first.
        self._order: deque[str] = deque()

    def items_in_order(self) -> Iterator[T]:
        """All items, in the order of each caller's."""
        for items in self.values():
            yield from items

    def append(self, item: T, caller: str) -> None:
        """Adds an item behind the others of its caller."""
        items = self.get(caller)
        if items is None:
            self[caller] = items = deque()
            self._order.append(caller)
        items.append(item)

    def first(self) -> T:
        """The item that `popleft` would return."""
        return self[self._order[0]][0]

    def popleft(self) -> T:
        """Removes and returns the oldest item of the caller whose turn it is."""
        order = self._order
        caller = order[0]
        items = self[caller]
        item = items.popleft()
        if not items:
            del self[caller]
            order.popleft()
        elif len(order) > 1:
            order.rotate(-1)
        return item

    def skip(self) -> None:
        """Ends a caller's turn without taking an item."""
        self._order.rotate(-1)

    def remove(self, item: T, caller: str) -> None:
        """Removes an item that need not be the first; does nothing if it is gone."""
        items = self.get(caller)
        if items is None or item not in items:
            return
        items.remove(item)
        if not items:
            del self[caller]
            self._order.remove(caller)

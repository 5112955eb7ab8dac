"""A queue in which callers take turns."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import TypeVar

T = TypeVar("T")
# Items of a caller that `popleft_where` tests.
_DEPTH = 64


class Turns(dict[str, deque[T]]):
    """A queue: first in, first out for each caller, while callers take turns.

    A caller with a thousand items in the queue delays the next item of another caller by one of
    them, not by all.

    A dict from each caller with queued items to a deque of them: to test or iterate a dict costs a
    fraction of calling a method written in Python.
    """

    __slots__ = ("_order",)

    def __init__(self) -> None:
        # The keys of this dict, in the order of turns: the next caller comes first.
        self._order: deque[str] = deque()

    def items_in_order(self) -> Iterator[T]:
        """Iterates over all items: caller by caller, those of each oldest first."""
        return chain.from_iterable(self.values())

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

    def popleft_where(self, wanted: Callable[[T], bool]) -> T | None:
        """Removes and returns the oldest wanted item of the first caller who has one.

        Callers without one keep their turn. Only the oldest `_DEPTH` items of a caller are tested.

        Returns:
            The item; None if nobody has one.
        """
        order = self._order
        for place, caller in enumerate(order):
            items = self[caller]
            for index, item in enumerate(islice(items, _DEPTH)):
                if wanted(item):
                    del items[index]
                    del order[place]
                    if items:
                        order.append(caller)
                    else:
                        del self[caller]
                    return item
        return None

    def skip(self) -> None:
        """Ends a caller's turn without taking an item."""
        self._order.rotate(-1)

    def remove(self, item: T, caller: str) -> None:
        """Removes an item from any position; does nothing if it is not in the queue."""
        items = self.get(caller)
        if items is None or item not in items:
            return
        items.remove(item)
        if not items:
            del self[caller]
            self._order.remove(caller)

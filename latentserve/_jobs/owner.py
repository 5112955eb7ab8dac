"""Ownership of a job in object storage, by the object `.owner-N` of the Nth process that has it."""

import contextlib
import os
import re
import secrets
import socket
from collections.abc import Iterable

from latentserve._jobs.folder import JobError, json_bytes
from latentserve._store import Store, StoreError

_OWNER = re.compile(r"\.owner-(\d+)")


class Owner:
    """This process as the owner of a job, from when it creates the next `.owner-N`.

    Only one process can create it, and the one before finds it.

    Args:
        store: The folder.
        names: Names of the objects there.

    Attributes:
        took_over: Whether another process owned the job that has not given it up, and may still
            run.

    Raises:
        JobError: Another process takes the job over just now.
        StoreError: The store cannot be reached or written.
    """

    def __init__(self, store: Store, names: Iterable[str]):
        self._store = store
        owners = sorted(
            (int(match[1]), name) for name in names if (match := _OWNER.fullmatch(name))
        )
        self.took_over = bool(owners)
        self._number = owners[-1][0] + 1 if owners else 0
        who = {"host": socket.gethostname(), "process": os.getpid(), "id": secrets.token_hex(8)}
        self._name, self._claim = f".owner-{self._number}", json_bytes(who)
        self._is_lost = False
        if not created(store, self._name, self._claim):
            raise JobError(self.lost())
        for _, name in owners:
            store.delete(name)

    def require(self) -> None:
        """Checks that no other process has taken the job over.

        A later owner creates the next object and then removes this one. When that one has ended,
        the names begin anew, but what an object says is never said again.

        Raises:
            JobError: One has.
            StoreError: The store cannot be reached.
        """
        if self._is_lost or not self._is_there() or self._has_successor():
            self._is_lost = True
            raise JobError(self.lost())

    def lost(self) -> str:
        """The message that another process has taken the job over."""
        where = self._store.url
        return f"{where}: another process, which was started later, works on the job there"

    def leave(self) -> None:
        """Lets the object stay, so that the next process takes this one to be running."""
        self._is_lost = True

    def close(self) -> None:
        """Gives up the job, unless another process has it."""
        if not self._is_lost:
            with contextlib.suppress(StoreError):
                if self._is_there():
                    self._store.delete(self._name)

    def _is_there(self) -> bool:
        try:
            return self._store.read(self._name) == self._claim
        except FileNotFoundError:
            return False

    def _has_successor(self) -> bool:
        try:
            self._store.entry(f".owner-{self._number + 1}")
        except FileNotFoundError:
            return False
        return True


def is_owner(name: str) -> bool:
    """Whether a name is that of the object of an owner."""
    return bool(_OWNER.fullmatch(name))


def created(store: Store, name: str, content: bytes) -> bool:
    """Creates an object; True as well if it is there with this content.

    So it is if the store's reply was lost and its client has repeated the request.

    Raises:
        StoreError: The store cannot be reached or written.
    """
    if store.create(name, content):
        return True
    try:
        return store.read(name) == content
    except FileNotFoundError:
        return False

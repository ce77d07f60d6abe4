"""A connection of this process's own to the store of the default process group."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

from torch.distributed import DistError
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public all the same
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.distributed_c10d import Store
from torch.distributed.distributed_c10d import _get_default_store

__all__ = ["StoreConnection", "StoreGone", "store_of_default_group"]

_PREFIX = "ignite_hooks"


def store_of_default_group() -> Store:
    """Returns the store in which the processes found each other. The function is torch's own."""
    return _get_default_store()


class StoreGone(Exception):
    """The store cannot be reached: the process that holds it has ended, rank 0 or the launcher."""


class StoreConnection:
    """A second connection to a store: a client is locked for as long as one of its calls takes.

    A main thread that makes a process group waits in the store, and a thread that watches the
    store through the same client would wait with it. After a call that failed no other is tried:
    torch prints the stack of each.

    Args:
        store: the store of the default process group.
        timeout: the limit of each call.

    Attributes:
        is_gone: whether a call has failed.

    Raises:
        NotImplementedError: this torch cannot connect to a store of that class a second time.
    """

    def __init__(self, store: Store, timeout: timedelta) -> None:
        own = store.clone() if hasattr(store, "clone") else _second_client(store, timeout)
        own.set_timeout(timeout)
        self._store = PrefixStore(_PREFIX, own)
        self.is_gone = False

    def find(self, key: str) -> str:
        """Returns the text of a key; an empty one if there is none."""
        found: str = self._call(self._find, key)
        return found

    def put(self, key: str, text: str) -> None:
        """Sets a key, and returns when the store has it."""
        self._call(self._put, key, text)

    def post(self, key: str, text: str) -> None:
        """Sets a key without an answer, as the last call: the store may end when it is read."""
        self._call(self._store.set, key, text)

    def put_first(self, key: str, text: str) -> None:
        """Sets a key that has no text yet."""
        self._call(self._store.compare_set, key, "", text)

    def _find(self, key: str) -> str:
        return self._store.get(key).decode() if self._store.check([key]) else ""

    def _put(self, key: str, text: str) -> None:
        self._store.set(key, text)
        self._store.check([key])  # answered after what was sent before, which has no answer

    def _call(self, function: Callable[..., Any], *arguments: str) -> Any:
        if self.is_gone:
            raise StoreGone
        try:
            return function(*arguments)
        except DistError as error:
            self.is_gone = True
            raise StoreGone from error


def _second_client(store: Store, timeout: timedelta) -> Store:
    """Does what ``Store.clone`` does, which came with torch 2.8, for a store over TCP."""
    server = store
    while isinstance(server, PrefixStore):
        server = server.underlying_store
    if not isinstance(server, TCPStore):
        raise NotImplementedError(
            f"a {type(server).__name__} has no second connection before torch 2.8"
        )
    # Prefixes cannot be read. A launcher gives each attempt its own, in a store that they share.
    prefix = store.compare_set(f"{_PREFIX}/prefix", "", uuid4().hex).decode()
    client = TCPStore(
        server.host, server.port, is_master=False, wait_for_workers=False, timeout=timeout
    )
    return PrefixStore(prefix, client)

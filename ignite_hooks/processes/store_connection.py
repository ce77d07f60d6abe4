"""A separate connection of this process to the store of the default process group."""

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
    """Returns the store of the default process group, by a private function of torch."""
    return _get_default_store()


class StoreGone(Exception):
    """The store cannot be reached. The process that holds it, rank 0 or the launcher, has ended."""


class StoreConnection:
    """A second connection to a store, for a thread that must not wait for the main thread.

    A client of a store is locked during each call. When the main thread makes a process group, the
    thread waits in such a call. Another thread with the same client would wait for the lock.

    If a call has failed, no further calls are made, because torch prints a stack trace for each
    failed call.

    Args:
        store: the store of the default process group.
        timeout: the time limit of each call.

    Attributes:
        is_gone: whether a call has failed.

    Raises:
        NotImplementedError: this version of torch cannot open a second connection to a store of
            this class.
    """

    def __init__(self, store: Store, timeout: timedelta) -> None:
        own = store.clone() if hasattr(store, "clone") else _second_client(store, timeout)
        own.set_timeout(timeout)  # only for this connection, not for the connection of the group
        self._store = PrefixStore(_PREFIX, own)
        self.is_gone = False

    def find(self, key: str) -> str:
        """Returns the text of a key; an empty text if the key is not set."""
        found: str = self._call(self._find, key)
        return found

    def put(self, key: str, text: str) -> None:
        """Sets a key, and waits until the store has received the text."""
        self._call(self._put, key, text)

    def post(self, key: str, text: str) -> None:
        """Sets a key without waiting for the store.

        Use this for the last call. When rank 0 has read the key, it may end, and the store with it.
        """
        self._call(self._store.set, key, text)

    def put_if_empty(self, key: str, text: str) -> None:
        """Sets a key unless it has a text already."""
        self._call(self._store.compare_set, key, "", text)

    def _find(self, key: str) -> str:
        return self._store.get(key).decode() if self._store.check([key]) else ""

    def _put(self, key: str, text: str) -> None:
        self._store.set(key, text)
        # The store does not answer `set`. But it handles the calls of a client in order, so an
        # answer to `check` shows that the store has received the text.
        self._store.check([key])

    def _call(self, function: Callable[..., Any], *arguments: str) -> Any:
        """Calls a function of the store; raises ``StoreGone`` if the store cannot be reached."""
        if self.is_gone:
            raise StoreGone
        try:
            return function(*arguments)
        except DistError as error:
            self.is_gone = True
            raise StoreGone from error


def _second_client(store: Store, timeout: timedelta) -> Store:
    """Returns a new connection to a ``TCPStore``, like ``Store.clone`` of torch 2.8 and later."""
    server = store
    while isinstance(server, PrefixStore):
        server = server.underlying_store
    if not isinstance(server, TCPStore):
        raise NotImplementedError(
            f"a {type(server).__name__} has no second connection before torch 2.8"
        )
    # All ranks must use the same prefix. A launcher uses one store for all its attempts, with a
    # different prefix for each attempt. The new client would lack the launcher's prefix, and torch
    # has no function to read that prefix. So the first rank that comes here writes a random prefix
    # through `store`, and the other ranks read it there.
    prefix = store.compare_set(f"{_PREFIX}/prefix", "", uuid4().hex).decode()
    client = TCPStore(
        server.host, server.port, is_master=False, wait_for_workers=False, timeout=timeout
    )
    return PrefixStore(prefix, client)

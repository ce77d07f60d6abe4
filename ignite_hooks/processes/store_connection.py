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

    A client of a store is locked during each of its calls. When the main thread makes a process
    group, such a call may wait until all other ranks make the group, too. A second thread with the
    same client would have to wait for the lock.

    After a call has failed, this object makes no further calls, because torch prints a stack trace
    for each failed call.

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

        Use this method for the last call of a rank. Rank 0 may end as soon as it has read the key,
        and the store may end with rank 0.
        """
        self._call(self._store.set, key, text)

    def put_if_empty(self, key: str, text: str) -> None:
        """Sets a key if the key has no text yet."""
        self._call(self._store.compare_set, key, "", text)

    def _find(self, key: str) -> str:
        return self._store.get(key).decode() if self._store.check([key]) else ""

    def _put(self, key: str, text: str) -> None:
        self._store.set(key, text)
        # The store does not answer `set`. It handles the calls of a client in order, so its answer
        # to `check` shows that it has received the text.
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
    # A launcher that restarts failed processes uses the same store for each attempt, with a
    # different prefix for the keys of each attempt. torch has no function to read this prefix, so
    # the new client gets a random one. The first rank that calls this function writes the random
    # prefix through `store`, and the other ranks read it through `store`.
    prefix = store.compare_set(f"{_PREFIX}/prefix", "", uuid4().hex).decode()
    client = TCPStore(
        server.host, server.port, is_master=False, wait_for_workers=False, timeout=timeout
    )
    return PrefixStore(prefix, client)

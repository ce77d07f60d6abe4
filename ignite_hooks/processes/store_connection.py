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
    """The store cannot be reached: the process that holds it has ended, rank 0 or the launcher."""


class StoreConnection:
    """A second connection to a store, for a thread that must not wait for the main thread.

    A client of a store is locked during each call. A main thread that makes a process group waits
    in such a call, and a thread that used the same client would wait with it.

    After a call that failed no further call is made, because torch prints a stack trace for each.

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
        own.set_timeout(timeout)  # of this connection, not of that of the group
        self._store = PrefixStore(_PREFIX, own)
        self.is_gone = False

    def find(self, key: str) -> str:
        """Returns the text of a key; an empty text if the key is not set."""
        found: str = self._call(self._find, key)
        return found

    def put(self, key: str, text: str) -> None:
        """Sets a key, and returns when the store has received it."""
        self._call(self._put, key, text)

    def post(self, key: str, text: str) -> None:
        """Sets a key without waiting for the store.

        To be used for the last call: as soon as rank 0 has read the key, it may end, and the store
        with it.
        """
        self._call(self._store.set, key, text)

    def put_if_empty(self, key: str, text: str) -> None:
        """Sets a key unless it has a text already."""
        self._call(self._store.compare_set, key, "", text)

    def _find(self, key: str) -> str:
        return self._store.get(key).decode() if self._store.check([key]) else ""

    def _put(self, key: str, text: str) -> None:
        self._store.set(key, text)
        # The store does not answer `set`. It handles the calls of a client in order, so its answer
        # to this call shows that it has the text.
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
    # All ranks must use one prefix. A launcher gives each of its attempts a prefix in one shared
    # store, but torch has no function to read the prefix of a store. So the rank that comes first
    # writes a prefix of ours under the launcher's, where all ranks read it.
    prefix = store.compare_set(f"{_PREFIX}/prefix", "", uuid4().hex).decode()
    client = TCPStore(
        server.host, server.port, is_master=False, wait_for_workers=False, timeout=timeout
    )
    return PrefixStore(prefix, client)
